"""Pools of every instrumented kind behind one synchronous interface, for tests of what does not depend on the kind.

with opened("asyncpg", dsn) as pool:
    held = pool.acquire()
    pool.run(held, "select 1")
    pool.release(held)
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg_pool
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.sqlalchemy_drivers import IS_1_4, driver_url
from tests.support.urls import url_of
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 2


class Psycopg2:
    """The interface, on a pool of psycopg2. All connections are in autocommit, except within BEGIN and ROLLBACK."""

    def __init__(self, dsn: str) -> None:
        self.pool = ThreadedConnectionPool(1, SIZE, dsn)

    def acquire(self) -> Any:
        conn = self.pool.getconn()
        conn.autocommit = True
        return conn

    def run(self, held: Any, sql: str) -> None:
        with held.cursor() as cursor:
            cursor.execute(sql)

    def release(self, held: Any) -> None:
        self.pool.putconn(held)

    def sizes(self) -> Any:
        return len(self.pool._pool), len(self.pool._used)

    def close(self) -> None:
        self.pool.closeall()


class PsycopgPool(Psycopg2):
    def __init__(self, dsn: str, cls: type = psycopg_pool.ConnectionPool) -> None:
        is_null = issubclass(cls, psycopg_pool.NullConnectionPool)
        self.pool: Any = cls(
            url_of(dsn), min_size=0 if is_null else 1, max_size=SIZE, kwargs={"autocommit": True}, open=True
        )
        self.pool.wait(PATIENCE)

    def acquire(self) -> Any:
        return self.pool.getconn()

    def run(self, held: Any, sql: str) -> None:
        held.execute(sql)

    def sizes(self) -> Any:
        stats = self.pool.get_stats()
        return [stats.get(key, 0) for key in ("pool_size", "pool_available", "connections_num", "requests_num")]

    def close(self) -> None:
        self.pool.close()


class NullPsycopgPool(PsycopgPool):
    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, psycopg_pool.NullConnectionPool)


class Engine(Psycopg2):
    driver = "psycopg2"

    def __init__(self, dsn: str) -> None:
        self.engine: Any = create_engine(driver_url(dsn, self.driver), pool_size=SIZE, max_overflow=0)

    def acquire(self) -> Any:
        return self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def run(self, held: Any, sql: str) -> None:
        held.execute(text(sql))

    def release(self, held: Any) -> None:
        held.close()

    def sizes(self) -> Any:
        return self.engine.pool.status()

    def close(self) -> None:
        self.engine.dispose()


class PsycopgEngine(Engine):
    driver = "psycopg"


class Pg8000Engine(Engine):
    driver = "pg8000"


class OfCoroutines:
    """A pool whose loop runs in a thread of its own."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.pool: Any = self.wait_for(self.open(dsn))

    def wait_for(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    async def open(self, dsn: str) -> Any:
        raise NotImplementedError

    def acquire(self) -> Any:
        return self.wait_for(self.acquire_in_loop())

    async def acquire_in_loop(self) -> Any:
        return await self.pool.acquire()

    def run(self, held: Any, sql: str) -> None:
        self.wait_for(held.execute(sql))

    def release(self, held: Any) -> None:
        self.wait_for(self.pool.release(held))

    def sizes(self) -> Any:
        return self.pool.get_size(), self.pool.get_idle_size()

    def close(self) -> None:
        self.wait_for(self.close_in_loop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def close_in_loop(self) -> None:
        await self.pool.close()


class Asyncpg(OfCoroutines):
    async def open(self, dsn: str) -> Any:
        return await asyncpg.create_pool(url_of(dsn), min_size=1, max_size=SIZE)


class AsyncPsycopgPool(OfCoroutines):
    cls: Any = psycopg_pool.AsyncConnectionPool
    least = 1

    async def open(self, dsn: str) -> Any:
        pool = self.cls(url_of(dsn), min_size=self.least, max_size=SIZE, kwargs={"autocommit": True}, open=False)
        await pool.open(wait=True, timeout=PATIENCE)
        return pool

    async def acquire_in_loop(self) -> Any:
        return await self.pool.getconn()

    def release(self, held: Any) -> None:
        self.wait_for(self.pool.putconn(held))

    sizes = PsycopgPool.sizes


class AsyncNullPsycopgPool(AsyncPsycopgPool):
    cls = psycopg_pool.AsyncNullConnectionPool
    least = 0


class AsyncEngine(OfCoroutines):
    driver = "asyncpg"

    async def open(self, dsn: str) -> Any:
        options: dict[str, Any] = {} if self.driver == "asyncpg" else {"poolclass": NullPool}
        self.engine = create_async_engine(driver_url(dsn, self.driver), **options)
        return self.engine.pool

    async def acquire_in_loop(self) -> Any:
        conn = await self.engine.connect()
        return await conn.execution_options(isolation_level="AUTOCOMMIT")

    def run(self, held: Any, sql: str) -> None:
        self.wait_for(held.execute(text(sql)))

    def release(self, held: Any) -> None:
        self.wait_for(held.close())

    def sizes(self) -> Any:
        return self.pool.status()

    async def close_in_loop(self) -> None:
        await self.engine.dispose()


class AsyncPsycopgEngine(AsyncEngine):
    driver = "psycopg"


KINDS: dict[str, Callable[[str], Any]] = {
    "psycopg2": Psycopg2,
    "psycopg_pool": PsycopgPool,
    "psycopg_pool-null": NullPsycopgPool,
    "psycopg_pool-asyncio": AsyncPsycopgPool,
    "psycopg_pool-asyncio-null": AsyncNullPsycopgPool,
    "asyncpg": Asyncpg,
    "sqlalchemy-psycopg2": Engine,
    "sqlalchemy-pg8000": Pg8000Engine,
    "sqlalchemy-asyncpg": AsyncEngine,
    **({} if IS_1_4 else {"sqlalchemy-psycopg": PsycopgEngine, "sqlalchemy-psycopg-asyncio": AsyncPsycopgEngine}),
}


@contextmanager
def opened(kind: str, dsn: str) -> Iterator[Any]:
    """Have a pool open."""
    pool = KINDS[kind](dsn)
    try:
        yield pool
    finally:
        pool.close()
