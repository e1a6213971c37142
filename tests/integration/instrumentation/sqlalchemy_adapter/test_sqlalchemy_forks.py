"""Forked children and the connections of their parent, on each driver: nothing is sent to the server."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from tests.support.forked_pools import states
from tests.support.processes import in_child
from tests.support.sqlalchemy_drivers import ASYNCHRONOUS, SYNCHRONOUS, allow_quick_passwords, driver_url, pid_of
from tests.support.sqlalchemy_engines import borrow, engine_tracker
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals


@pytest.fixture(params=SYNCHRONOUS)
def engine(request: pytest.FixtureRequest, engines: Engines, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Make an engine that keeps two connections."""
    allow_quick_passwords(monkeypatch)
    return engines(driver_url(dsn, request.param), pool_size=2, max_overflow=0, pool_timeout=PATIENCE)


def work(engine: Engine, held: Any) -> None:
    pass


def dispose(engine: Engine, held: Any) -> None:
    engine.dispose()


def replace_pool(engine: Engine, held: Any) -> None:
    engine.dispose(close=False)


def release(engine: Engine, held: Any) -> None:
    held.close()


def invalidate(engine: Engine, held: Any) -> None:
    held.invalidate()
    held.close()


def drop(engine: Engine, held: Any) -> None:
    del held
    gc.collect()


@pytest.mark.parametrize("deed", [work, dispose, replace_pool, release, invalidate, drop])
def test_child(
    instrumentation: None,
    engine: Engine,
    admin: connection,
    deed: Callable[[Engine, Any], None],
) -> None:
    """A child works with connections of its own; the parent's sessions hear nothing and go on."""
    idle, held_pid = _idle_and_held(engine)
    held = engine.connect()
    try:
        pids = sorted([idle, held_pid])
        assert pid_of(held) in pids
        before = states(admin, pids)

        def child() -> str:
            deed(engine, held)
            found = {borrow(engine) for _ in range(2)} | set(_pids_of_two(engine))
            gc.collect()
            return "own" if found.isdisjoint(pids) else "the parent's"

        assert in_child(child) == "own"
        assert states(admin, pids) == before
        assert pid_of(held) in pids
        assert borrow(engine) in pids
    finally:
        held.close()


def _idle_and_held(engine: Engine) -> list[int]:
    pids = _pids_of_two(engine)
    assert len({*pids}) == 2
    return pids


def _pids_of_two(engine: Engine) -> list[int]:
    with engine.connect() as one, engine.connect() as two:
        return [pid_of(one), pid_of(two)]


@pytest.mark.parametrize("pool", [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool])
def test_kinds_of_pools(
    signals: Signals, instrumentation: None, engine: Engine, engines: Engines, pool: type[Pool]
) -> None:
    """Each kind of pool leaves the parent's connection to the parent, and counts it."""
    engine = engines(engine.url.render_as_string(hide_password=False), poolclass=pool, pool_logging_name="forked")
    pid = borrow(engine)

    def child() -> str:
        discarded = signals.values("otel_pgpool.connections.discarded", "forked").get(("forked",), 0)
        other = borrow(engine)
        engine.dispose()
        return f"{discarded:.0f} {other != pid}"

    assert in_child(child) == ("0 True" if pool is NullPool else "1 True")
    if pool is not NullPool:
        assert borrow(engine) == pid


def forked(signals: Signals, pool_name: str) -> float:
    """Return how many connections a pool counts as its parent's."""
    return signals.values("otel_pgpool.connections.discarded", pool_name).get(("forked",), 0)


@pytest.mark.parametrize("is_disposed", [False, True])
def test_held_connections_are_counted(
    signals: Signals, instrumentation: None, engine: Engine, is_disposed: bool
) -> None:
    """A child counts what was checked out at the fork, also from a pool that its engine has replaced since."""
    _idle_and_held(engine)
    former = engine.pool
    with engine.connect():
        if is_disposed:
            engine.dispose()
            borrow(engine)

        def child() -> str:
            first = forked(signals, engine_tracker(engine).name)
            second = in_child(lambda: f"{forked(signals, engine_tracker(engine).name):.0f}")
            return f"{first:.0f} {second}"

        assert in_child(child) == "2 0"
    former.dispose()


@pytest.fixture(params=ASYNCHRONOUS)
def async_engine(request: pytest.FixtureRequest, dsn: str) -> AsyncEngine:
    return create_async_engine(driver_url(dsn, request.param), pool_size=2, max_overflow=0)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Make a loop that stands still while the process forks."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def backends(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as one, engine.connect() as two:
        return [int((await each.exec_driver_sql("select pg_backend_pid()")).scalar() or 0) for each in (one, two)]


async def leave(held: Any, engine: AsyncEngine) -> None:
    pass


async def leave_closed(held: Any, engine: AsyncEngine) -> None:
    await held.close()


async def leave_disposed(held: Any, engine: AsyncEngine) -> None:
    await engine.dispose()


@pytest.mark.parametrize("deed", [leave, leave_closed, leave_disposed])
def test_child_of_tasks(
    instrumentation: None,
    async_engine: AsyncEngine,
    admin: connection,
    loop: asyncio.AbstractEventLoop,
    deed: Callable[[Any, AsyncEngine], Any],
) -> None:
    """A child with a loop of its own connects anew, and the parent's loop goes on to watch the parent's sockets."""
    engine = async_engine
    pids = sorted(loop.run_until_complete(backends(engine)))
    held = loop.run_until_complete(_connect(engine))
    before = states(admin, pids)

    def child() -> str:
        async def main() -> list[int]:
            await deed(held, engine)
            return await backends(engine)

        found = asyncio.run(main())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        return "own" if set(found).isdisjoint(pids) else "the parent's"

    assert in_child(child) == "own"
    assert states(admin, pids) == before

    async def after() -> list[int]:
        pid = (await held.exec_driver_sql("select pg_backend_pid()")).scalar()
        await held.close()
        found = await backends(engine)
        await engine.dispose()
        return [pid, *found]

    first, *both = loop.run_until_complete(after())
    assert first in pids
    assert sorted(both) == pids


def test_held_connections_of_tasks_are_counted(
    signals: Signals, instrumentation: None, async_engine: AsyncEngine, loop: asyncio.AbstractEventLoop
) -> None:
    """A child counts what the parent's tasks had checked out at the fork, too."""
    loop.run_until_complete(backends(async_engine))
    held = loop.run_until_complete(_connect(async_engine))
    name = engine_tracker(async_engine.sync_engine).name
    assert in_child(lambda: f"{forked(signals, name):.0f}") == "2"
    loop.run_until_complete(held.close())
    loop.run_until_complete(async_engine.dispose())


async def _connect(engine: AsyncEngine) -> Any:
    return await engine.connect()
