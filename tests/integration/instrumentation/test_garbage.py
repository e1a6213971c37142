"""Instrumented pools and the garbage collector, which closes generators, and so ends checkouts, at any moment."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from opentelemetry.sdk.trace import SpanProcessor
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import open_checkouts
from tests.support.instrumentation import instrumented, tracker_of
from tests.support.psycopg_pools import opened, settled
from tests.support.telemetry import until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from tests.support.telemetry import Signals

Pool = Any

pytestmark = pytest.mark.usefixtures("instrumentation")


class Knot:
    """An object that only the garbage collector can free."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept
        self.itself = self


class LockingExporter(SpanProcessor):
    """A processor of spans that takes a plain lock, as exporters do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        with self.lock:
            pass


@pytest.fixture(autouse=True)
def no_collection_but_ours() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def exporter(signals: Signals) -> LockingExporter:
    exporter = LockingExporter()
    signals.tracer_provider.add_span_processor(exporter)
    return exporter


def collect_under(lock: threading.Lock) -> None:
    """Collect garbage in a thread that holds a lock."""

    def collect() -> None:
        with lock:
            gc.collect()

    in_thread(collect).result(PATIENCE)


@contextmanager
def modes(signals: Signals, spans: str) -> Iterator[None]:
    PgPoolInstrumentor().uninstrument()
    with instrumented(signals, spans=spans):
        yield


def block(pool: Pool) -> Iterator[Any]:
    with pool.connection() as conn:
        yield conn


def by_hand(pool: Pool) -> Iterator[Any]:
    conn = pool.getconn()
    try:
        yield conn
    finally:
        pool.putconn(conn)


def abandon(rows: Iterator[Any]) -> None:
    """Begin to read rows, and leave the generator to the garbage collector."""
    next(rows)
    Knot(rows)


async def released(tracker: PoolTracker) -> None:
    """Wait until no connection of a pool is held."""
    while tracker.all_held():  # noqa: ASYNC110 - no event of asyncio stands for it
        await asyncio.sleep(0.001)


# The connection comes back


@pytest.mark.parametrize("rows", [block, by_hand])
@pytest.mark.parametrize("spans", ["always", "off"])
def test_abandoned_generator(signals: Signals, dsn: str, spans: str, rows: Callable[[Pool], Iterator[Any]]) -> None:
    """A connection that the garbage collector releases is no lost one: levels, totals and reports are the pool's."""
    with modes(signals, spans), opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        for _ in range(3):
            abandon(rows(pool))
            gc.collect()
            assert until(lambda: not tracker_of(pool).all_held())
        tracker = tracker_of(pool)
        tracker.watch.run_deferred()
        stats = tracker.stats()
        assert (stats.used, stats.idle, stats.discarded) == (0, 2, {})
        assert not tracker.cleared
        with pool.connection(), pool.connection():
            assert tracker.stats().used == 2
        assert tracker.stats().created == 2
        if spans == "always":
            assert until(lambda: len(signals.named("pool.checkout")) == 5)
            outcomes = {(span.attributes or {})["otel_pgpool.outcome"] for span in signals.named("pool.checkout")}
            assert outcomes == {"released"}


