"""What every test shares: PostgreSQL servers, their version in the header, and a watch on threads left behind."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.instrumentation import dependencies

from otel_pgpool.demo.postgres import find_binaries
from tests.support.emitted_session import (  # noqa: F401 - hooks of pytest
    pytest_sessionfinish,
    pytest_sessionstart,
    pytest_terminal_summary,
)
from tests.support.processes import find_version
from tests.support.servers import ClonedServer
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer

THREAD_PREFIX = "otel_pgpool"
THREADS_END_WITHIN = 20.0  # seconds
PASSWORD_IN_DSN = re.compile(r"(://\w*:|password=)[\w-]{32}\b")
"""As `PostgresServer` makes them."""


def pytest_configure() -> None:
    """Prepare for the programs that tests start.

    A shell starts its background jobs with Ctrl-C ignored, and so would every program be. Where no bytecode is written,
    each program would compile all that it imports, and each worker of pytest-xdist all tests.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.addaudithook(_refuse_passwords_in_arguments)
    dependencies.version = cache(dependencies.version)  # a third of the time of `instrument()`


def _refuse_passwords_in_arguments(event: str, details: tuple[Any, ...]) -> None:
    """Fail a test that starts a program with a server's password among its arguments, where any user may read it."""
    if event == "subprocess.Popen":
        _, arguments, *_ = details
        assert not any(PASSWORD_IN_DSN.search(str(argument)) for argument in arguments), "a password in arguments"


def pytest_report_header() -> str:
    return f"PostgreSQL {find_version()} ({find_binaries()})"


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread of the pool behind."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREADS_END_WITHIN
    left = [thread for thread in threading.enumerate() if _is_ours(thread) and thread not in before]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    assert not names, f"threads left behind: {names}; close the pool"


def _is_ours(thread: threading.Thread) -> bool:
    """Return whether a thread is a pool's; the watchdog of I/O timeouts belongs to the process, and ends by itself."""
    return thread.name.startswith(THREAD_PREFIX) and thread.name != "otel_pgpool-deadlines"


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """Shared by all tests: never stop it."""
    with ClonedServer(settings={"max_connections": 200}) as server:
        yield server


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    return server.dsn


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """For one test alone, which may stop, restart or kill it."""
    with ClonedServer() as server:
        yield server


@pytest.fixture
def admin(dsn: str) -> Iterator[connection]:
    """Provide a connection outside the pool, in autocommit: for pg_terminate_backend and pg_stat_activity."""
    conn = psycopg2.connect(dsn, application_name="admin")
    conn.autocommit = True
    yield conn
    conn.close()


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Provide providers of OpenTelemetry that keep what they receive."""
    with Signals() as signals:
        yield signals


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the variables of libpq: only what a test says counts."""
    for variable in list(os.environ):
        if variable.startswith("PG"):
            monkeypatch.delenv(variable)


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Hide other tests' objects from the search for pools in the heap when the instrumentation begins."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
