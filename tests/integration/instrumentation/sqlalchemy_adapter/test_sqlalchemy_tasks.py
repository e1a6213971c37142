"""Asynchronous engines of SQLAlchemy: each checkout belongs to a task, and many are in progress in one thread."""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from tests.support.call_sites import shown_name
from tests.support.database import kill, refused_port
from tests.support.sqlalchemy_drivers import ASYNCHRONOUS, IS_1_4, REFUSED, driver_url
from tests.support.sqlalchemy_engines import attribute, engine_tracker, hooked, lent, told
from tests.support.telemetry import assert_exactly, is_child, status_of
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from psycopg2.extensions import connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

HERE = Path(__file__).name


@pytest.fixture(params=ASYNCHRONOUS)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def url(dsn: str, driver: str) -> str:
    return driver_url(dsn, driver)


@asynccontextmanager
async def engine_on(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def ask(conn: Any, statement: str = "select 1") -> Any:
    return (await conn.execute(text(statement))).scalar()


async def use(engine: AsyncEngine) -> int:
    async with engine.connect() as conn:
        return int(await ask(conn, "select pg_backend_pid()"))


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition, while other tasks run, and return what it gave."""
    deadline = monotonic() + PATIENCE
    while not (result := condition()):
        assert monotonic() < deadline, "not in time"
        await asyncio.sleep(0.002)
    return result


def name_of(url: str) -> str:
    return str(make_url(url)._replace(password=None))


def waiting(engine: AsyncEngine) -> int:
    return engine_tracker(engine.sync_engine).stats().waiting


@pytest.mark.parametrize("pool", [None, NullPool, StaticPool])
def test_checkouts(signals: Signals, instrumentation: None, url: str, dsn: str, pool: type | None) -> None:
    """A checkout has the attributes of any other, and the name of its task."""

    async def main() -> list[int]:
        async with engine_on(url, **({"poolclass": pool} if pool else {})) as engine:
            return [await use(engine) for _ in range(2)]

    pids = asyncio.run(main())
    first, second = signals.named("pool.checkout")
    attributes = {"connection.id": 1, "connection.pid": pids[0], "task.name": str}
    assert_exactly(first.attributes, lent(dsn, name_of(url), path="new", **attributes))
    assert attribute(second, "path") == ("new" if pool is NullPool else "idle")
    assert attribute(second, "connection.pid") == pids[1]
    assert is_child(signals.named("pool.connect")[0], first)
    assert len(signals.named("pool.connect")) == (2 if pool is NullPool else 1)


def test_queue(signals: Signals, instrumentation: None, url: str) -> None:
    """A task waits for a release without stopping the loop; its wait has a link to the holder."""

    async def main() -> None:
        async with engine_on(url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE) as engine:
            async with engine.connect():
                waiter = asyncio.create_task(use(engine), name="waiter")
                await until(lambda: waiting(engine))
            await waiter
            assert waiting(engine) == 0

    asyncio.run(main())
    holder, queued = signals.named("pool.checkout")
    assert (attribute(queued, "path"), attribute(queued, "task.name")) == ("queued", "waiter")
    wait = signals.one("pool.wait")
    assert is_child(wait, queued)
    assert [link.context for link in wait.links] == [holder.context]


def test_timeout(signals: Signals, instrumentation: None, url: str) -> None:
    """The caller of an exhausted pool gets SQLAlchemy's error; the telemetry names the holding task and its line."""

    async def hold(engine: AsyncEngine, ready: asyncio.Event, done: asyncio.Event) -> int:
        async with engine.begin() as conn:
            pid = int(await ask(conn, "select pg_backend_pid()"))
            ready.set()
            await done.wait()
        return pid

    async def main() -> int:
        async with engine_on(url, pool_size=1, max_overflow=0, pool_timeout=0.05) as engine:
            ready, done = asyncio.Event(), asyncio.Event()
            holder = asyncio.create_task(hold(engine, ready, done), name="holder")
            await ready.wait()
            with pytest.raises(exc.TimeoutError, match=r"^QueuePool limit of size 1 overflow 0 reached"):
                async with engine.connect():
                    pass
            done.set()
            return await holder

    pid = asyncio.run(main())
    failed, _served = signals.named("pool.checkout")
    assert (attribute(failed, "outcome"), attribute(failed, "path")) == ("timeout", "queued")
    assert len(signals.one("pool.wait").links) == 1
    (record,) = signals.logged("timeout")
    (holder_text,) = record.attributes["otel_pgpool.holders"]
    for part in ("by task 'holder'", f"{HERE}:", f"(pid {pid},", "hold "):
        assert part in holder_text


def test_holders_that_connect_when_others_queue(signals: Signals, instrumentation: None, url: str) -> None:
    """A caller that queues while the later holders still connect has links to them all the same."""

    async def hold(engine: AsyncEngine) -> None:
        async with engine.connect():
            await asyncio.sleep(0.3)

    async def main() -> list[Any]:
        async with engine_on(url, pool_size=2, max_overflow=0, pool_timeout=0.2) as engine:
            return await asyncio.gather(*(hold(engine) for _ in range(4)), return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results] == [type(None)] * 2 + [exc.TimeoutError] * 2
    assert [len(wait.links) for wait in signals.named("pool.wait")] == [2, 2]


@pytest.mark.parametrize("moment", ["wait", "hold", "connect"])
def test_cancelled(signals: Signals, instrumentation: None, url: str, moment: str) -> None:
    """A task that is cancelled ends its checkout, while it waits, connects or holds."""

    async def hold(engine: AsyncEngine) -> None:
        async with engine.connect() as conn:
            await ask(conn, "select pg_sleep(60)")

    async def main() -> dict[str, float]:
        async with engine_on(url, pool_size=1, max_overflow=0, pool_timeout=PATIENCE) as engine:
            holder = asyncio.create_task(hold(engine))
            if moment != "connect":
                await until(lambda: (told_of(engine, "checkouts") or {}).get("new"))
            else:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if moment == "wait":
                waiter = asyncio.create_task(use(engine))
                await until(lambda: waiting(engine))
                waiter.cancel()
                await asyncio.wait([waiter])
                assert waiter.cancelled()
                assert waiting(engine) == 0
            holder.cancel()
            await asyncio.wait([holder])
            await use(engine)
            stats = engine_tracker(engine.sync_engine).stats()
            return {"used": stats.used, "waiting": stats.waiting, "connecting": stats.connecting}

    assert asyncio.run(main()) == {"used": 0, "waiting": 0, "connecting": 0}
    assert signals.live() == []
    failures = [span for span in signals.named("pool.checkout") if attribute(span, "outcome") == "error"]
    assert [(span.attributes or {})["error.type"] for span in failures] == ["CancelledError"] * (moment != "hold")


def test_interrupt_when_the_span_has_started(
    signals: Signals, instrumentation: None, url: str, interrupted_start: None
) -> None:
    """The checkout ends with the interrupt as its error."""

    async def program() -> None:
        async with engine_on(url) as engine:
            with pytest.raises(KeyboardInterrupt):
                await engine.connect()
            assert engine_tracker(engine.sync_engine).stats().errors == 1

    asyncio.run(program())
    assert (signals.checkout().attributes or {})["error.type"] == "KeyboardInterrupt"


def told_of(engine: AsyncEngine, figure: str) -> Any:
    pool = engine.sync_engine.pool
    return getattr(engine_tracker(engine.sync_engine).stats(), figure) if "_otel_pgpool" in vars(pool) else 0


def test_many_at_once(signals: Signals, instrumentation: None, url: str) -> None:
    """Of many checkouts in one thread, each has its own connect, wait and release."""

    async def work(engine: AsyncEngine) -> int:
        async with engine.connect() as conn:
            pid = int(await ask(conn, "select pg_backend_pid()"))
            await asyncio.sleep(0)
        return pid

    async def main() -> list[int]:
        async with engine_on(url, pool_size=3, max_overflow=2, pool_timeout=PATIENCE) as engine:
            return await asyncio.gather(*(asyncio.create_task(work(engine), name=f"w{n}") for n in range(40)))

    pids = asyncio.run(main())
    checkouts = signals.named("pool.checkout")
    by_task = {attribute(span, "task.name"): attribute(span, "connection.pid") for span in checkouts}
    assert by_task == {f"w{number}": pid for number, pid in enumerate(pids)}
    connects = signals.named("pool.connect")
    parents = {connect.parent.span_id for connect in connects if connect.parent is not None}
    assert len(parents) == len(connects) >= 5
    assert parents == {span.context.span_id for span in checkouts if attribute(span, "path") == "new" and span.context}
    assert signals.live() == []


def test_two_loops(signals: Signals, instrumentation: None, url: str) -> None:
    """Engines of loops in several threads do not mix their checkouts."""

    async def main() -> None:
        async with engine_on(url, pool_size=2, max_overflow=0, pool_timeout=PATIENCE) as engine:
            await asyncio.gather(*(use(engine) for _ in range(8)))

    threads = [in_thread(asyncio.run, main()) for _ in range(2)]
    for thread in threads:
        thread.result(PATIENCE)
    assert told(signals, "outcome") == ["released"] * 16
    assert signals.live() == []


# Lines and stacks


async def by_connect(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


async def by_await(engine: AsyncEngine) -> None:
    conn = await engine.connect()
    await conn.close()


async def by_begin(engine: AsyncEngine) -> None:
    async with engine.begin() as conn:
        await ask(conn)


async def by_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(text("select 1"))


async def by_raw_connection(engine: AsyncEngine) -> None:
    (await engine.raw_connection()).close() if IS_1_4 else await run_close(await engine.raw_connection())


async def run_close(raw: Any) -> None:
    from sqlalchemy.util import greenlet_spawn

    await greenlet_spawn(raw.close)


async def by_run_sync(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.run_sync(in_greenlet)


def in_greenlet(session: Any) -> None:
    session.execute(text("select 1"))


WAYS = [by_connect, by_await, by_begin, by_session, by_run_sync]


@pytest.mark.parametrize("way", WAYS)
def test_line_that_awaits(signals: Signals, url: str, way: Callable[[AsyncEngine], Any]) -> None:
    """The line of a checkout is the program's, not one of SQLAlchemy's, its greenlet's or the loop's."""

    async def main() -> None:
        async with engine_on(url) as engine:
            await way(engine)

    with hooked(signals, long_hold=1e-6):
        asyncio.run(main())
    (record,) = signals.logged("long_hold_returned")
    (span,) = signals.named("pool.checkout")
    lines = str(attribute(span, "checked_out_at") or _event_of(span)["otel_pgpool.checked_out_at"]).splitlines()
    expected = [in_greenlet.__name__, way.__name__] if way is by_run_sync else [way.__name__]
    names = [line.rpartition(" ")[2] for line in lines]
    assert names[: len(expected)] == expected
    assert all(HERE in line for line in lines)
    assert record.attributes["otel_pgpool.connection.pid"] > 0


def _event_of(span: Any) -> Any:
    (happened,) = [happened for happened in span.events if happened.name == "pool.long_hold"]
    return happened.attributes


@pytest.mark.parametrize("begun", [False, True])
def test_long_hold(signals: Signals, url: str, begun: bool) -> None:
    """The record of a long hold has the task, the stack of its coroutines, and the status where the driver tells it."""

    async def inner(conn: Any, done: Callable[[], Any]) -> None:
        await until(done)
        if begun:
            await ask(conn)

    async def main() -> None:
        async with engine_on(url) as engine, engine.connect() as conn:
            if begun:
                await ask(conn)
            await inner(conn, lambda: signals.logged("long_hold"))

    async def run() -> None:
        await asyncio.create_task(main(), name="holder")

    with hooked(signals, long_hold=0.3):
        asyncio.run(run())
    (record,) = signals.logged("long_hold")
    attributes = record.attributes
    assert attributes["otel_pgpool.task.name"] == "holder"
    assert attributes["otel_pgpool.transaction.status"] == ("in_transaction" if begun else "idle")
    assert attributes["otel_pgpool.connection.pid"] > 0
    stack = attributes["code.stacktrace"]
    assert "in main" in stack.splitlines()[0]
    assert "in inner" in stack
    assert "in main" in attributes["otel_pgpool.checked_out_at"] or "main" in attributes["otel_pgpool.checked_out_at"]


def test_abandoned_generator(signals: Signals, url: str) -> None:
    """The connection of a generator that nobody finishes is held, with its line, until it is collected."""

    async def rows(engine: AsyncEngine) -> AsyncIterator[int]:
        async with engine.connect() as conn:
            yield int(await ask(conn))
            yield 2

    async def main() -> None:
        async with engine_on(url, pool_size=1, max_overflow=0, pool_timeout=0.05) as engine:
            generator = rows(engine)
            await generator.__anext__()
            await until(lambda: signals.logged("long_hold"))
            with pytest.raises(exc.TimeoutError):
                await use(engine)
            await generator.aclose()
            await use(engine)

    with hooked(signals, long_hold=0.2):
        asyncio.run(main())
    (record,) = signals.logged("timeout")
    generator = shown_name("test_abandoned_generator.<locals>.rows")
    assert f" {generator} (pid" in record.attributes["otel_pgpool.holders"][0]
    assert told(signals, "outcome") == ["timeout", "released", "released"]


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropped(signals: Signals, instrumentation: None, url: str) -> None:
    """A connection that its task drops is reclaimed, once the garbage collector has found it."""

    async def drop(engine: AsyncEngine) -> None:
        await engine.connect()

    async def main() -> None:
        async with engine_on(url, pool_size=1) as engine:
            await asyncio.create_task(drop(engine))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gc.collect()
            await until(lambda: told(signals, "outcome"))
            await use(engine)

    asyncio.run(main())
    assert told(signals, "outcome") == ["reclaimed", "released"]
    reason = "drained" if IS_1_4 else "reclaimed"  # SQLAlchemy 1.4 keeps such a connection
    assert signals.values("otel_pgpool.connections.discarded", name_of(url))[(reason,)] == 1
    assert signals.live() == []


# Connections that fail


def test_outage(signals: Signals, instrumentation: None, dsn: str, driver: str) -> None:
    """A server that cannot be reached is an outage, told in the system's words and without the password."""

    async def main(port: int) -> None:
        async with engine_on(driver_url(dsn, driver, port=port)) as engine:
            with pytest.raises((exc.DBAPIError, OSError)):
                await use(engine)
            assert told_of(engine, "status") == "unreachable"
            assert told_of(engine, "connecting") == 0

    with refused_port() as port:
        asyncio.run(main(port))
    failed = signals.checkout()
    expected = "ConnectionRefusedError" if driver == "asyncpg" else "OperationalError"
    assert (failed.attributes or {})["error.type"] == expected
    assert "Connection refused" in str(status_of(failed)[1])
    assert is_child(signals.one("pool.connect"), failed)
    assert len(signals.logged("outage_started")) == 1
    assert str(make_url(driver_url(dsn, driver)).password) not in signals.everything()


def test_refusal(signals: Signals, instrumentation: None, dsn: str, driver: str) -> None:
    """A server that is up and refuses the connection is no outage."""

    async def main() -> None:
        async with engine_on(driver_url(dsn, driver, dbname="nowhere")) as engine:
            with pytest.raises(Exception, match="does not exist"):  # SQLAlchemy 1.4 raises asyncpg's
                await use(engine)

    asyncio.run(main())
    failed = signals.checkout()
    assert (failed.attributes or {})["error.type"] == REFUSED[driver]
    assert 'database "nowhere" does not exist' in str(status_of(failed)[1])
    assert signals.logged("outage_started") == []
    (refused,) = signals.logged("connect_refused")
    assert "cannot be used" not in refused.record.getMessage()


def test_pre_ping(signals: Signals, instrumentation: None, url: str, admin: connection) -> None:
    """A dead connection that the pool has found and replaced is a failed attempt of the checkout."""

    async def main() -> None:
        async with engine_on(url, pool_size=1, pool_pre_ping=True) as engine:
            kill(admin, [await use(engine)])
            await use(engine)

    asyncio.run(main())
    assert told(signals, "path") == ["new", "new"]
    assert told(signals, "retries") == [0, 1]
    assert signals.values("otel_pgpool.connections.discarded", name_of(url))[("broken",)] == 1


def test_disconnect(signals: Signals, instrumentation: None, url: str, admin: connection) -> None:
    """A connection that dies in the hands of its holder is discarded, with its checkout."""

    async def main() -> None:
        async with engine_on(url, pool_size=1) as engine:
            async with engine.connect() as conn:
                kill(admin, [int(await ask(conn, "select pg_backend_pid()"))])
                with pytest.raises(exc.DBAPIError):
                    await ask(conn)
            await use(engine)

    asyncio.run(main())
    assert told(signals, "outcome") == ["discarded", "released"]
    assert signals.values("otel_pgpool.connections.discarded", name_of(url))[("broken",)] == 1


def test_invalidated(signals: Signals, instrumentation: None, url: str) -> None:
    """A connection that the program invalidates is discarded."""

    async def main() -> None:
        async with engine_on(url, pool_size=1) as engine, engine.connect() as conn:
            await conn.invalidate()

    asyncio.run(main())
    assert told(signals, "outcome") == ["discarded"]
    assert signals.values("otel_pgpool.connections.discarded", name_of(url)) == {("returned_closed",): 1}


# The instrumentation


@pytest.mark.parametrize("spans", ["off", "slow", "parent"])
def test_modes(signals: Signals, url: str, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without spans of ordinary checkouts, holds and levels are known all the same."""
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "60")

    async def main() -> None:
        async with engine_on(url) as engine:
            for _ in range(3):
                await use(engine)
            async with engine.connect():
                levels = signals.values("db.client.connection.count", name_of(url))
                assert levels == {("used",): 1, ("idle",): 0}
            assert told_of(engine, "checkouts") == {"idle": 3, "queued": 0, "new": 1}

    with hooked(signals, spans=spans):
        asyncio.run(main())
    assert signals.named("pool.checkout") == []


def test_engine_made_before(signals: Signals, url: str) -> None:
    """Engines that exist are observed; uninstrumented, they continue as ever."""

    async def main() -> None:
        async with engine_on(url) as engine:
            await use(engine)
            held = await engine.connect()
            with hooked(signals):
                await use(engine)
                await held.close()
                held = await engine.connect()
                assert told(signals, "path") == ["new"]
            assert told(signals, "outcome") == ["released", "released"]
            await held.close()
            await use(engine)
            assert len(signals.named("pool.checkout")) == 2

    asyncio.run(main())


def test_synchronous_engine_in_a_task(
    signals: Signals, instrumentation: None, url: str, engines: Engines, dsn: str
) -> None:
    """A synchronous engine that a task uses, even inside of a call of an asynchronous one, is a thread's as ever."""
    other = engines(pool_logging_name="of the thread")

    def both(session: Any) -> None:
        session.execute(text("select 1"))
        with other.connect() as conn:
            conn.execute(text("select 1"))

    async def main() -> None:
        async with engine_on(url) as engine, AsyncSession(engine) as session:
            await session.run_sync(both)

    asyncio.run(main())
    of_thread, of_task = signals.named("pool.checkout")
    assert attribute(of_thread, "task.name") is None
    assert attribute(of_task, "task.name") is not None
    assert told(signals, "path") == ["new", "new"]


def test_async_creator(signals: Signals, instrumentation: None, dsn: str) -> None:
    """With a creator of the program's, each span says where it leads."""
    asyncpg = pytest.importorskip("asyncpg")
    if IS_1_4:
        pytest.skip("SQLAlchemy 1.4 has no async_creator")

    async def main() -> None:
        async with engine_on("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(dsn)) as engine:
            await use(engine)
            await use(engine)

    asyncio.run(main())
    assert told(signals, "path") == ["new", "idle"]
    ports = [(span.attributes or {})["server.port"] for span in signals.named("pool.checkout")]
    assert ports == [make_url(dsn).port] * 2


def test_other_database(signals: Signals, instrumentation: None) -> None:
    """Another database's engines are left alone."""
    engine = create_engine("sqlite://")
    engine.connect().close()
    engine.dispose()
    assert signals.named("pool.checkout") == []
