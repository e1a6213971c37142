"""uWSGI, which forks its workers in C once the program is there: our pool, and pools under the instrumentation."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import BIN, backends, database, running
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(not (BIN / "uwsgi").exists(), reason="pyuwsgi is installed for Linux alone")

APPLICATION = """
import json
import os
import time

from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import create_engine

from otel_pgpool import ConnectionPool, PgPoolInstrumentor

PgPoolInstrumentor().instrument(long_hold=0.01)
url = os.environ["DATABASE_URL"]
own = ConnectionPool(1, 2, url, timeout=20)
stock = ThreadedConnectionPool(1, 2, url)
engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"), pool_size=1)


def backends():
    with own.connection() as conn:
        time.sleep(0.05)
        found = [conn.get_backend_pid()]
    conn = stock.getconn()
    found.append(conn.get_backend_pid())
    stock.putconn(conn)
    conn = engine.raw_connection()
    found.append(conn.dbapi_connection.get_backend_pid())
    conn.close()
    return found


masters = backends()


def application(environ, start_response):
    answer = json.dumps({"worker": os.getpid(), "masters": masters, "backends": backends()})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer.encode()]
"""


ROOT = Path(__file__).parents[3]

MOST = 2000
"""Requests after which a second worker should have answered one."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, _number: int = 0) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def answers(port: int) -> bool:
    try:
        return bool(ask(port))
    except (urllib.error.URLError, OSError):
        return False


# Threads are always on in pyuwsgi. It lets go of the GIL before it forks, and a worker then waits for ever for a thread
# that holds the GIL at that moment, unless uWSGI has its own option against that.
@pytest.mark.parametrize("after_fork", [[], ["--py-call-osafterfork"]], ids=["", "osafterfork"])
def test_workers_have_connections_of_their_own(dsn: str, tmp_path: Path, after_fork: list[str]) -> None:
    """No backend serves two processes, the master's are left alone, and nothing is complained of."""
    application = tmp_path / "application.py"
    application.write_text(APPLICATION)
    port = free_port()
    command = (BIN / "uwsgi", "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2", "--die-on-term")
    forking = ("--enable-threads", "--py-call-uwsgi-fork-hooks", *after_fork)
    options = ("--need-app", "--disable-logging", *forking, "--wsgi-file", application)
    name = "_".join(["uwsgi", *(option.strip("-").replace("-", "_") for option in after_fork)])
    with (
        database(dsn, name) as beside,
        running(*command, *options, receiver=None, beside=beside, PYTHONPATH=":".join(sys.path)) as program,
    ):
        assert wait_until(lambda: answers(port)), program.errors
        with ThreadPoolExecutor(4) as crowd:
            seen: list[dict[str, Any]] = []
            while len(seen) < MOST and len({answer["worker"] for answer in seen}) < 2:
                seen += crowd.map(partial(ask, port), range(8))
            seen += crowd.map(partial(ask, port), range(40))
        masters = {*seen[0]["masters"]}
        workers = {answer["worker"]: {*()} for answer in seen}
        for answer in seen:
            workers[answer["worker"]] |= {*answer["backends"]}
        assert len(workers) == 2, program.errors
        first, second = workers.values()
        assert not first & second
        assert not masters & (first | second)
        assert masters <= backends(beside)
        assert "Traceback" not in program.errors, program.errors
        complaints = program.errors.replace(str(ROOT), "")  # a clone may lie in a folder of the package's name
        assert "otel_pgpool" not in complaints, program.errors
