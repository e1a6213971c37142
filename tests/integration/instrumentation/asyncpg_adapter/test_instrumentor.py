"""The start and the end of the instrumentation of asyncpg, and releases of asyncpg without a name that is needed."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from asyncpg.connection import Connection
from asyncpg.pool import Pool, PoolAcquireContext, PoolConnectionHolder

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from tests.support.asyncpg_pools import backend, run, tracker_of, until_waiting
from tests.support.instrumentation import instrumented, lent
from tests.support.telemetry import assert_exactly

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.telemetry import Signals

CLASSES = (Pool, PoolAcquireContext, PoolConnectionHolder, Connection)


def attributes() -> dict[tuple[type, str], Any]:
    return {(cls, name): value for cls in CLASSES for name, value in vars(cls).items()}


def test_uninstrument(signals: Signals, create: Callable[..., Any]) -> None:
    """The classes are as before, spans in progress have ended, and the pool goes on, holders and waiters included."""
    before = attributes()

    async def main() -> None:
        with instrumented(signals):
            pool = await create(min_size=1, max_size=1)
            assert attributes() != before
            conn = await pool.acquire()
            waiter = asyncio.create_task(backend(pool))
            await until_waiting(pool)
        assert attributes() == before
        assert [span.name for span in signals.live()] == ["pool.checkout"]  # the waiter's
        assert not [name for name in vars(pool._queue) if name.startswith("_otel")]
        await pool.release(conn)
        assert isinstance(await waiter, int)
        await backend(pool)
        await pool.close()

    run(main())
    assert [(span.attributes or {})["otel_pgpool.outcome"] for span in signals.named("pool.checkout")] == [
        "released",
        "released",
    ]


def test_a_pool_that_exists_already(signals: Signals, dsn: str, create: Callable[..., Any]) -> None:
    """It is observed from the start on: its levels, its idle connections, and holds that begin then."""

    async def main() -> None:
        async with create(min_size=2) as pool:
            held = await pool.acquire()
            with instrumented(signals, long_hold=None):
                stats = tracker_of(pool).stats()
                assert (stats.used, stats.idle) == (1, 1)
                await backend(pool)
                await pool.release(held)
                await pool.expire_connections()
                await backend(pool)
                assert sum(tracker_of(pool).stats().discarded.values()) == 1

    run(main())
    first, _second = signals.named("pool.checkout")
    assert_exactly(first.attributes, lent(dsn) | {"otel_pgpool.task.name": "order-7"})


def test_instrumented_again(signals: Signals, create: Callable[..., Any]) -> None:
    """A pool is observed by the instrumentation that is on."""

    async def main() -> None:
        async with create(min_size=1) as pool:
            for _ in range(2):
                with instrumented(signals, long_hold=None):
                    await backend(pool)
            await backend(pool)
            assert not hasattr(pool._queue, TRACKER_ATTR)

    run(main())
    assert len(signals.named("pool.checkout")) == 2


@pytest.mark.parametrize("name", ["_queue", "_get_new_connection"])
def test_a_name_that_is_gone(
    signals: Signals,
    create: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """Without a private name of asyncpg's its pools stay uninstrumented, with a record, and work."""
    caplog.set_level(logging.ERROR, "otel_pgpool")
    monkeypatch.setitem(private.NEEDED, Pool, (f"{name}_of_old",))
    before = attributes()

    async def main() -> None:
        with instrumented(signals):
            assert attributes() == before
            async with create() as pool:
                await backend(pool)

    run(main())
    assert "failed to instrument the pools of asyncpg.pool; they stay uninstrumented" in caplog.text
    assert not signals.spans.started


def test_imported_later(url: str) -> None:
    """A program that imports asyncpg after the instrumentation has started is observed; its import is not forced."""
    code = """
import asyncio, os, sys
from otel_pgpool import PgPoolInstrumentor
PgPoolInstrumentor().instrument()
assert "asyncpg" not in sys.modules
import asyncpg
async def main():
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=1) as pool:
        await pool.fetchval("select 1")
        print(sum(pool._queue._otel_pgpool.stats().checkouts.values()))
asyncio.run(main())
PgPoolInstrumentor().uninstrument()
"""
    env = {**os.environ, "DATABASE_URL": url}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, env=env, text=True
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_totals_without_spans_and_histograms(create: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The totals of waits and holds are measured, also if no checkout leaves a span or a record."""
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")

    async def main() -> None:
        async with create(min_size=1, max_size=1) as pool:
            async with pool.acquire() as conn:
                waiter = asyncio.create_task(backend(pool))
                await until_waiting(pool)
                await conn.fetchval("select pg_sleep(0.05)")
            await waiter
            stats = tracker_of(pool).stats()
            assert stats.hold_seconds >= 0.05
            assert stats.wait_seconds >= 0.05

    with instrumented(spans="off"):
        run(main())
