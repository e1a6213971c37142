"""Pools as the hook meets them: their connections are taken and given back by hand, each in its own words."""
# ruff: noqa: PLC0415 - a process imports only the pool that it measures

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from psycopg2.extensions import parse_dsn

if TYPE_CHECKING:
    from psycopg2.extensions import connection

SOCKETS = (1, 5)
"""Connections kept, and allowed."""


class Lender(Protocol):
    """A pool that knows of no hook. Its first connection is made with it."""

    name: str
    """As telemetry calls it."""

    def take(self) -> Any:
        """Check out."""

    def give(self, taken: Any) -> None:
        """Give back."""

    def driver(self, taken: Any) -> connection:
        """psycopg2's own of what was taken."""
        ...

    def spin(self, times: int) -> None:
        """Take and give back, ``times`` over, with nothing between."""

    def close(self) -> None:
        """Close it."""


class Stock:
    """``psycopg2.pool.ThreadedConnectionPool``."""

    def __init__(self, dsn: str) -> None:
        from psycopg2.pool import ThreadedConnectionPool

        self.pool = ThreadedConnectionPool(*SOCKETS, dsn)
        self.take, self.give, self.close = self.pool.getconn, self.pool.putconn, self.pool.closeall
        at = parse_dsn(dsn)
        self.name = f"{at['host']}:{at['port']}/{at['dbname']}"

    def driver(self, taken: connection) -> connection:
        return taken

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class Psycopg:
    """``psycopg_pool.ConnectionPool``."""

    name = "shop"

    def __init__(self, dsn: str) -> None:
        from psycopg_pool import ConnectionPool

        kept, allowed = SOCKETS
        self.pool: Any = ConnectionPool(dsn, min_size=kept, max_size=allowed, name=self.name, open=True)
        self.pool.wait()
        self.take, self.give, self.close = self.pool.getconn, self.pool.putconn, self.pool.close

    def driver(self, taken: Any) -> Any:
        return taken

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class Alchemy:
    """SQLAlchemy's engine on a ``QueuePool``."""

    name = "shop"

    def __init__(self, dsn: str) -> None:
        from sqlalchemy import URL, create_engine

        at = parse_dsn(dsn)
        url = URL.create(
            "postgresql+psycopg2", at.get("user"), at.get("password"), at["host"], int(at["port"]), at["dbname"]
        )
        kept, allowed = SOCKETS
        self.engine = create_engine(url, pool_size=kept, max_overflow=allowed - kept, pool_logging_name=self.name)
        self.take, self.close = self.engine.raw_connection, self.engine.dispose
        self.spin(1)

    def give(self, taken: Any) -> None:
        taken.close()

    def driver(self, taken: Any) -> connection:
        driver: connection = taken.driver_connection
        return driver

    def spin(self, times: int) -> None:
        engine = self.engine
        for _ in range(times):
            connection = engine.raw_connection()
            connection.close()
