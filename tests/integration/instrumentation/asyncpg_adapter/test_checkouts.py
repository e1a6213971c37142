"""Checkouts from asyncpg's pools: spans, waits, failures, and what the application sees of all this."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from asyncpg.exceptions import InterfaceError
from asyncpg.pool import Pool, PoolAcquireContext, PoolConnectionProxy

from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.asyncpg_pools import TIMEOUTS, backend, run, tracker_of, until, until_waiting
from tests.support.call_sites import shown_name
from tests.support.instrumentation import lent, name_of
from tests.support.telemetry import assert_exactly, waited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.telemetry import Signals

pytestmark = pytest.mark.usefixtures("instrumentation")


# The ways to acquire


async def by_block(pool: Any) -> Any:
    async with pool.acquire() as conn:
        return await conn.fetchval("select pg_backend_pid()")


async def by_block_with_timeout(pool: Any) -> Any:
    async with pool.acquire(timeout=5) as conn:
        return await conn.fetchval("select pg_backend_pid()")


async def by_await(pool: Any) -> Any:
    conn = await pool.acquire()
    try:
        return await conn.fetchval("select pg_backend_pid()")
    finally:
        await pool.release(conn)


async def by_wait_for(pool: Any) -> Any:
    conn = await asyncio.wait_for(pool.acquire(), 5)
    pid = await conn.fetchval("select pg_backend_pid()")
    await asyncio.wait_for(pool.release(conn), 5)
    return pid


async def by_pool(pool: Any) -> Any:
    return await pool.fetchval("select pg_backend_pid()")


WAYS = [by_block, by_block_with_timeout, by_await, by_wait_for, by_pool]


@pytest.mark.parametrize("way", WAYS)
def test_a_checkout(
    signals: Signals, dsn: str, create: Callable[..., Any], way: Callable[[Any], Awaitable[Any]]
) -> None:
    """Each way to acquire is one span, with the backend, the task, the loop's thread and the line of the program."""
    places: list[str] = []
    released = PoolTracker.released

    def note(self: PoolTracker, checkout: Any, *args: Any) -> None:
        places.append(checkout.where)
        released(self, checkout, *args)

    async def main() -> Any:
        async with create(min_size=1) as pool:
            return await way(pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolTracker, "released", note)
        pid = run(main())
    (place,) = places
    expected = lent(dsn) | {
        "thread.name": "MainThread",
        "otel_pgpool.task.name": "order-7",
        "otel_pgpool.connection.pid": pid,
    }
    assert_exactly(signals.checkout().attributes, expected)
    assert place.endswith(f" {way.__name__}")


def test_objects_are_asyncpgs_own(create: Callable[..., Any]) -> None:
    """The pool, the context and the connection are of the classes that they have without the instrumentation."""

    async def main() -> None:
        pool = create()
        assert type(pool) is Pool
        assert await pool is pool
        context = pool.acquire(timeout=3)
        assert type(context) is PoolAcquireContext
        assert context.timeout == 3
        async with context as conn:
            assert type(conn) is PoolConnectionProxy
            assert type(conn._con) is asyncpg.Connection
            assert conn is context.connection
        with pytest.raises(InterfaceError, match="already acquired"):
            async with context:
                pass
        await pool.close()

    run(main())
    assert inspect.iscoroutinefunction(Pool.close)
    assert inspect.iscoroutinefunction(Pool._get_new_connection)


def test_subclasses(signals: Signals, url: str) -> None:
    """A subclass of the pool and one of the connection are observed, and keep their own methods."""

    class Own(asyncpg.Connection):
        async def reset(self, *, timeout: float | None = None) -> None:
            self.resets.append(1)
            await super().reset(timeout=timeout)

        resets: list[int] = []  # noqa: RUF012 - one for the test

    class OwnPool(Pool):
        def acquire(self, *, timeout: float | None = None) -> Any:
            return super().acquire(timeout=timeout)

    async def main() -> None:
        pool = OwnPool(
            url,
            min_size=1,
            max_size=1,
            max_queries=10,
            max_inactive_connection_lifetime=0,
            loop=None,
            setup=None,
            init=None,
            connection_class=Own,
            record_class=asyncpg.Record,
        )
        async with pool:
            assert isinstance(await pool.fetchval("select 1"), int)

    run(main())
    assert Own.resets == [1]
    assert signals.checkout().attributes["otel_pgpool.outcome"] == "released"


# Waits


def test_a_wait(signals: Signals, dsn: str, create: Callable[..., Any]) -> None:
    """Who finds no free connection has a span for the wait, with a link to the holder; nobody else has."""

    async def main() -> None:
        async with create(min_size=1, max_size=1) as pool:
            conn = await pool.acquire()
            waiter = asyncio.create_task(backend(pool), name="waiter")
            await until_waiting(pool)
            assert tracker_of(pool).stats().waiting == 1
            await pool.release(conn)
            await waiter
            assert tracker_of(pool).stats().waiting == 0

    run(main())
    first, second = signals.named("pool.checkout")
    assert_exactly(second.attributes, lent(dsn, path="queued", **{"task.name": "waiter"}))
    wait = signals.one("pool.wait")
    assert_exactly(wait.attributes, waited(1, name_of(dsn)))
    (link,) = wait.links
    assert link.context == first.context
    blocker = wait.attributes["otel_pgpool.blocker.checked_out_at"]
    assert blocker.rpartition(" ")[2] == shown_name("test_a_wait.<locals>.main")


