"""The pools that are measured with and without the instrumentation, each used by its own methods."""
# ruff: noqa: PLC0415 - a process imports only the pool that it measures

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from psycopg2.extensions import parse_dsn

if TYPE_CHECKING:
    from psycopg2.extensions import connection

SOCKETS = (1, 5)
"""The number of connections that a pool keeps, and its maximum."""


class MeasuredPool(Protocol):
    """A pool of a library, whose constructor opens its first connection."""

    name: str
    """The name of the pool in telemetry."""

    def acquire(self) -> Any:
        """Acquire a connection."""

    def release(self, given: Any) -> None:
        """Release a connection."""

    def driver(self, given: Any) -> connection:
        """Return the connection of the driver inside the object that `acquire` returned."""
        ...

    def spin(self, times: int) -> None:
        """Acquire and release a connection this number of times."""

    def close(self) -> None:
        """Close the pool."""


class Psycopg2Pool:
    """``psycopg2.pool.ThreadedConnectionPool``."""

    def __init__(self, dsn: str) -> None:
        from psycopg2.pool import ThreadedConnectionPool

        self.pool = ThreadedConnectionPool(*SOCKETS, dsn)
        self.acquire, self.release, self.close = self.pool.getconn, self.pool.putconn, self.pool.closeall
        at = parse_dsn(dsn)
        self.name = f"{at['host']}:{at['port']}/{at['dbname']}"

    def driver(self, given: connection) -> connection:
        return given

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class PsycopgPool:
    """``psycopg_pool.ConnectionPool``."""

    name = "shop"

    def __init__(self, dsn: str) -> None:
        from psycopg_pool import ConnectionPool

        kept, allowed = SOCKETS
        self.pool: Any = ConnectionPool(dsn, min_size=kept, max_size=allowed, name=self.name, open=True)
        self.pool.wait()
        self.acquire, self.release, self.close = self.pool.getconn, self.pool.putconn, self.pool.close

    def driver(self, given: Any) -> Any:
        return given

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class Engine:
    """An engine of SQLAlchemy, with a ``QueuePool``."""

    name = "shop"

    def __init__(self, dsn: str) -> None:
        from sqlalchemy import URL, create_engine

        at = parse_dsn(dsn)
        url = URL.create(
            "postgresql+psycopg2", at.get("user"), at.get("password"), at["host"], int(at["port"]), at["dbname"]
        )
        kept, allowed = SOCKETS
        self.engine = create_engine(url, pool_size=kept, max_overflow=allowed - kept, pool_logging_name=self.name)
        self.acquire, self.close = self.engine.raw_connection, self.engine.dispose
        self.spin(1)

    def release(self, given: Any) -> None:
        given.close()

    def driver(self, given: Any) -> connection:
        driver: connection = given.driver_connection
        return driver

    def spin(self, times: int) -> None:
        engine = self.engine
        for _ in range(times):
            connection = engine.raw_connection()
            connection.close()
