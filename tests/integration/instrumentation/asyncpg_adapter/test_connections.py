"""Connections of asyncpg's pools: opened, closed for each of the reasons, levels, callbacks that raise, outages."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support import telemetry
from tests.support.asyncpg_pools import TIMEOUTS, backend, run, tracker_of, until
from tests.support.instrumentation import name_of
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.telemetry import Signals

pytestmark = pytest.mark.usefixtures("instrumentation")


def discards(signals: Signals) -> list[tuple[str, Any]]:
    """Return the reasons of the discards, and their errors."""
    records = [record for record in signals.records.all if record.event in ("discarded", "connection_lost")]
    return [(record.attributes["otel_pgpool.reason"], record.attributes.get("error.type")) for record in records]


def outcomes(signals: Signals) -> list[str]:
    return [str(span.attributes["otel_pgpool.outcome"]) for span in signals.named("pool.checkout") if span.attributes]


async def ending(pool: Any, admin: connection, pid: int) -> None:
    with admin.cursor() as cur:
        cur.execute("select pg_terminate_backend(%s)", (pid,))


# Connects


class Comparable(asyncpg.Connection):  # type: ignore[misc,type-arg]
    """A connection class with an equality of its own, which makes it unhashable."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparable)

    __hash__ = None  # type: ignore[assignment]


def test_connections_that_are_equal(dsn: str, create: Callable[..., Any]) -> None:
    """Each counts by itself, whatever a program's class of connections says about equality."""

    async def main() -> Any:
        async with create(min_size=3, max_size=3, connection_class=Comparable) as pool:
            tracker = tracker_of(pool)
            await pool.fetchval("select 1")
        return tracker.stats()

    stats = run(main())
    assert (stats.created, stats.discarded["closed"]) == (3, 3)


def test_the_first_connections(signals: Signals, dsn: str, create: Callable[..., Any]) -> None:
    """Those of `min_size` are nobody's; the pool is reported before its first checkout, with its levels."""

    async def main() -> None:
        async with create(min_size=2, max_size=5) as pool:
            name = name_of(dsn)
            assert signals.values("db.client.connection.count", name) == {("used",): 0, ("idle",): 2}
            assert signals.value("db.client.connection.max", pool_name=name) == 5
            assert signals.value("db.client.connection.idle.min", pool_name=name) == 2
            assert signals.value("db.client.connection.idle.max", pool_name=name) == 5
            async with pool.acquire():
                assert signals.values("db.client.connection.count", name) == {("used",): 1, ("idle",): 1}

    run(main())
    connects = signals.named("pool.connect")
    assert [span.parent for span in connects] == [None, None]


def test_a_connect_in_an_acquire(signals: Signals, dsn: str, create: Callable[..., Any]) -> None:
    """It is the checkout's child, with the address that was reached; the path is `new`."""

    async def main() -> None:
        async with create() as pool:
            await backend(pool)

    run(main())
    connect, checkout = signals.one("pool.connect"), signals.checkout()
    assert connect.parent is not None
    assert connect.parent.span_id == checkout.context.span_id
    assert checkout.attributes["otel_pgpool.path"] == "new"
    assert connect.attributes["server.address"] == "127.0.0.1"


def test_a_connect_with_a_timeout_in_the_past(signals: Signals, create: Callable[..., Any]) -> None:
    """An acquire that has no time at all fails with asyncpg's error, and leaves no connect behind."""

    async def main() -> None:
        async with create() as pool:
            with pytest.raises(TIMEOUTS):
                await pool.acquire(timeout=0)
            await backend(pool)
            stats = tracker_of(pool).stats()
            assert (stats.connecting, stats.timeouts, stats.size) == (0, 1, 1)

    run(main())