def test_a_wait_that_times_out(signals: Signals, dsn: str, create: Callable[..., Any]) -> None:
    """The caller gets asyncpg's error; the span and the record say `timeout`, and who holds the connections."""

    async def main() -> Any:
        async with create(min_size=1, max_size=1) as pool:
            async with pool.acquire():
                with pytest.raises(TIMEOUTS) as caught:
                    await pool.acquire(timeout=0.05)
            assert tracker_of(pool).stats().timeouts == 1
            await backend(pool)
            return caught.value

    assert str(run(main())) == ""
    failed = signals.named("pool.checkout")[0]
    assert failed.attributes["error.type"] == "timeout"
    assert failed.attributes["otel_pgpool.outcome"] == "timeout"
    assert failed.attributes["otel_pgpool.path"] == "queued"
    assert failed.status.description == "timeout expired"
    (record,) = signals.logged("timeout")
    assert "this task already holds 1 of them" in record.record.getMessage()
    assert "by task 'order-7'" in record.record.getMessage()


def test_a_wait_that_is_cancelled(signals: Signals, create: Callable[..., Any]) -> None:
    """The span ends, the pool loses nothing, and the next caller is served."""

    async def main() -> None:
        async with create(min_size=1, max_size=1) as pool:
            conn = await pool.acquire()
            waiter = asyncio.create_task(by_block(pool))
            await until_waiting(pool)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert tracker_of(pool).stats().waiting == 0
            with pytest.raises(TIMEOUTS):
                await asyncio.wait_for(by_await(pool), 0.05)
            await pool.release(conn)
            await asyncio.wait_for(backend(pool), 5)

    run(main())
    assert not signals.live()
    spans = signals.named("pool.checkout")
    assert [span.attributes["otel_pgpool.outcome"] for span in spans] == ["error", "error", "released", "released"]
    assert [span.attributes.get("error.type") for span in spans[:2]] == ["CancelledError"] * 2
    assert len(signals.named("pool.wait")) == 2


def test_cancellations_at_any_moment(create: Callable[..., Any]) -> None:
    """Whenever a caller is cancelled, during the wait, the connect, the query or the release, the figures are right."""

    async def main() -> None:
        async with create(max_size=2) as pool:
            for delay in range(30):
                tasks = [asyncio.create_task(by_block(pool)) for _ in range(4)]
                for _ in range(delay):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: pool.get_size() == pool.get_idle_size())
            tracker = tracker_of(pool)
            stats = tracker.stats()
            assert (stats.used, stats.waiting, stats.connecting) == (0, 0, 0)
            assert not tracker.held
            assert stats.size == pool.get_size()

    run(main())


def test_many_tasks(signals: Signals, create: Callable[..., Any]) -> None:
    """Of a hundred tasks on two connections each has its own checkout, and none is left."""

    async def main() -> None:
        async with create() as pool:
            await asyncio.gather(*(asyncio.create_task(by_block(pool), name=f"t{n}") for n in range(100)))
            stats = tracker_of(pool).stats()
            assert sum(stats.checkouts.values()) == 100
            assert stats.checkouts["new"] == stats.created == 2
            assert stats.queued >= 96

    run(main())
    spans = signals.named("pool.checkout")
    assert {span.attributes["otel_pgpool.task.name"] for span in spans} == {f"t{n}" for n in range(100)}
    assert len(signals.named("pool.connect")) == 2


# Failures


def test_a_closed_pool(signals: Signals, create: Callable[..., Any]) -> None:
    """An acquire from a closed pool fails with asyncpg's error, and `closed`."""

    async def main() -> None:
        pool = await create()
        await pool.close()
        with pytest.raises(InterfaceError, match="pool is closed"):
            await pool.acquire()

    run(main())
    span = signals.checkout()
    assert (span.attributes["error.type"], span.status.description) == ("closed", "pool is closed")


def test_a_pool_that_is_not_initialized(signals: Signals, create: Callable[..., Any]) -> None:
    """It is asyncpg's error, and nothing is reported."""

    async def main() -> None:
        with pytest.raises(InterfaceError, match="not initialized"):
            await create().acquire()

    run(main())
    assert not signals.spans.started


def test_a_wait_that_the_pool_ends(signals: Signals, create: Callable[..., Any]) -> None:
    """A pool that is terminated while a caller waits gives that caller asyncpg's error; no span stays open."""

    async def main() -> BaseException | None:
        pool = await create(min_size=1, max_size=1)
        await pool.acquire()
        waiter = asyncio.create_task(by_block(pool))
        await until_waiting(pool)
        pool.terminate()
        (result,) = await asyncio.gather(waiter, return_exceptions=True)
        for holder in pool._holders:
            holder.terminate()  # asyncpg before 0.32 connects once more for the waiter
        return result

    assert isinstance(run(main()), InterfaceError)
    assert not signals.live()
