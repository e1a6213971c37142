"""asyncpg's pools in a forked child: the report, the figures, the repair, and the parent's sessions."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asyncpg_pools import backend, run, tracker_of
from tests.support.instrumentation import instrumented
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.telemetry import Signals


class Written(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PGPOOL_FORK_REPAIR", "1")


def run_in_child(coroutine: Any) -> Any:
    """Run a coroutine in a loop of the child, which was forked by a task of the parent's loop."""
    asyncio.set_event_loop(None)
    return asyncio.new_event_loop().run_until_complete(coroutine)


async def enter(pool: Any) -> None:
    async with pool.acquire():
        await asyncio.sleep(0)


async def await_it(pool: Any) -> None:
    await pool.acquire()


async def wait_for_it(pool: Any) -> None:
    await asyncio.wait_for(pool.acquire(), 5)


async def query_the_pool(pool: Any) -> None:
    await asyncio.wait_for(pool.fetchval("select 1"), 0.2)


def use_in_child(pool: Any, use: Callable[[Any], Awaitable[None]]) -> str:
    """Use the pool twice in a loop of the child; return what the log said, and the figures."""
    written = Written()
    logging.getLogger("otel_pgpool").addHandler(written)

    async def main() -> None:
        for _ in range(2):
            with suppress(Exception):  # the parent's loop has the answers
                await asyncio.wait_for(use(pool), 0.2)

    run_in_child(main())
    stats = tracker_of(pool).stats()
    return json.dumps([written.texts, dict(stats.discarded), stats.used + stats.idle])


@pytest.mark.parametrize("use", [enter, await_it, wait_for_it, query_the_pool])
def test_report(signals: Signals, create: Callable[..., Any], use: Callable[[Any], Awaitable[None]]) -> None:
    """By default the first checkout, of whatever way, is reported once; the connections count as forked, not as used.

    What the child has done to the parent's sessions is not looked at.
    """

    async def main() -> tuple[str, list[str], dict[str, int], int]:
        pool = await create(min_size=2)
        name = tracker_of(pool).name
        texts, discarded, size = json.loads(in_child(lambda: use_in_child(pool, use)))
        pool.terminate()
        return name, texts, discarded, size

    with instrumented(signals, long_hold=None):
        name, texts, discarded, size = run(main())
    (text,) = [each for each in texts if "forked child" in each]
    assert text.startswith(f"pool {name}: opened in process {os.getpid()}, and used in its forked child ")
    assert "both processes use the same connections (2), and what the child sends or closes disturbs" in text
    assert text.endswith("create the pool after the fork, or set OTEL_PGPOOL_FORK_REPAIR=1 and use a new event loop")
    assert (discarded["forked"], size) == (2, 0)


@pytest.mark.usefixtures("repair")
def test_repair(signals: Signals, create: Callable[..., Any]) -> None:
    """With repair the pool begins anew in a loop of the child; the parent's sessions are as before."""

    def use_all(pool: Any, held: Any) -> str:
        written = Written()
        logging.getLogger("otel_pgpool").addHandler(written)

        async def child() -> tuple[list[int], int]:
            pids = await asyncio.gather(*(backend(pool) for _ in range(5)))
            with suppress(Exception):
                await pool.release(held)
            return [pids[0], await backend(pool)], pool.get_size()

        pids, size = run_in_child(child())
        stats = tracker_of(pool).stats()
        texts = [text for text in written.texts if "forked child" in text]
        return json.dumps([texts, pids, size, stats.discarded, sum(stats.checkouts.values()), stats.used])

    async def main() -> tuple[Any, set[int]]:
        async with create(min_size=2) as pool:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("create temporary table of_the_parent ()")
                told = json.loads(in_child(lambda: use_all(pool, conn)))
                assert await conn.fetchval("select count(*) from of_the_parent") == 0
                mine = {conn.get_server_pid(), await backend(pool)}
            assert tracker_of(pool).stats().created == 2
            return told, mine

    with instrumented(signals, long_hold=None):
        (texts, pids, size, discarded, checkouts, used), mine = run(main())
    (text,) = texts
    assert text.endswith("it has begun anew there, and left its connections to the parent (2)")
    assert not {*pids} & mine
    assert (size, discarded, checkouts, used) == (2, {"forked": 2}, 6, 0)


