"""The garbage collector as a borrower: it closes generators, and so returns connections, at any moment."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace

from otel_pgpool.runtime.gc_state import is_collecting_here
from tests.support.database import ask
from tests.support.internals import core_of
from tests.support.pools import Recorder, make, pid_of_a_checkout
from tests.support.telemetry import Signals
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool import ConnectionPool


class Knot:
    """Something that only the collector can free."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept
        self.itself = self


@contextmanager
def no_collection_but_ours() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def rows_in_a_transaction(pool: ConnectionPool) -> Iterator[int]:
    with pool.connection() as conn:
        yield ask(conn, "select 1")


def rows_without_one(pool: ConnectionPool) -> Iterator[int]:
    with pool.connection():
        yield 1


def rows_by_hand(pool: ConnectionPool) -> Iterator[int]:
    conn = pool.getconn()
    try:
        yield ask(conn, "select 1")
    finally:
        pool.putconn(conn)


def abandon(generator: Iterator[int]) -> None:
    """Begin it, and leave it to the collector."""
    Knot(generator=generator, first=next(generator))


@pytest.mark.parametrize("rows", [rows_in_a_transaction, rows_without_one, rows_by_hand])
def test_an_abandoned_generator_gives_its_connection_back_once(
    dsn: str, rows: Callable[[ConnectionPool], Iterator[int]]
) -> None:
    """It is neither reclaimed as well nor lost: the same connection serves on, and is watched as before."""
    recorder = Recorder()
    with make(1, 1, dsn, timeout=PATIENCE, observer=recorder) as pool, no_collection_but_ours():
        pid = pid_of_a_checkout(pool)
        for _ in range(3):
            abandon(rows(pool))
            gc.collect()
            assert wait_until(lambda: pool.stats().used == 0)
            assert pool.stats().idle == 1
            assert pid_of_a_checkout(pool) == pid
        assert recorder.calls("reclaimed") == []
        conn = pool.getconn()
        assert ask(conn, "select 1") == 1
        del conn  # dropped: the slot still notices
        assert wait_until(lambda: len(recorder.calls("reclaimed")) == 1)
        assert pid_of_a_checkout(pool) != pid


def test_what_the_collector_returns_under_the_lock_blocks_nobody(dsn: str) -> None:
    """A rollback takes its time elsewhere: the lock is not held over it."""
    settlers: list[threading.Thread] = []

    def reset(_conn: object) -> None:
        settlers.append(threading.current_thread())

    with make(2, 2, dsn, timeout=PATIENCE, reset=reset) as pool, no_collection_but_ours():
        abandon(rows_in_a_transaction(pool))
        with core_of(pool).lock:
            gc.collect()
        assert wait_until(lambda: pool.stats().used == 0)
        assert pool.stats().idle == 2
        assert [thread.name for thread in settlers] == ["otel_pgpool-maintenance"], "it was settled inside the lock"


def test_the_collector_leaves_the_current_span_alone(dsn: str) -> None:
    """A generator's block was current when it was left; what is current now belongs to somebody else."""
    with Signals() as signals, signals.pool(1, 1, dsn) as pool, no_collection_but_ours():
        with signals.tracer.start_as_current_span("first"):
            abandon(rows_in_a_transaction(pool))
        with signals.tracer.start_as_current_span("second") as second:
            gc.collect()
            assert trace.get_current_span() is second
            assert wait_until(lambda: pool.stats().used == 0)
            assert trace.get_current_span() is second


def test_a_finalizer_may_close_a_pool(dsn: str) -> None:
    """A program's own ``__del__`` is run by the collector, inside the registry's lock too."""

    class Client:
        def __init__(self) -> None:
            self.pool = make(0, 1, dsn, name="client")
            self.itself = self

        def __del__(self) -> None:
            self.pool.closeall()

    from otel_pgpool.pool import registry

    def collect_inside() -> None:
        with registry._lock:
            gc.collect()

    with no_collection_but_ours():
        Client()
        in_thread(collect_inside).result(PATIENCE)


def test_a_collection_is_noticed_in_its_own_thread_only() -> None:
    """While the collector runs finalizers here, another thread knows nothing of it, and afterwards nobody does."""
    seen: list[tuple[bool, bool]] = []

    class Witness:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            seen.append((is_collecting_here(), in_thread(is_collecting_here).result(PATIENCE)))

    with no_collection_but_ours():
        Witness()
        gc.collect()
    assert seen == [(True, False)]
    assert not is_collecting_here()
    assert threading.current_thread() is threading.main_thread()
