"""The pools behind one face. Each is used by its own shortest idiom, so that none pays for the comparison."""
# ruff: noqa: PLC0415 - a process imports only the pool that it measures

from __future__ import annotations

import importlib
import time
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2

from benchmarks.row import DBUTILS, OURS, PSYCOPG, QUEUEPOOL, STOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.delay import Delay

POLL = 0.001
"""Seconds between the attempts of a caller on the stock pool, which cannot wait."""


@dataclass(frozen=True)
class Setup:
    """What a pool is made for."""

    dsn: str
    minconn: int
    maxconn: int
    timeout: float = 60.0
    telemetry: bool = False
    """Ours only: with its default observer."""
    checked: bool = False
    """Let psycopg_pool, QueuePool and DBUtils test a connection before they lend it."""
    delay: Delay | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for ``psycopg2.connect``."""
        return {"connection_factory": self.delay.psycopg2_factory()} if self.delay else {}

    def connect(self) -> Any:
        """Connect by psycopg2."""
        return psycopg2.connect(self.dsn, **self.options)


class Peer(Protocol):
    """A pool."""

    @property
    def connection(self) -> Callable[[], AbstractContextManager[Any]]:
        """Borrow a connection for a block."""
        ...

    def spin(self, times: int) -> None:
        """Check a connection out and give it back, ``times`` over, with nothing between."""

    def close(self) -> None:
        """Close the pool."""


class Ours:
    """``otel_pgpool.ConnectionPool``."""

    def __init__(self, setup: Setup) -> None:
        from otel_pgpool import ConnectionPool

        observer: dict[str, Any] = {} if setup.telemetry else {"observer": None}
        self.pool: Any = ConnectionPool(
            setup.minconn, setup.maxconn, setup.dsn, timeout=setup.timeout, **observer, **setup.options
        )
        self.connection = self.pool.connection
        self.close = self.pool.close

    def spin(self, times: int) -> None:
        """With a block, the pool's first face."""
        pool = self.pool
        for _ in range(times):
            with pool.connection():
                pass


class Stock:
    """``psycopg2.pool.ThreadedConnectionPool``, asked again every millisecond while it is exhausted."""

    def __init__(self, setup: Setup) -> None:
        from psycopg2.pool import ThreadedConnectionPool

        self.pool = ThreadedConnectionPool(setup.minconn, setup.maxconn, setup.dsn, **setup.options)
        self.close = self.pool.closeall

    def connection(self) -> AbstractContextManager[Any]:
        """Borrow by polling."""
        return Polled(self.pool)

    def spin(self, times: int) -> None:
        """``getconn`` and ``putconn``, all it has."""
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class Polled:
    """A block around the stock pool's ``getconn`` and ``putconn``."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __enter__(self) -> Any:
        while True:
            try:
                self._connection = self._pool.getconn()
            except psycopg2.pool.PoolError:
                time.sleep(POLL)
            else:
                return self._connection

    def __exit__(self, *_: object) -> None:
        self._pool.putconn(self._connection)


class PsycopgPool:
    """``psycopg_pool.ConnectionPool``, on psycopg 3."""

    def __init__(self, setup: Setup) -> None:
        from psycopg_pool import ConnectionPool

        options: dict[str, Any] = {"check": ConnectionPool.check_connection} if setup.checked else {}
        if setup.delay:
            options["connection_class"] = setup.delay.psycopg_class()
        self.pool: Any = ConnectionPool(
            setup.dsn, min_size=setup.minconn, max_size=setup.maxconn, timeout=setup.timeout, open=True, **options
        )
        self.pool.wait()
        self.connection = self.pool.connection
        self.close = self.pool.close

    def spin(self, times: int) -> None:
        """With a block."""
        pool = self.pool
        for _ in range(times):
            with pool.connection():
                pass


class QueuePool:
    """``sqlalchemy.pool.QueuePool``."""

    def __init__(self, setup: Setup) -> None:
        import sqlalchemy.pool
        from sqlalchemy.dialects.postgresql import psycopg2 as dialects

        make_dialect: Any = dialects.PGDialect_psycopg2
        self.pool: Any = sqlalchemy.pool.QueuePool(
            setup.connect,
            pool_size=setup.minconn,
            max_overflow=setup.maxconn - setup.minconn,
            timeout=setup.timeout,
            pre_ping=setup.checked,
            dialect=make_dialect(dbapi=psycopg2),
        )
        self.close = self.pool.dispose

    def connection(self) -> AbstractContextManager[Any]:
        """Borrow for a block."""
        return closing(self.pool.connect())

    def spin(self, times: int) -> None:
        """``connect`` and ``close``."""
        pool = self.pool
        for _ in range(times):
            pool.connect().close()


class DBUtils:
    """``dbutils.pooled_db.PooledDB``, told to wait and to keep what it has opened."""

    def __init__(self, setup: Setup) -> None:
        options = {"ping": "select 1"} if setup.checked else {}
        self.pool: Any = importlib.import_module("dbutils.pooled_db").PooledDB(
            psycopg2,
            mincached=setup.minconn,
            maxcached=setup.maxconn,
            maxconnections=setup.maxconn,
            blocking=True,
            **options,
            **setup.options,
            dsn=setup.dsn,
        )
        self.connection = self.pool.connection
        self.close = self.pool.close

    def spin(self, times: int) -> None:
        """``connection`` and ``close``."""
        pool = self.pool
        for _ in range(times):
            pool.connection().close()


MAKERS: dict[str, Callable[[Setup], Peer]] = {
    OURS: Ours,
    STOCK: Stock,
    PSYCOPG: PsycopgPool,
    QUEUEPOOL: QueuePool,
    DBUTILS: DBUtils,
}


def warm(peer: Peer, connections: int) -> None:
    """Have ``connections`` open: hold as many at once."""
    with ExitStack() as held:
        for _ in range(connections):
            held.enter_context(peer.connection())
