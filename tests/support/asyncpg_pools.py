"""What the tests of asyncpg's pools share: a task with a name, conditions that are awaited, the tracker of a pool."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.tracker import PoolTracker

TIMEOUTS = (asyncio.TimeoutError, TimeoutError)  # one class since Python 3.11


def run(coroutine: Any, name: str = "order-7") -> Any:
    """Run a coroutine in a task of this name, in a loop of its own."""

    async def main() -> Any:
        return await asyncio.create_task(coroutine, name=name)

    return asyncio.run(main())


def tracker_of(pool: Any) -> PoolTracker:
    """Return the tracker of an instrumented pool."""
    tracker: PoolTracker = getattr(pool._queue, TRACKER_ATTR)
    return tracker


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition and return what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.002)
    return result


async def until_waiting(pool: Any, count: int = 1) -> None:
    """Wait until so many callers wait for a holder."""
    await until(lambda: len(tracker_of(pool).waiting) == count)


async def backend(pool: Any) -> Any:
    """Return the backend of a connection that was acquired for it."""
    async with pool.acquire() as conn:
        return await conn.fetchval("select pg_backend_pid()")