def test_abandoned_asynchronous_generator(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a generator is closed later, by its loop; until then its connection is held."""
    monkeypatch.setattr(open_checkouts, "RELEASE_WITHIN", 0.0)

    async def test() -> None:
        async with AsyncConnectionPool(dsn, min_size=2, max_size=2, open=False) as pool:
            await pool.wait(PATIENCE)
            tracker = tracker_of(pool)

            async def rows() -> AsyncIterator[int]:
                conn = await pool.getconn()
                try:
                    yield 1
                finally:
                    await pool.putconn(conn)

            async def begin() -> None:
                reader = rows()
                await anext(reader)
                Knot(reader)

            await begin()
            gc.collect()  # the loop closes the generator once this task waits
            for _ in range(2):  # the connection is found, in whatever way it went
                tracker.report_due(time.monotonic())
                assert tracker.stats().used == 1
            await asyncio.wait_for(released(tracker), PATIENCE)
            stats = tracker.stats()
            assert (stats.used, stats.idle, stats.discarded) == (0, 2, {})

    asyncio.run(test())
    assert not signals.logged("reclaimed")


# The connection is lost


@pytest.mark.parametrize("spans", ["always", "off"])
def test_lost_in_a_cycle(signals: Signals, dsn: str, spans: str) -> None:
    """A connection that nobody releases is reported as reclaimed, whoever has freed it."""
    with modes(signals, spans), opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        Knot(pool.getconn())
        assert tracker_of(pool).stats().used == 1
        gc.collect()
        assert tracker_of(pool).stats().used == 1
        assert until(lambda: signals.logged("reclaimed"))
        pool.getconn()  # and dropped
        assert until(lambda: tracker_of(pool).discards == {"reclaimed": 2})
        stats = tracker_of(pool).stats()
        assert (stats.used, stats.idle) == (2, 0)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)


# The lock of an exporter


@pytest.mark.parametrize("cls", [ConnectionPool, ThreadedConnectionPool])
def test_release_under_the_lock_of_an_exporter(
    signals: Signals, exporter: LockingExporter, dsn: str, cls: type[Pool]
) -> None:
    """A release within the garbage collector does not wait for the exporter, in whose code the collector may run."""
    kept = []

    def rows(pool: Pool) -> Iterator[Any]:
        conn = pool.getconn()
        kept.append(conn)
        try:
            yield conn
        finally:
            pool.putconn(conn)

    pool = cls(1, 1, dsn) if cls is ThreadedConnectionPool else cls(dsn, min_size=1, max_size=1, open=True)
    abandon(rows(pool))
    collect_under(exporter.lock)
    assert until(lambda: signals.named("pool.checkout"))
    (span,) = signals.named("pool.checkout")
    assert (span.attributes or {})["otel_pgpool.outcome"] == "released"
    assert tracker_of(pool).stats().used == 0
    pool.closeall() if cls is ThreadedConnectionPool else pool.close()


def test_whole_checkout_under_the_lock_of_an_exporter(signals: Signals, exporter: LockingExporter, dsn: str) -> None:
    """A checkout that begins within the garbage collector is counted, and leaves no span."""
    with opened(ConnectionPool, dsn, 1) as pool:
        settled(pool)

        class Finalized:
            def __del__(self) -> None:
                with pool.connection():
                    pass

        Knot(Finalized())
        collect_under(exporter.lock)
        assert tracker_of(pool).stats().checkouts["idle"] == 1
        with exporter.lock:
            assert not tracker_of(pool).all_held()
        assert not signals.named("pool.checkout")


def test_abandoned_acquire(signals: Signals, exporter: LockingExporter, dsn: str) -> None:
    """A coroutine that waits for a connection, and is collected, is a failed checkout, reported later."""

    async def test() -> None:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
            await pool.wait(PATIENCE)
            async with pool.connection():
                waiting = pool.getconn()
                waiting.send(None)
                Knot(waiting)
                del waiting
                with exporter.lock:
                    gc.collect()

    asyncio.run(test())
    assert until(lambda: len(signals.named("pool.checkout")) == 2)
    outcomes = {(span.attributes or {})["otel_pgpool.outcome"] for span in signals.named("pool.checkout")}
    assert outcomes == {"released", "error"}


def test_connection_of_asyncpg_in_a_cycle(signals: Signals, exporter: LockingExporter, dsn: str) -> None:
    """A connection of asyncpg that is closed within the garbage collector is reported later."""

    async def test() -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            con = await pool.acquire()

            class Finalized:
                def __init__(self, con: Any) -> None:
                    self.terminate = con.terminate

                def __del__(self) -> None:
                    self.terminate()

            Knot(Finalized(con))
            with exporter.lock:
                gc.collect()
            await pool.release(con)

    asyncio.run(test())
    assert until(lambda: signals.named("pool.checkout"))
