"""Pools of psycopg_pool for asyncio: waits are awaited, and the holder of a connection is a task."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from greenlet import greenlet
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
from tests.support.call_sites import shown_name
from tests.support.database import kill
from tests.support.instrumentation import denied, instrumented, lent, name_of, quietly, tracker_of
from tests.support.psycopg_pools import RELEASE, assert_same_totals, opened
from tests.support.telemetry import PATIENCE, assert_exactly, is_child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from psycopg2.extensions import connection

    from tests.support.telemetry import Signals

Pool = Any

pytestmark = pytest.mark.usefixtures("instrumentation")

CLASSES = (AsyncConnectionPool, AsyncNullConnectionPool)


@asynccontextmanager
async def open_pool(cls: type[Pool], conninfo: str, size: int = 1, **options: Any) -> AsyncIterator[Pool]:
    keeps = not issubclass(cls, AsyncNullConnectionPool)
    settings = {"min_size": size if keeps else 0, "max_size": size, "timeout": PATIENCE, "open": False, **options}
    async with cls(conninfo, **settings) as pool:
        if keeps:
            await pool.wait(PATIENCE)
        yield pool


async def true(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true, while the other tasks run."""
    async with asyncio.timeout(PATIENCE) if hasattr(asyncio, "timeout") else _no_limit():
        while not condition():  # noqa: ASYNC110 - no event of asyncio stands for it
            await asyncio.sleep(0.001)


@asynccontextmanager
async def _no_limit() -> AsyncIterator[None]:
    yield


async def no_connects(pool: Pool) -> None:
    await true(lambda: not tracker_of(pool).connects.connecting and not tracker_of(pool).connects.pending)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@pytest.mark.parametrize("cls", CLASSES)
def test_checkout(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """A checkout is one span with the name of its task, under the caller's span."""

    async def test() -> None:
        async with open_pool(cls, dsn) as pool:
            asyncio.current_task().set_name("handler")  # type: ignore[union-attr]
            with signals.tracer.start_as_current_span("order") as order:
                async with pool.connection() as conn:
                    await conn.execute("select 1")
                    (checkout,) = tracker_of(pool).all_held()
                    assert checkout.where.startswith(f"{__file__}:")
            path = "idle" if cls is AsyncConnectionPool else "new"
            expected = lent(dsn, path=path, **{"task.name": "handler"})
            assert_exactly(signals.checkout().attributes, expected)
            assert is_child(signals.checkout(), order)
            await no_connects(pool)
            assert_same_totals(pool)

    in_loop(test)


@pytest.mark.parametrize("spans", ["always", "off"])
def test_pool_whose_attributes_raise(dsn: str, spans: str) -> None:
    """A pool whose class raises another error for an attribute that it does not have works as without telemetry."""

    class Configured(AsyncConnectionPool[Any]):
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name) if name == "_otel_pgpool" else AttributeError(name)

        def __setattr__(self, name: str, value: object) -> None:
            if name == "_otel_pgpool":
                raise TypeError(name)
            super().__setattr__(name, value)

    PgPoolInstrumentor().uninstrument()

    async def test() -> None:
        async with open_pool(Configured, dsn) as pool:
            get, put = pool.getconn, pool.putconn
            await put(await get())
            instrumentation.uninstrument()  # the application has kept the wrapped methods
            await put(await get())

    instrumentation = PgPoolInstrumentor()
    with instrumented(spans=spans):
        in_loop(test)


def test_same_kind_of_functions(dsn: str) -> None:
    """``getconn`` counts as a coroutine function, as the original does."""
    assert asyncio.iscoroutinefunction(AsyncConnectionPool.getconn)
    assert inspect.iscoroutinefunction(AsyncConnectionPool.putconn)
    assert AsyncConnectionPool.getconn.__name__ == "getconn"


