"""asyncpg's pools in a forked child, which cannot use them: the report, the figures, and the parent's sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asyncpg_pools import backend, run, tracker_of
from tests.support.instrumentation import instrumented
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.telemetry import Signals


class Written(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def run_in_child(coroutine: Any) -> Any:
    """Run a coroutine in a loop of the child, which was forked by a task of the parent's loop."""
    asyncio.set_event_loop(None)
    return asyncio.new_event_loop().run_until_complete(coroutine)


async def try_to_use(pool: Any) -> None:
    await asyncio.gather(asyncio.wait_for(backend(pool), 1), return_exceptions=True)


def use_in_child(pool: Any) -> str:
    """Acquire twice in a loop of the child, without a query; return what the log said, and the figures."""
    written = Written()
    logging.getLogger("otel_pgpool").addHandler(written)

    async def main() -> None:
        for _ in range(2):
            await pool.acquire()

    run_in_child(main())
    stats = tracker_of(pool).stats()
    return json.dumps([written.texts, dict(stats.discarded), stats.used + stats.idle])


@pytest.mark.parametrize("repair", [False, True])
def test_a_child(signals: Signals, create: Callable[..., Any], *, repair: bool) -> None:
    """The first checkout in the child is reported once; the connections count as forked, and as none of the child's."""

    async def main() -> tuple[list[str], dict[str, int], int]:
        async with create(min_size=2) as pool:
            tracker_of(pool).adapter._inherited._are_cut_off = repair  # type: ignore[attr-defined]
            texts, discarded, size = json.loads(in_child(lambda: use_in_child(pool)))
            return texts, discarded, size

    with instrumented(signals, long_hold=None):
        texts, discarded, size = run(main())
    (text,) = texts
    assert "it cannot be repaired here; create a pool after the fork" in text
    assert ("left its connections to the parent (2)" in text) == repair
    assert ("shares its connections (2)" in text) != repair
    assert (discarded, size) == ({"forked": 2}, 0)


def test_the_parents_sessions(signals: Signals, create: Callable[..., Any]) -> None:
    """A child that is cut off can drop and end the connections: the parent's are as before, in their transaction."""

    async def main() -> None:
        async with create(min_size=2) as pool:
            tracker_of(pool).adapter._inherited._are_cut_off = True  # type: ignore[attr-defined]
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("create temporary table of_the_parent ()")

                def end() -> str:
                    run_in_child(try_to_use(pool))
                    pool.terminate()
                    gc.collect()
                    return "ended"

                assert in_child(end) == "ended"
                assert await conn.fetchval("select count(*) from of_the_parent") == 0
            pids = {await backend(pool) for _ in range(3)}
            assert len(pids) == 1
            assert tracker_of(pool).stats().created == 2

    with instrumented(signals, long_hold=None):
        run(main())


def test_a_pool_of_the_child(signals: Signals, create: Callable[..., Any]) -> None:
    """A pool that the child has created is observed there as usual, without a report."""

    def use_own() -> str:
        async def child() -> str:
            async with create(min_size=1) as pool:
                await backend(pool)
                return json.dumps(tracker_of(pool).stats().checkouts)

        return str(run_in_child(child()))

    async def main() -> dict[str, int]:
        async with create(min_size=1) as pool:
            await backend(pool)
            checkouts: dict[str, int] = json.loads(in_child(use_own))
            return checkouts

    with instrumented(signals, long_hold=None):
        assert run(main())["idle"] == 1