@pytest.mark.usefixtures("repair")
def test_repair_in_the_parents_loop(signals: Signals, create: Callable[..., Any]) -> None:
    """A child that goes on in the parent's loop cannot use the pool, and the record says what to do."""

    async def main() -> str:
        async with create(min_size=1) as pool:
            read, write = os.pipe()
            if os.fork() == 0:
                written = Written()
                logging.getLogger("otel_pgpool").addHandler(written)
                with suppress(BaseException):
                    await pool.acquire()
                os.write(write, "\n".join(written.texts).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as told:
                text = told.read()
            os.wait()  # noqa: ASYNC222 - the child has ended
            await backend(pool)
            return text

    with instrumented(signals, long_hold=None):
        text = run(main())
    assert "cannot begin anew in the parent's event loop, which the child runs; use a new event loop" in text


PROGRAM = """
import asyncio, gc, os, sys
from otel_pgpool import PgPoolInstrumentor
PgPoolInstrumentor().instrument()
import asyncpg

async def lost(pool):
    for each in [pool.close(), pool.fetchval("select 1")]:
        await asyncio.wait([asyncio.ensure_future(each)], timeout=0.1)

def end(way):
    global pool, conn
    if way == "terminate":
        pool.terminate()
    elif way == "close":
        asyncio._set_running_loop(None)
        asyncio.run(lost(pool))
    elif way == "collect":
        pool = conn = None
        gc.collect()
    elif way == "uninstrument":
        PgPoolInstrumentor().uninstrument()
        pool = conn = None
        gc.collect()
    sys.exit(0)

async def main(way):
    global pool, conn
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=3, max_size=3)
    conn = await pool.acquire()
    await conn.execute("begin; create temporary table of_the_parent ()")
    pids = sorted(holder._con.get_server_pid() for holder in pool._holders)
    query = asyncio.ensure_future(pool.fetchval("select pg_sleep(0.5)"))
    await asyncio.sleep(0.1)
    child = os.fork()
    if child == 0:
        end(way)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        await asyncio.sleep(0.01)
    await asyncio.wait_for(query, 5)
    assert await asyncio.wait_for(conn.fetchval("select count(*) from of_the_parent"), 5) == 0
    others = [await pool.acquire(), await pool.acquire()]
    for each in others:
        assert await asyncio.wait_for(each.fetchval("select 1"), 5) == 1
    assert sorted(each.get_server_pid() for each in [conn, *others]) == pids
    print("unharmed")
    os._exit(0)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("way", ["exit", "terminate", "close", "collect", "uninstrument"])
@pytest.mark.usefixtures("repair")
def test_child_that_exits(url: str, way: str) -> None:
    """With repair, whatever a child does to the pool before it exits, the parent's sessions go on, queries included.

    The child exits within the parent's loop, whose tasks are cancelled there, and whose objects are collected.
    """
    env = {**os.environ, "DATABASE_URL": url}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], check=False, capture_output=True, env=env, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("unharmed\n", 0), done.stderr


@pytest.mark.usefixtures("repair")
def test_end_in_the_child(signals: Signals, create: Callable[..., Any]) -> None:
    """A child can drop and end the connections before it uses the pool: the parent's are as before."""

    async def main() -> None:
        async with create(min_size=2) as pool:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("create temporary table of_the_parent ()")

                def end() -> str:
                    pool.terminate()
                    gc.collect()
                    return "ended"

                assert in_child(end) == "ended"
                assert await conn.fetchval("select count(*) from of_the_parent") == 0
            assert len({await backend(pool) for _ in range(3)}) == 1
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
