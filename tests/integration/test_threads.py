"""The pool's own threads: what they do is done, though one cannot be started, or is ended from outside."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import ConnectionPool, PoolTimeout

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


def end(name: str, error: type[BaseException]) -> None:
    """Raise an error in each thread of that name, wherever it is."""
    for thread in threading.enumerate():
        if thread.name == name and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error))


def test_a_waiter_that_came_when_no_thread_could_start(dsn: str, no_threads: threading.Event) -> None:
    """It is served as soon as one can."""
    with ConnectionPool(0, 1, dsn, timeout=PATIENCE, open=False) as pool:
        lifting = threading.Timer(0.5, no_threads.set)
        lifting.start()
        with pool.connection() as conn:
            assert conn.closed == 0
        lifting.join()


def test_no_thread_can_start(dsn: str, no_threads: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """The timeout says so, is caused by it, and the log names the pool, once."""
    with ConnectionPool(1, 1, dsn, name="alone", timeout=0.8, open=False) as pool:
        for ask in (pool.wait, pool.getconn):
            with pytest.raises(PoolTimeout, match=REFUSAL) as caught:
                ask()
            assert isinstance(caught.value.__cause__, RuntimeError)
        assert caplog.text.count("pool alone: no thread can be started to connect") == 1
        no_threads.set()
        pool.wait(PATIENCE)


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
            end("otel_pgpool-maintenance", error)
            del conn
            with pool.connection():
                assert pool.stats().used == 1
