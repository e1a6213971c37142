"""Pools of asyncpg that are chosen before they are initialized, to be observed or not."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.adapters.asyncpg.private import ChosenHolders
from tests.support.asyncpg_pools import backend, run
from tests.support.instrumentation import instrumented

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.telemetry import Signals


async def awaited(pool: Any) -> None:
    await pool
    await backend(pool)
    await pool.close()


async def entered(pool: Any) -> None:
    async with pool:
        await backend(pool)


@pytest.mark.parametrize("initialize", [awaited, entered])
@pytest.mark.parametrize("least", [0, 1])
def test_instrument_pool(
    signals: Signals, create: Callable[..., Any], initialize: Callable[[Any], Awaitable[None]], least: int
) -> None:
    """A pool that is selected before it is initialized is observed from its first connection on, and no other is."""

    async def main() -> None:
        pool, other = create(min_size=least), create(min_size=least)
        instrument_pool(pool)
        await initialize(other)
        assert not signals.spans.started
        await initialize(pool)

    with instrumented(signals, pools=[]):
        run(main())
    assert len(signals.named("pool.connect")) == 1
    assert signals.checkout().attributes["otel_pgpool.path"] == ("idle" if least else "new")


@pytest.mark.parametrize("initialize", [awaited, entered])
def test_uninstrument_pool(
    signals: Signals, create: Callable[..., Any], initialize: Callable[[Any], Awaitable[None]]
) -> None:
    """A pool that is excluded before it is initialized leaves nothing."""

    async def main() -> None:
        pool = create(min_size=1)
        uninstrument_pool(pool)
        await initialize(pool)

    with instrumented(signals):
        run(main())
    assert not signals.spans.started
    assert not signals.records.all


@pytest.mark.parametrize("initialized", [False, True])
def test_uninstrument_pool_before_instrument(
    signals: Signals, create: Callable[..., Any], *, initialized: bool
) -> None:
    """The choice is kept for an instrumentation that begins before the pool is initialized, or after."""

    async def main() -> None:
        pool = create(min_size=1)
        uninstrument_pool(pool)
        if initialized:
            await pool
        with instrumented(signals):
            async with pool:
                await backend(pool)
        assert not signals.spans.started

    run(main())


def test_last_choice(signals: Signals, create: Callable[..., Any]) -> None:
    """The last choice counts, whether it was made before the pool was initialized or after."""

    async def main() -> None:
        pool = create()
        uninstrument_pool(pool)
        instrument_pool(pool)
        async with pool:
            await backend(pool)
            assert len(signals.named("pool.checkout")) == 1
            uninstrument_pool(pool)
            await backend(pool)
            assert len(signals.named("pool.checkout")) == 1
            instrument_pool(pool)
            await backend(pool)
            assert len(signals.named("pool.checkout")) == 2

    with instrumented(signals):
        run(main())


def test_pool_that_is_never_initialized(create: Callable[..., Any]) -> None:
    """A choice keeps no pool alive, and ends with the pool."""

    async def main() -> None:
        pool = create()
        instrument_pool(pool)
        kept = weakref.ref(pool._holders)
        assert type(pool._holders) is ChosenHolders
        del pool
        gc.collect()
        assert kept() is None

    try:
        asyncio.run(main())
    finally:
        PgPoolInstrumentor().uninstrument()
