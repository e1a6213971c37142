"""A FastAPI program on asyncpg under uvicorn, which is not changed and knows of no telemetry, exhausted on purpose."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import otel_pgpool
from tests.support.call_sites import shown_name
from tests.support.program_signals import COUNT, last, logs
from tests.support.programs import ENDS_WITHIN, UNDER_OTEL, database, locked, running, until_held_up
from tests.support.receivers import HttpReceiver
from tests.support.sqlalchemy_drivers import IS_1_4
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from tests.support.otlp_views import Span
    from tests.support.programs import Program

PROGRAMS = Path(__file__).parent / "programs"
PROGRAM = PROGRAMS / "stock_api.py"
LIMIT = "QueuePool limit of size 2 overflow 0 reached"

pytestmark = pytest.mark.skipif(IS_1_4, reason="the program is written for SQLAlchemy 2")


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize("program", sorted(path.name for path in PROGRAMS.glob("*.py")))
def test_a_program_knows_of_no_telemetry(program: str) -> None:
    """It is ordinary code."""
    text = (PROGRAMS / program).read_text().lower()
    assert [word for word in ("otel", "opentelemetry", "telemetry", "span", "metric") if word in text] == []


def ask(port: int, path: str, method: str = "POST") -> tuple[int, Any]:
    """Return the status and the body of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310 - the program's
            body = response.read().decode()
            return response.status, json.loads(body) if method == "POST" else body
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def serves(port: int) -> bool:
    try:
        return ask(port, "/stock", "GET")[0] == 200
    except OSError:
        return False


@contextmanager
def api(dsn: str, name: str, receiver: HttpReceiver, **environ: str) -> Iterator[tuple[Program, int, connection]]:
    """Run the program, and provide its port, and a connection beside the program's."""
    with (
        database(dsn, name) as beside,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        with beside.cursor() as cur:
            cur.execute("create table stock as select item, 1000 as pieces from generate_series(1, 10) as item")
        with running(
            *(*UNDER_OTEL, "uvicorn", "--app-dir", PROGRAMS, "--fd", str(listener.fileno()), "stock_api:app"),
            receiver=receiver,
            beside=beside,
            listener=listener,
            PYTHONPATH=str(Path(otel_pgpool.__file__).parents[1]),
            OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
            OTEL_METRIC_EXPORT_INTERVAL="200",
            **environ,
        ) as program:
            port = listener.getsockname()[1]
            assert wait_until(lambda: serves(port), ENDS_WITHIN), program.errors
            yield program, port, beside


def long_checkouts(receiver: HttpReceiver) -> list[Span]:
    return [span for span in receiver.spans if span.attributes.get("otel_pgpool.long_hold")]


def line_of(text: str) -> int:
    source = PROGRAM.read_text().splitlines()
    return 1 + next(number for number, line in enumerate(source) if text in line)


def test_exhausted(receiver: HttpReceiver, dsn: str) -> None:
    """Each client who is turned away leaves a failed checkout, whose wait links to the checkouts of the holders.

    The records of the timeouts and of the long holds name the tasks, the backends, and the program's lines.
    """
    with (
        api(dsn, "stock_api", receiver, OTEL_PGPOOL_LONG_HOLD="0.4") as (program, port, beside),
        ThreadPoolExecutor(8) as clients,
    ):
        with locked(beside, "stock"):
            holders = [clients.submit(ask, port, f"/orders/{item}") for item in (1, 2)]
            held_up = until_held_up(beside, 2)
            refused = [clients.submit(ask, port, f"/orders/{item}") for item in (3, 4, 5)]
            answers = [each.result() for each in refused]
            receiver.wait_for(lambda r: last(r, COUNT, "used") == 2)
        served = [each.result() for each in holders]
        assert ask(port, "/stock", "GET")[1].split() == ["999"] * 2 + ["1000"] * 8
        program.end(signal.SIGINT)
    assert {body["backend"] for status, body in served if status == 200} == held_up
    assert [(status, body["error"].split(",")[0]) for status, body in answers] == [(503, LIMIT)] * 3

    checkouts = [span for span in receiver.spans if span.name == "pool.checkout"]
    failed = [span for span in checkouts if span.attributes["otel_pgpool.outcome"] == "timeout"]
    holding = {
        span.span_id
        for span in checkouts
        if span.attributes.get("otel_pgpool.long_hold") and span.attributes["otel_pgpool.connection.pid"] in held_up
    }
    assert (len(failed), len(holding)) == (3, 2)
    waits = {span.parent_span_id: span for span in receiver.spans if span.name == "pool.wait"}
    for span in failed:
        assert span.attributes["otel_pgpool.task.name"].startswith("Task-")
        assert (span.status, span.status_description.split(",")[0]) == ("ERROR", LIMIT)
        assert {link.span_id for link in waits[span.span_id].links} == holding
    taking = f"{PROGRAM}:{line_of('pg_backend_pid')} order"
    for record in logs(receiver, "timeout"):
        texts = record.attributes["otel_pgpool.holders"]
        assert len(texts) == 2
        assert all("by task 'Task-" in text and f" at {taking} " in text for text in texts)
    long_holds = logs(receiver, "long_hold")
    assert {record.attributes["otel_pgpool.connection.pid"] for record in long_holds} == held_up
    for record in long_holds:
        assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0] == taking
        assert record.attributes["otel_pgpool.transaction.status"] == "active"
        stack = record.attributes["code.stacktrace"].splitlines()
        assert stack[0].endswith("in order")
        assert f'File "{PROGRAM}", line {line_of("update stock")}, in take' in stack


def test_client_that_goes_away(receiver: HttpReceiver, dsn: str) -> None:
    """While a stream waits for the database its connection is held under the program's line; then it is discarded."""
    with api(dsn, "stock_stream", receiver, OTEL_PGPOOL_LONG_HOLD="0.2") as (program, port, beside):
        with locked(beside, "stock"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /stock HTTP/1.1\r\nHost: here\r\n\r\n")
                (pid,) = until_held_up(beside, 1)
                receiver.wait_for(lambda r: logs(r, "long_hold"))
            receiver.wait_for(long_checkouts)
        assert serves(port)
        program.end(signal.SIGINT)
    record = logs(receiver, "long_hold")[0]
    assert record.attributes["otel_pgpool.connection.pid"] == pid
    line = line_of("engine.connect()")
    place = record.attributes["otel_pgpool.checked_out_at"].splitlines()[0]
    assert place == f"{PROGRAM}:{line} {shown_name('stock.<locals>.pieces')}"
    (held,) = long_checkouts(receiver)
    assert (held.attributes["otel_pgpool.outcome"], held.attributes["otel_pgpool.connection.pid"]) == ("discarded", pid)
