"""The pool's own threads: what they do is done, though one cannot be started, or is ended from outside."""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import extensions, extras

from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.database import kill, lives
from tests.support.internals import thread_of
from tests.support.scripts import run_program
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

PATIENCE = 20.0
"""Seconds that a caller waits, of which none is needed."""
REFUSAL = "can't start new thread"


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No thread of the pool's can be started until the event is set."""
    lifted, start = threading.Event(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("otel_pgpool") and not lifted.is_set():
            raise RuntimeError(REFUSAL)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    yield lifted
    lifted.set()


def end(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an error in a thread that lives as long as its pool, wherever it is.

    A thread that may end meanwhile must not be given: a new thread may get its identity, and the error.
    """
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))


def test_a_caller_connects_itself(dsn: str, no_threads: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread can be started, also for `wait` and for several callers at once; the log says so, once."""
    with ConnectionPool(1, 3, dsn, name="alone", timeout=PATIENCE, open=False) as pool:
        pool.wait()
        conns = [pool.getconn() for _ in range(2)]
        with ThreadPoolExecutor(4) as callers:
            pids = [each.result(PATIENCE) for each in [callers.submit(backend, pool) for _ in range(8)]]
        for conn in conns:
            pool.putconn(conn)
        assert pool.stats().created == 3
        assert len(set(pids)) == 1
        assert caplog.text.count("pool alone: no thread can be started to connect") == 1


def backend(pool: ConnectionPool) -> int:
    with pool.connection() as conn:
        return conn.info.backend_pid


def test_a_dead_connection_is_replaced(dsn: str, admin: connection, no_threads: threading.Event) -> None:
    """By the caller that meets it."""
    with ConnectionPool(1, 1, dsn, timeout=PATIENCE) as pool:
        pid = backend(pool)
        kill(admin, [pid])
        assert wait_until(lambda: not lives(admin, pid))
        time.sleep(0.06)  # longer than a connection is lent again without a look
        assert backend(pool) != pid


def test_a_caller_that_connects_in_vain(no_threads: threading.Event) -> None:
    """It tries again until its timeout, and what the connect raised is the cause."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ConnectionPool(0, 1, host="127.0.0.1", port=port, timeout=0.8, open=False) as pool:
        with pytest.raises(PoolTimeout, match=f"port {port} failed: Connection refused") as caught:
            pool.getconn()
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert caught.value.retries > 1
        assert caught.value.waited < 5


def test_a_caller_that_meets_a_silent_server(no_threads: threading.Event) -> None:
    """Its connect takes no longer than the rest of its timeout, in libpq's whole seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with ConnectionPool(0, 1, host="127.0.0.1", port=port, timeout=0.5, open=False) as pool:
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn()
            assert caught.value.waited < 5  # of the 10 that a connect may take


def test_a_silent_server_under_a_wait_callback(no_threads: threading.Event) -> None:
    """The connect ends in time, though neither libpq nor another thread bounds it; the callback is restored."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        extensions.set_wait_callback(extras.wait_select)
        try:
            with ConnectionPool(0, 1, host="127.0.0.1", port=port, timeout=0.5, open=False) as pool:
                with pytest.raises(PoolTimeout) as caught:
                    pool.getconn()
                assert caught.value.waited < 5
            assert extensions.get_wait_callback() is extras.wait_select
        finally:
            extensions.set_wait_callback(None)


def test_a_caller_connects_under_a_wait_callback(dsn: str, no_threads: threading.Event) -> None:
    """Within its own bound; its connection waits by the program's callback."""
    extensions.set_wait_callback(extras.wait_select)
    try:
        with ConnectionPool(0, 1, dsn, timeout=PATIENCE, open=False) as pool:
            assert backend(pool) > 0
    finally:
        extensions.set_wait_callback(None)


AT_EXIT = """
import atexit, os, threading
from otel_pgpool import ConnectionPool

pool = ConnectionPool({minconn}, 2, os.environ["DATABASE_URL"], timeout=10)
pids = []

def save():
    def refuse(*_args, **_kwargs):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    for name in ("_start_new_thread", "_start_joinable_thread"):  # as Python 3.12 has it, on every version
        if hasattr(threading, name):
            setattr(threading, name, refuse)
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select 1")
        print("saved", flush=True)

atexit.register(save)
"""


@pytest.mark.parametrize("minconn", [0, 1])
def test_a_checkout_at_exit(dsn: str, minconn: int) -> None:
    """In an ``atexit`` callback it is served, with an idle connection and without."""
    program = AT_EXIT.format(minconn=minconn)
    done = run_program(dsn, program)
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # what ends it
def test_a_connector_that_is_ended(dsn: str) -> None:
    """By the program's own ``configure``, or from outside: another takes its place, and the waiter is served."""
    calls: list[connection] = []

    def exits(conn: connection) -> None:
        calls.append(conn)
        if len(calls) == 1:
            raise SystemExit

    with ConnectionPool(0, 1, dsn, timeout=PATIENCE, configure=exits) as pool, pool.connection():
        assert len(calls) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_the_maintenance_is_ended(dsn: str, error: type[BaseException]) -> None:
    """It goes on: what is dropped comes back."""
    with ConnectionPool(1, 1, dsn, timeout=PATIENCE) as pool:
        for _ in range(3):
            conn: Any = pool.getconn()
            end(thread_of(pool), error)
            del conn
            with pool.connection():
                assert pool.stats().used == 1
