"""What the instrumentation keeps with asyncpg's objects, and calls of them: pools, contexts, connections, tasks."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import asyncpg
import pytest
from asyncpg.pool import Pool, PoolAcquireContext

import otel_pgpool
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.checkouts import ContextCheckout
from otel_pgpool.instrumentation.tracker import PoolTracker
from otel_pgpool.telemetry import Telemetry
from tests.support.asyncpg_pools import backend, run, tracker_of, until, until_waiting
from tests.support.call_sites import shown_name
from tests.support.instrumentation import instrumented
from tests.support.telemetry import until as until_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.telemetry import Signals

PACKAGE = otel_pgpool.__path__[0]
OVERRIDABLE = [name for name in vars(Pool) if not name.startswith("_")]


def requested() -> int:
    return sum(type(each) is ContextCheckout for each in gc.get_objects())


def test_contexts_that_nobody_awaits(signals: Signals, create: Callable[..., Any]) -> None:
    """What is kept about a context goes with the context, and the context is false and unused as asyncpg made it."""

    async def main() -> None:
        async with create() as pool:
            contexts = [pool.acquire() for _ in range(100)]
            assert requested() == 100
            assert not any(context.done for context in contexts)
            contexts.clear()
            assert requested() == 0
            context = pool.acquire()
            async with context:
                assert context.done is False
            assert context.done is True
            context = pool.acquire()
            await pool.release(await context)
            assert context.done is True

    with instrumented(signals):
        run(main())
    assert requested() == 0


def test_contexts_of_the_program(signals: Signals, create: Callable[..., Any]) -> None:
    """A context that was not made by ``acquire`` has the line that enters it, even if another had its address."""
    places = []
    released = PoolTracker.released

    def note(self: PoolTracker, checkout: Any, *args: Any) -> None:
        places.append(checkout.where)
        released(self, checkout, *args)

    def dropped(pool: Any) -> None:
        for _ in range(10):
            pool.acquire()

    async def enter(pool: Any) -> None:
        async with PoolAcquireContext(pool, None):
            pass

    async def main() -> None:
        async with create() as pool:
            dropped(pool)
            await enter(pool)

    with instrumented(signals), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolTracker, "released", note)
        run(main())
    entering = shown_name("test_contexts_of_the_program.<locals>.enter")
    assert [place.rpartition(" ")[2] for place in places] == [entering]


@pytest.mark.parametrize("way", ["excluded", "not selected"])
def test_pools_that_are_not_observed(signals: Signals, create: Callable[..., Any], way: str) -> None:
    """A checkout from such a pool looks for neither stack nor task, and starts nothing."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_name] += 1

    async def use(pool: Any) -> None:
        async with pool.acquire():
            pass
        await pool.release(await pool.acquire())

    async def main() -> None:
        async with create() as pool, create() as other:
            if way == "excluded":
                await use(pool)
                uninstrument_pool(pool)
            else:
                instrument_pool(other)
            await use(pool)
            sys.setprofile(count)
            try:
                await use(pool)
            finally:
                sys.setprofile(None)
            instrument_pool(pool)
            await use(pool)

    with instrumented(signals, pools=[] if way == "not selected" else None):
        run(main())
    assert not calls.keys() & {"running_task", "task_call_sites", "observes", "track", "ignore", "check_out"}
    assert calls.total() <= 22
    assert len(signals.named("pool.checkout")) == (4 if way == "excluded" else 2)


class Curious(asyncpg.Connection):
    """A connection of the application, which counts the questions."""

    asked = 0

    def is_closed(self) -> Any:
        Curious.asked += 1
        return super().is_closed()


class CuriousPool(Pool):
    """A pool of the application."""

    asked: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in OVERRIDABLE and sys._getframe(1).f_globals["__name__"].startswith("otel_pgpool"):
            CuriousPool.asked.append(name)
        return super().__getattribute__(name)


def test_methods_that_the_application_overrides(signals: Signals, url: str) -> None:
    """The instrumentation calls asyncpg's own methods, not what a class of the application has in their place."""

    async def main() -> tuple[int, int]:
        options = {"min_size": 1, "max_size": 2, "setup": None, "init": None, "loop": None}
        pool = CuriousPool(
            url,
            connection_class=Curious,
            record_class=asyncpg.Record,
            max_queries=100,
            max_inactive_connection_lifetime=300,
            **({} if asyncpg.__version__ < "0.30" else {"connect": None, "reset": None}),
            **options,  # type: ignore[arg-type]
        )
        async with pool:
            await backend(pool)
            Curious.asked = 0
            conn = await pool.acquire()
            asked_by_asyncpg = Curious.asked
            stats = tracker_of(pool).stats()
            assert (stats.minconn, stats.maxconn, stats.used, stats.idle) == (1, 2, 1, 0)
            assert [*private.connections_of(pool)] == [conn._con]
            asked = Curious.asked
            await pool.release(conn)
        return asked_by_asyncpg, asked

    with instrumented(signals):
        without, with_it = run(main())
    assert with_it == without
    assert CuriousPool.asked == []


def test_release_for_a_caller_that_has_gone(signals: Signals, create: Callable[..., Any]) -> None:
    """The task that releases a connection is kept until it has ended: a loop refers to its tasks weakly."""

    async def main() -> None:
        async with create(max_size=1) as pool:
            private.release_later(pool, await pool.acquire())
            assert len(private._releases) == 1
            assert await backend(pool)
            await until(lambda: not private._releases)

    with instrumented(signals):
        run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncpg's, whose loop is closed
def test_wait_that_the_garbage_collector_ends(signals: Signals, create: Callable[..., Any]) -> None:
    """The end of a coroutine by the garbage collector, under any lock, is reported by another thread."""
    reporters = []
    failed = Telemetry.failed

    def note(self: Telemetry, checkout: Any, error: Any) -> None:
        reporters.append(threading.current_thread())
        failed(self, checkout, error)

    async def wait(pool: Any) -> None:
        async with pool.acquire():
            pass

    async def main() -> tuple[Any, Any]:
        pool = await create(max_size=1)
        conn = await pool.acquire()
        waiter = asyncio.create_task(wait(pool))
        await until_waiting(pool)
        return tracker_of(pool), (pool, conn, waiter)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_context: None)  # a pending task was destroyed
    with instrumented(signals), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Telemetry, "failed", note)
        tracker, objects = loop.run_until_complete(main())
        pool, conn, waiter = objects
        conn._con._transport.abort()
        loop.close()
        del objects, waiter
        pool._queue._getters.clear()
        gc.collect()
        until_in_thread(lambda: reporters)
        assert not tracker.waiting
    assert threading.current_thread() not in reporters
    del pool, conn
