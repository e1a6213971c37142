"""Long holds of asyncpg's connections, and connections that nobody will release."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asyncpg_pools import backend, run, tracker_of, until
from tests.support.instrumentation import instrumented

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.telemetry import Signals


@pytest.fixture(autouse=True)
def watched(signals: Signals) -> Iterator[None]:
    """Instrument, with a threshold of 0.1 s."""
    with instrumented(signals, long_hold=0.1):
        yield


async def rows(pool: Any) -> AsyncIterator[Any]:
    async with pool.acquire() as conn, conn.transaction():
        async for row in conn.cursor("select generate_series(1, 100)"):
            yield row


async def query(pool: Any) -> None:
    async with pool.acquire() as conn:
        await conn.execute("select pg_sleep(0.4)")


async def think(pool: Any) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("select 1")
        await asyncio.sleep(0.4)


async def rest(pool: Any) -> None:
    async with pool.acquire():
        await asyncio.sleep(0.4)


async def iterate(pool: Any) -> None:
    async for _row in rows(pool):
        await asyncio.sleep(0.4)
        break


@pytest.mark.parametrize(
    ("way", "status", "functions"),
    [
        (query, "active", ["query", "execute"]),
        (think, "in_transaction", ["think", "sleep"]),
        (rest, "idle", ["rest", "sleep"]),
    ],
)
def test_a_long_hold(
    signals: Signals,
    create: Callable[..., Any],
    way: Callable[[Any], Awaitable[None]],
    status: str,
    functions: list[str],
) -> None:
    """The record tells the task, the line of the acquire, whether a query runs, and where the task awaits."""

    async def main() -> None:
        async with create(min_size=1) as pool:
            await asyncio.create_task(way(pool), name="order-7")

    run(main(), "main")
    (record,) = signals.logged("long_hold")
    assert record.attributes["otel_pgpool.task.name"] == "order-7"
    assert record.attributes["otel_pgpool.transaction.status"] == status
    assert record.attributes["otel_pgpool.checked_out_at"].endswith(f" {way.__name__}")
    stack = record.attributes["code.stacktrace"].splitlines()
    assert [line.rpartition(" ")[2] for line in stack] == functions
    span = signals.checkout()
    assert [event.name for event in span.events] == ["pool.long_hold"]
    assert record.span_context == span.context


def test_an_abandoned_generator(signals: Signals, create: Callable[..., Any]) -> None:
    """Its connection is reported as held: by a task that has ended, with the line of the acquire in the generator."""
    kept = []

    async def begin(pool: Any) -> None:
        generator = rows(pool)
        await generator.__anext__()
        kept.append(generator)

    async def main() -> None:
        async with create(min_size=1, max_size=1) as pool:
            await asyncio.create_task(begin(pool), name="stream-1")
            (record,) = await until(lambda: signals.logged("long_hold"))
            assert record.attributes["otel_pgpool.task.name"] == "stream-1"
            assert record.attributes["otel_pgpool.transaction.status"] == "in_transaction"
            assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0].endswith(" rows")
            assert "code.stacktrace" not in record.attributes
            with pytest.raises(asyncio.TimeoutError):
                await pool.acquire(timeout=0.05)
            (timeout,) = signals.logged("timeout")
            assert "by task 'stream-1 (ended)' at" in timeout.record.getMessage()
            assert tracker_of(pool).stats().oldest_hold > 0.1
            await kept.pop().aclose()
            await asyncio.wait_for(backend(pool), 5)

    run(main())


def test_a_generator_that_is_in_use(signals: Signals, create: Callable[..., Any]) -> None:
    """The call sites are the generator's and its user's."""

    async def main() -> None:
        async with create(min_size=1) as pool:
            await iterate(pool)

    run(main())
    (record,) = signals.logged("long_hold")
    sites = record.attributes["otel_pgpool.checked_out_at"].splitlines()
    assert [site.rpartition(" ")[2] for site in sites[:2]] == ["rows", "iterate"]


def test_a_blocked_loop(signals: Signals, create: Callable[..., Any]) -> None:
    """A holder that blocks the loop is reported meanwhile, with the line at which its task runs."""
    import time

    async def block(pool: Any) -> None:
        async with pool.acquire():
            time.sleep(0.4)  # noqa: ASYNC251 - the defect
            assert signals.logged("long_hold")

    async def main() -> None:
        async with create(min_size=1) as pool:
            await block(pool)

    run(main())
    (record,) = signals.logged("long_hold")
    assert record.attributes["code.stacktrace"].splitlines()[-1].endswith("in block")
