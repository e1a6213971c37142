"""Pools of a program's own connection class, as it uses them. Type-checked, never run: ``tests/test_typing.py``."""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection, cursor
from psycopg2.extras import LoggingConnection, RealDictCursor
from typing_extensions import assert_type

from otel_pgpool import ConnectionPool


class Shop(connection):
    """A connection class of a program."""

    def orders(self) -> list[int]:
        return []


def prepare(conn: Shop) -> None:
    conn.orders()


def prepare_any(conn: connection) -> None:
    conn.set_session(readonly=True)


def make_shop(dsn: str) -> Shop:
    return Shop(dsn)


def the_factory_decides() -> None:
    assert_type(ConnectionPool(1, 2), ConnectionPool[connection])
    assert_type(ConnectionPool(1, 2, "host=db"), ConnectionPool)
    assert_type(ConnectionPool(1, 2, "host=db", Shop), ConnectionPool[Shop])
    assert_type(ConnectionPool(1, 2, connection_factory=make_shop), ConnectionPool[Shop])
    assert_type(
        ConnectionPool(min_size=1, max_size=2, connection_factory=LoggingConnection).getconn(), LoggingConnection
    )
    assert_type(ConnectionPool(1, 2, connection_factory=None, cursor_factory=RealDictCursor), ConnectionPool)
    ConnectionPool(1, 2, connection_factory=Shop, configure=prepare, check=Shop.orders, reset=prepare_any)
    ConnectionPool(1, 2, connection_factory=Shop, check=ConnectionPool.check_connection)
    ConnectionPool(1, 2, check=ConnectionPool.check_connection)


def checked_out(pool: ConnectionPool[Shop]) -> list[int]:
    with pool.connection() as conn, conn.cursor() as cur:
        assert_type(conn, Shop)
        assert_type(cur, cursor)
    with pool.connection(timeout=5, expected_hold=300) as conn:
        assert_type(conn, Shop)
    with pool as opened:
        assert_type(opened, ConnectionPool[Shop])
    assert_type(pool.getconn("key"), Shop)
    pool.putconn(pool.getconn())
    return pool.getconn().orders()


def configured_by_the_environment() -> None:
    assert_type(ConnectionPool.from_env(), ConnectionPool)
    assert_type(ConnectionPool.from_env(connection_factory=Shop), ConnectionPool[Shop])
    assert_type(ShopPool.from_env(name="shop"), ShopPool)
    assert_type(ShopPool.from_env(connection_factory=Shop), ShopPool)
    assert_type(ConnectionPool[Shop].from_env(connection_factory=Shop, min_size=1), ConnectionPool[Shop])


def of_any_connection(pool: ConnectionPool) -> int:
    return pool.min_size + pool.max_size


def of_any_class(pool: ConnectionPool[Shop], whatever: ConnectionPool[Any]) -> int:
    return of_any_connection(pool) + of_any_connection(whatever)


class ShopPool(ConnectionPool[Shop]):
    """A pool class of a program."""

    def first_order(self) -> int:
        with self.connection() as conn:
            return conn.orders()[0]


def mistakes_are_found(plain: ConnectionPool) -> None:
    """Strict mode reports each of these comments that hides no mistake."""
    plain.getconn().orders()  # type: ignore[attr-defined]
    with plain.connection() as conn:
        conn.orders()  # type: ignore[attr-defined]
    pool: ConnectionPool[Shop] = plain  # type: ignore[assignment]
    ConnectionPool[int]  # type: ignore[type-var]
    ConnectionPool.from_env(connection_factory=str)  # type: ignore[type-var]
    ConnectionPool(1, 2, connection_factory=str)  # type: ignore[type-var]
    ConnectionPool(1, 2, dsn=5)  # type: ignore[arg-type]
    ConnectionPool(1, 2, min_size="1")  # type: ignore[arg-type]
    ConnectionPool(1, 2, connect_kwargs=["host"])  # type: ignore[arg-type]
    pool.min_size = 2  # type: ignore[misc]
    pool.max_waiting = 2  # type: ignore[attr-defined]
    pool.resize(min_size="2", max_size=4)  # type: ignore[arg-type]