def test_an_outage_and_a_refusal(signals: Signals, own_server: PostgresServer) -> None:
    """A server that is away is an outage; one that answers with a refusal is not, and ends it."""
    url = url_of(own_server.dsn)

    async def main() -> None:
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            own_server.stop()
            await until(lambda: pool.get_size() == 0)
            with pytest.raises(OSError, match="Connect call failed"):
                await backend(pool)
            assert tracker_of(pool).stats().status == "unreachable"
            own_server.start()
            pool.set_connect_args(url_of(own_server.dsn, password="wrong"))
            with pytest.raises(asyncpg.InvalidPasswordError):
                await backend(pool)
            assert tracker_of(pool).stats().status == "ok"
            pool.set_connect_args(url)
            await backend(pool)

    run(main())
    (started,) = signals.logged("outage_started")
    assert started.attributes["error.type"] == "ConnectionRefusedError"
    assert "Connection refused" in started.record.getMessage()
    assert len(signals.logged("outage_ended")) == 1
    (refused,) = signals.logged("connect_refused")
    assert refused.attributes["error.type"] == "28P01"
    failed = signals.named("pool.checkout")[:2]
    assert [span.attributes["error.type"] for span in failed] == ["ConnectionRefusedError", "28P01"]
    assert failed[1].status.description == 'password authentication failed for user "postgres"'
    assert "wrong" not in signals.everything()


def test_init_that_raises(signals: Signals, create: Callable[..., Any]) -> None:
    """The application gets its own error; a server that was reached is no outage."""
    errors: list[Exception] = [ValueError("secret")]

    async def init(conn: Any) -> None:
        if errors:
            raise errors.pop()

    async def main() -> None:
        async with create(init=init) as pool:
            with pytest.raises(ValueError, match="secret"):
                await backend(pool)
            await backend(pool)
            assert tracker_of(pool).stats().created == 1

    run(main())
    assert outcomes(signals) == ["error", "released"]
    assert not signals.logged("outage_started")
    assert "secret" not in signals.everything()


def test_setup_that_raises(signals: Signals, create: Callable[..., Any]) -> None:
    """The connection that was rejected is discarded, and the checkout has the error's class."""
    errors: list[Exception] = [ValueError("secret")]

    async def setup(conn: Any) -> None:
        if errors:
            raise errors.pop()

    async def main() -> None:
        async with create(min_size=1, setup=setup) as pool:
            with pytest.raises(ValueError, match="secret"):
                await backend(pool)
            await until(lambda: pool.get_idle_size() == pool.get_size())
            await backend(pool)

    run(main())
    assert discards(signals)[0] == ("check_failed", "ValueError")
    assert outcomes(signals) == ["error", "released"]
    assert "secret" not in signals.everything()


def test_a_pool_that_cannot_be_initialized(signals: Signals, dsn: str) -> None:
    """The error is asyncpg's, the connect is reported, and the pool is not."""
    url = url_of(dsn, dbname="nowhere")

    async def main() -> None:
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asyncpg.create_pool(url, min_size=1)

    run(main())
    (connect,) = signals.named("pool.connect")
    assert connect.attributes["error.type"] == "3D000"
    assert not signals.points("db.client.connection.count", name_of(dsn).replace("postgres", "nowhere"))


# Discards


async def close_by_holder(pool: Any, admin: connection) -> None:
    async with pool.acquire() as conn:
        await conn.close()


async def terminate_by_holder(pool: Any, admin: connection) -> None:
    conn = await pool.acquire()
    conn.terminate()
    await pool.release(conn)


async def lose_while_held(pool: Any, admin: connection) -> None:
    async with pool.acquire() as conn:
        await ending(pool, admin, conn.get_server_pid())
        await until(conn._con.is_closed if conn._con else lambda: True)


async def lose_in_query(pool: Any, admin: connection) -> None:
    async with pool.acquire() as conn:
        query = asyncio.create_task(conn.execute("select pg_sleep(20)"))
        await asyncio.sleep(0.05)
        await ending(pool, admin, conn.get_server_pid())
        (result,) = await asyncio.gather(query, return_exceptions=True)
        assert isinstance(result, asyncpg.PostgresError)


async def lose_while_idle(pool: Any, admin: connection) -> None:
    async with pool.acquire() as conn:
        lost = conn._con
    await ending(pool, admin, lost.get_server_pid())
    await until(lost.is_closed)  # and not until the pool is empty: asyncpg may fill it up to `min_size` at once


async def fail_reset(pool: Any, admin: connection) -> None:
    with pytest.raises(RuntimeError, match="secret"):
        async with pool.acquire() as conn:
            conn._con.fail_reset = True