def test_wait_links_to_the_holder(signals: Signals, dsn: str) -> None:
    """A waiting task does not block the loop, and its wait links to the hold of the other task."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            held = await pool.getconn()
            waiter = asyncio.create_task(pool.getconn())
            await true(lambda: tracker_of(pool).stats().waiting)
            await pool.putconn(held)
            assert await waiter is held
            await pool.putconn(held)
            assert_same_totals(pool)
        (link,) = signals.one("pool.wait").links
        holder, queued = signals.named("pool.checkout")
        assert link.context == holder.context
        assert (queued.attributes or {})["otel_pgpool.path"] == "queued"

    in_loop(test)


def test_connections_opened_for_waiters(signals: Signals, dsn: str) -> None:
    """Each waiter that receives what a worker has opened took a new connection, whose connect is in its trace."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, 1, max_size=4) as pool:
            conns = await asyncio.gather(*(pool.getconn() for _ in range(4)))
            for conn in conns:
                await pool.putconn(conn)
            stats = tracker_of(pool).stats()
            assert (stats.checkouts["new"], stats.checkouts["queued"]) == (3, 0)
            in_traces = [span for span in signals.named("pool.connect") if span.parent]
            assert len(in_traces) == 3
            assert_same_totals(pool)

    in_loop(test)


def test_null_pool_connects_in_the_caller(signals: Signals, dsn: str) -> None:
    """Tasks that connect at the same time each have their own connect."""

    async def test() -> None:
        async with open_pool(AsyncNullConnectionPool, dsn, 3) as pool:
            conns = await asyncio.gather(*(pool.getconn() for _ in range(3)))
            for conn in conns:
                await pool.putconn(conn)
            assert tracker_of(pool).stats().checkouts["new"] == 3
            parents = {span.parent.span_id for span in signals.named("pool.connect") if span.parent}
            assert parents == {span.context.span_id for span in signals.named("pool.checkout") if span.context}
            assert tracker_of(pool).discards == {"idle": 3}
            assert_same_totals(pool)

    in_loop(test)


def test_refusals(signals: Signals, dsn: str) -> None:
    """A timeout, a full queue and a closed pool raise the pool's own errors."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, max_waiting=1) as pool:
            held = await pool.getconn()
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.01)
            pool._waiting.clear()  # the pool leaves a caller that timed out in its queue
            waiter = asyncio.create_task(pool.getconn())
            await true(lambda: tracker_of(pool).stats().waiting)
            with pytest.raises(TooManyRequests):
                await pool.getconn()
            assert_same_totals(pool)
            await pool.close()
            with pytest.raises(PoolClosed):
                await waiter
            await pool.putconn(held)
        timeout, full, closed, _ = signals.named("pool.checkout")
        name = asyncio.current_task().get_name()  # type: ignore[union-attr]
        expected = denied(dsn, "timeout", "timeout", "queued") | {"otel_pgpool.task.name": name}
        assert_exactly(timeout.attributes, expected)
        assert (full.attributes or {})["error.type"] == "too_many_requests"
        assert (closed.attributes or {})["error.type"] == "closed"
        assert tracker_of(pool).discards == {"closed": 1}

    in_loop(test)


def test_cancelled_waiter(signals: Signals, dsn: str) -> None:
    """A task that is cancelled while it waits ends its checkout; the pool stays whole."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            held = await pool.getconn()
            waiter = asyncio.create_task(pool.getconn())
            await true(lambda: tracker_of(pool).stats().waiting)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            attributes = signals.checkout().attributes or {}
            assert (attributes["otel_pgpool.outcome"], attributes["error.type"]) == ("error", "CancelledError")
            assert tracker_of(pool).stats().waiting == 0
            await pool.putconn(held)
            async with pool.connection():
                pass

    in_loop(test)


