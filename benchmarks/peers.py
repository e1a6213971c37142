"""The compared pools behind one interface. Each is used in its own shortest way, without a wrapper that costs time."""
# ruff: noqa: PLC0415 - a process imports only the pool that it measures

from __future__ import annotations

import importlib
import time
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2

from benchmarks.row import DBUTILS, OURS, PSYCOPG, PSYCOPG2, QUEUEPOOL

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.delay import Delay

POLL = 0.001
"""Seconds between the attempts of a caller of psycopg2's pool, which cannot wait."""


@dataclass(frozen=True)
class Setup:
    """The settings of a pool."""

    dsn: str
    minconn: int
    maxconn: int
    timeout: float = 60.0
    telemetry: bool = False
    """Whether `Ours` has its default observer."""
    checked: bool = False
    """Whether psycopg_pool, QueuePool and DBUtils check a connection before they hand it out."""
    delay: Delay | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for ``psycopg2.connect``."""
        return {"connection_factory": self.delay.psycopg2_factory()} if self.delay else {}

    def connect(self) -> Any:
        """Connect by psycopg2."""
        return psycopg2.connect(self.dsn, **self.options)


class Peer(Protocol):
    """A pool."""

    @property
    def connection(self) -> Callable[[], AbstractContextManager[Any]]:
        """Check out a connection for a block."""
        ...

    def spin(self, times: int) -> None:
        """Check out this number of times, and do nothing with the connection."""

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
        """Check out in blocks."""
        pool = self.pool
        for _ in range(times):
            with pool.connection():
                pass


class Psycopg2Pool:
    """``psycopg2.pool.ThreadedConnectionPool``, whose callers try again every millisecond while it is exhausted."""

    def __init__(self, setup: Setup) -> None:
        from psycopg2.pool import ThreadedConnectionPool

        self.pool = ThreadedConnectionPool(setup.minconn, setup.maxconn, setup.dsn, **setup.options)
        self.close = self.pool.closeall

    def connection(self) -> AbstractContextManager[Any]:
        """Check out a connection for a block, by repeated attempts."""
        return Polled(self.pool)

    def spin(self, times: int) -> None:
        """Check out by ``getconn`` and ``putconn``."""
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)


class Polled:
    """A block around the ``getconn`` and ``putconn`` of psycopg2's pool."""

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
        """Check out in blocks."""
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
        """Check out a connection for a block."""
        return closing(self.pool.connect())

    def spin(self, times: int) -> None:
        """Check out by ``connect`` and ``close``."""
        pool = self.pool
        for _ in range(times):
            pool.connect().close()


class DBUtils:
    """``dbutils.pooled_db.PooledDB``, which waits and keeps its connections with these options."""

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
        """Check out by ``connection`` and ``close``."""
        pool = self.pool
        for _ in range(times):
            pool.connection().close()


MAKERS: dict[str, Callable[[Setup], Peer]] = {
    OURS: Ours,
    PSYCOPG2: Psycopg2Pool,
    PSYCOPG: PsycopgPool,
    QUEUEPOOL: QueuePool,
    DBUTILS: DBUtils,
}


def warm(peer: Peer, connections: int) -> None:
    """Open a number of connections, by holding as many at once."""
    with ExitStack() as held:
        for _ in range(connections):
            held.enter_context(peer.connection())