async def expire(pool: Any, admin: connection) -> None:
    await backend(pool)
    await pool.expire_connections()
    await backend(pool)


async def expire_while_held(pool: Any, admin: connection) -> None:
    async with pool.acquire():
        await pool.expire_connections()


class Fragile(asyncpg.Connection):
    """A connection whose reset fails on request."""

    fail_reset = False

    async def reset(self, *, timeout: float | None = None) -> None:
        if self.fail_reset:
            raise RuntimeError("secret")
        await super().reset(timeout=timeout)


@pytest.mark.parametrize(
    ("deed", "reason", "outcome"),
    [
        (close_by_holder, ("returned_closed", None), "discarded"),
        (terminate_by_holder, ("returned_closed", None), "discarded"),
        (lose_while_held, ("broken", None), "discarded"),
        (lose_in_query, ("broken", None), "discarded"),
        (lose_while_idle, ("broken", None), "released"),
        (fail_reset, ("reset_failed", "RuntimeError"), "discarded"),
        (expire, ("drained", None), "released"),
        (expire_while_held, ("drained", None), "released"),
    ],
)
def test_a_discard(
    signals: Signals,
    admin: connection,
    create: Callable[..., Any],
    *,
    deed: Callable[[Any, connection], Awaitable[None]],
    reason: tuple[str, Any],
    outcome: str,
) -> None:
    """A closed connection is counted once, with its reason; the hold ends, and the next caller is served."""

    async def main() -> None:
        async with create(min_size=1, max_size=1, connection_class=Fragile) as pool:
            await deed(pool, admin)
            await until(lambda: discards(signals))
            await until(lambda: pool.get_size() == pool.get_idle_size())
            assert discards(signals) == [reason]
            await asyncio.wait_for(backend(pool), 5)
            stats = tracker_of(pool).stats()
            assert stats.discarded == {reason[0]: 1}
            assert (stats.used, stats.size) == (0, 1)
            assert not tracker_of(pool).held

    run(main())
    assert outcomes(signals)[0] == outcome
    assert "secret" not in signals.everything()
    assert discards(signals)[1:] == [("closed", None)]


def test_a_worn_connection(signals: Signals, create: Callable[..., Any]) -> None:
    """A connection that has made `max_queries` queries is discarded as expired; that is no failure of the hold."""

    async def main() -> None:
        async with create(max_queries=1) as pool:
            await backend(pool)
            assert tracker_of(pool).stats().discarded == {"expired": 1}

    run(main())
    assert outcomes(signals) == ["released"]


def test_an_idle_connection(signals: Signals, create: Callable[..., Any]) -> None:
    """A connection that was not used for `max_inactive_connection_lifetime` is discarded as idle."""

    async def main() -> None:
        async with create(max_inactive_connection_lifetime=0.05) as pool:
            await backend(pool)
            await until(lambda: pool.get_size() == 0)
            assert tracker_of(pool).stats().discarded == {"idle": 1}

    run(main())


@pytest.mark.parametrize("way", ["close", "terminate"])
def test_the_end_of_a_pool(signals: Signals, dsn: str, create: Callable[..., Any], way: str) -> None:
    """Its connections are discarded as closed, holds of a terminated pool end, and its levels are gone."""

    async def main() -> None:
        pool = await create(min_size=2)
        if way == "close":
            await pool.close()
        else:
            await pool.acquire()
            pool.terminate()

    run(main())
    assert discards(signals) == [("closed", None)] * 2
    assert outcomes(signals) == ([] if way == "close" else ["discarded"])
    assert not signals.points("db.client.connection.count", name_of(dsn))
    assert not signals.live()


def test_a_dropped_pool(signals: Signals, create: Callable[..., Any]) -> None:
    """A pool that nobody closes is reported no more once it is collected, and its holds end as reclaimed."""

    async def main() -> None:
        pool = await create(min_size=1, max_size=1)
        conn = await pool.acquire()
        del conn, pool
        with pytest.warns(ResourceWarning, match="unclosed connection"):
            gc.collect()

    run(main())
    telemetry.until(lambda: outcomes(signals) == ["reclaimed"])