def test_interrupt_before_the_wait(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between the pool's queue and its own wait costs no connection: the next task receives it."""

    def interrupted(*_args: Any) -> None:
        raise InterruptedError

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            held = await pool.getconn()
            with monkeypatch.context() as patch:
                patch.setattr(PoolCalls, "enqueued", interrupted)
                with pytest.raises(InterruptedError):
                    await pool.getconn()
            await pool.putconn(held)
            async with pool.connection():
                pass

    in_loop(test)


def test_wait_for(signals: Signals, dsn: str) -> None:
    """The holder is the task that called, even if ``wait_for`` makes another one for the wait."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            conn = await asyncio.wait_for(pool.getconn(), PATIENCE)
            (checkout,) = tracker_of(pool).all_held()
            assert checkout.task is not None
            assert checkout.task.task is asyncio.current_task()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pool.getconn(), 0.01)
            await pool.putconn(conn)

    in_loop(test)


def test_many_tasks_of_which_a_third_is_cancelled(signals: Signals, dsn: str) -> None:
    """200 tasks share 5 connections, and a third is cancelled: all spans end, and all totals agree."""
    if RELEASE < (3, 3, 1):
        pytest.skip("may lose a cancellation during a hand-over, and some releases count none as an error")

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, 2, max_size=5) as pool:
            release = asyncio.Event()

            async def work() -> None:
                async with pool.connection() as conn:
                    await release.wait()
                    await conn.execute("select 1")

            tasks = [asyncio.create_task(work()) for _ in range(200)]
            await true(lambda: tracker_of(pool).stats().waiting == 195)
            for task in tasks[::3]:
                task.cancel()
            release.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(each, asyncio.CancelledError) for each in results) == 67
            assert all(each is None or isinstance(each, asyncio.CancelledError) for each in results)
            await no_connects(pool)
            assert_same_totals(pool)
            stats = tracker_of(pool).stats()
            assert (stats.used, stats.waiting, stats.idle) == (0, 0, pool.get_stats()["pool_size"])
            conns = await asyncio.gather(*(pool.getconn() for _ in range(5)))
            assert len({conn.info.backend_pid for conn in conns}) == 5
            for conn in conns:
                await pool.putconn(conn)
        assert signals.live() == []
        assert signals.live("pool.wait") == []
        assert len(signals.named("pool.checkout")) == 205

    in_loop(test)


def test_abandoned_generator(signals: Signals, dsn: str) -> None:
    """The connection of an asynchronous generator that is not finished is reported as held, with its line."""
    PgPoolInstrumentor().uninstrument()

    async def test() -> None:
        with instrumented(signals, long_hold=0.01):
            async with open_pool(AsyncConnectionPool, dsn) as pool:

                async def rows() -> AsyncIterator[int]:
                    async with pool.connection() as conn:
                        await conn.execute("select 1")
                        yield 1
                        yield 2

                kept = rows()
                await anext(kept)
                await true(lambda: signals.logged("long_hold"))
                (record,) = signals.logged("long_hold")
                name = shown_name(rows.__qualname__)
                assert f" {name}; " in record.record.getMessage()
                assert tracker_of(pool).stats().used == 1
                await kept.aclose()

    in_loop(test)


def test_failed_check(signals: Signals, dsn: str, admin: connection) -> None:
    """A dead connection that the check finds is discarded, and the caller gets another one after a retry."""

    async def check(conn: Any) -> None:
        await conn.execute("select 1")
        await conn.rollback()

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, 2, check=check) as pool:
            kill(admin, [pool._pool[0].info.backend_pid])
            async with pool.connection():
                pass
            assert (signals.checkout().attributes or {})["otel_pgpool.retries"] == 1
            assert tracker_of(pool).discards == {"check_failed": 1}
            await no_connects(pool)
            assert_same_totals(pool)

    in_loop(test)


@pytest.mark.skipif(RELEASE < (3, 3), reason="psycopg_pool 3.2 goes on after a check that is cancelled")
def test_cancelled_check(signals: Signals, dsn: str) -> None:
    """A check that is cancelled is no retry: the pool does not try again."""
    checking = asyncio.Event()

    async def check(conn: Any) -> None:
        checking.set()
        await asyncio.sleep(PATIENCE)

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, check=check) as pool:
            await no_connects(pool)
            caller = asyncio.create_task(pool.getconn())
            await checking.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert tracker_of(pool).stats().retries == 0
            assert not [event for event in signals.checkout().events if event.name == "pool.retry"]

    in_loop(test)


def test_cancelled_as_a_connection_arrives(signals: Signals, dsn: str) -> None:
    """The connect for a waiter that is cancelled in that step belongs to its checkout, and to no later one."""
    waiters: list[asyncio.Task[Any]] = []

    async def configure(conn: Any) -> None:
        for waiter in waiters:
            asyncio.get_running_loop().call_soon(waiter.cancel)

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn, 1, min_size=0, configure=configure) as pool:
            waiters.append(asyncio.create_task(pool.getconn()))
            result = (await asyncio.gather(*waiters, return_exceptions=True))[0]
            waiters.clear()
            if not isinstance(result, asyncio.CancelledError):  # it depends on the release of Python
                await pool.putconn(result)
            await true(lambda: pool.get_stats()["pool_available"])
            for _ in range(2):
                async with pool.connection():
                    pass
            await no_connects(pool)
            (connect,), (first, *later) = signals.named("pool.connect"), signals.named("pool.checkout")
            assert is_child(connect, first)
            assert [(span.attributes or {})["otel_pgpool.path"] for span in later] == ["idle", "idle"]

    in_loop(test)


def test_discards(signals: Signals, dsn: str) -> None:
    """Closed, drained, reset in a worker, swept: the reasons are those of pools without asyncio."""
    fails = False

    async def reset(conn: Any) -> None:
        if fails:
            raise ValueError

    async def test() -> None:
        nonlocal fails
        async with open_pool(AsyncConnectionPool, dsn, 1, reset=reset) as pool:
            tracker = tracker_of(pool)
            conn = await pool.getconn()
            await conn.close()
            await pool.putconn(conn)
            await true(lambda: tracker.discards == {"returned_closed": 1})
            conn = await pool.getconn()
            fails = True
            await pool.putconn(conn)
            await true(lambda: tracker.discards == {"returned_closed": 1, "reset_failed": 1})
            fails = False
            await no_connects(pool)
            await true(lambda: pool._pool)
        assert tracker.discards == {"returned_closed": 1, "reset_failed": 1, "closed": 1}

    in_loop(test)


def test_blocking_pool_beside(signals: Signals, dsn: str) -> None:
    """Pools with and without asyncio live side by side, also one inside the callback of the other."""

    async def test() -> None:
        with opened(ConnectionPool, dsn, 1, name="blocking") as blocking:

            async def check(conn: Any) -> None:
                with blocking.connection():
                    pass

            async with open_pool(AsyncConnectionPool, dsn, 1, check=check) as pool:
                async with pool.connection():
                    pass
                assert_same_totals(pool)
            assert_same_totals(blocking)
        assert len(signals.named("pool.checkout")) == 2

    in_loop(test)


def test_coroutine_that_is_not_awaited(signals: Signals, dsn: str) -> None:
    """A call that is never awaited is no checkout."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            pool.getconn().close()
            assert tracker_of(pool).stats().waiting == 0
        assert signals.named("pool.checkout") == []

    in_loop(test)


def test_pool_that_is_not_open_yet(signals: Signals, dsn: str) -> None:
    """Spans and series begin when the pool is opened."""

    async def test() -> None:
        pool = AsyncConnectionPool(dsn, min_size=1, open=False)
        with pytest.raises(PoolClosed, match="not open yet"):
            await pool.getconn()
        assert "_otel_pgpool" not in vars(pool)
        assert not signals.named("pool.checkout")
        assert not signals.metrics()
        await pool.open(wait=True)
        async with pool.connection():
            assert signals.value("db.client.connection.count", "used", pool_name=name_of(dsn)) == 1
        await pool.close()

    in_loop(test)


def test_loop_that_ends_during_a_wait(signals: Signals, dsn: str) -> None:
    """A wait that ends with its loop ends its span."""

    async def test() -> None:
        pool = AsyncConnectionPool(dsn, min_size=1, open=False)
        await pool.open(wait=True)
        await pool.getconn()
        asyncio.create_task(pool.getconn())  # noqa: RUF006 - cancelled by the end of the loop
        await true(lambda: tracker_of(pool).stats().waiting)

    in_loop(test)
    (waited,) = [span for span in signals.named("pool.checkout") if span.attributes["otel_pgpool.path"] == "queued"]
    assert waited.attributes["error.type"] == "CancelledError"


# Without records


def test_quiet(dsn: str) -> None:
    """Without spans and metrics, totals, holders with their tasks, waits, failures and discards are still known."""
    PgPoolInstrumentor().uninstrument()

    async def get(pool: Pool) -> Any:
        return await pool.getconn()

    async def test() -> None:
        asyncio.current_task().set_name("handler")  # type: ignore[union-attr]
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            tracker = tracker_of(pool)
            async with pool.connection() as conn:
                assert len(tracker.light) == 1
                assert tracker.stats().used == 1
                (holder,) = tracker.all_held()
                assert str(holder.task) == "handler"
                assert holder.where.endswith(f" {shown_name(test.__qualname__)}")
                assert holder.thread is threading.current_thread()
                with pytest.raises(PoolTimeout):
                    await pool.getconn(timeout=0.01)
                waiter = asyncio.create_task(get(pool), name="waiter")
                await true(lambda: tracker.stats().waiting)
                (waiting,) = tracker.waiting
                assert str(waiting.task) == "waiter"
                assert waiting.where.endswith(f" {shown_name(get.__qualname__)}")
                cancelled = asyncio.create_task(get(pool))
                await true(lambda: tracker.stats().waiting == 2)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
            assert await waiter is conn
            await pool.putconn(conn)
            conn = await asyncio.wait_for(pool.getconn(), PATIENCE)
            (held,) = tracker.all_held()
            assert str(held.task) == "handler"
            with pytest.raises(ValueError, match="can't return"):
                await pool.putconn(object())
            await conn.close()
            await pool.putconn(conn)
            assert tracker.discards == {"returned_closed": 1}
            await true(lambda: tracker.stats().idle)
            stats = tracker.stats()
            assert stats.checkouts == {"idle": 2, "queued": 1, "new": 0}
            assert (stats.timeouts, stats.errors, stats.queued) == (1, 1, 3)
            assert (tracker.light, tracker.held, tracker.waiting) == ({}, {}, {})
            assert not tracker.adapter._async_calls.light_waits  # type: ignore[attr-defined]
            await no_connects(pool)

    with quietly():
        in_loop(test)


def test_long_hold_without_records(signals: Signals, dsn: str) -> None:
    """The record of a long hold names the task and its line."""
    PgPoolInstrumentor().uninstrument()

    async def test() -> None:
        asyncio.current_task().set_name("handler")  # type: ignore[union-attr]
        async with open_pool(AsyncConnectionPool, dsn) as pool, pool.connection():
            await true(lambda: signals.logged("long_hold"))

    with instrumented(spans="off", long_hold=0.01):
        in_loop(test)
    (record,) = signals.logged("long_hold")
    assert record.attributes["otel_pgpool.task.name"] == "handler"
    assert "by task 'handler'" in record.record.getMessage()
    assert record.attributes["code.function.name"] == shown_name(test.__qualname__)


def test_no_caller(dsn: str) -> None:
    """A greenlet whose first function is getconn has no caller: its coroutine is the pool's."""

    async def test() -> None:
        async with open_pool(AsyncConnectionPool, dsn) as pool:
            conn = await greenlet(pool.getconn).switch()
            await pool.putconn(conn)

    in_loop(test)
