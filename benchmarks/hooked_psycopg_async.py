"""psycopg_pool's pools for asyncio with and without the instrumentation: one task, and many tasks at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import parse_dsn
from psycopg_pool import AsyncConnectionPool

from benchmarks import hooked_asyncpg
from benchmarks.hooked_asyncpg import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.row import Round


class Loop(hooked_asyncpg.Loop):
    """An event loop with a pool of psycopg_pool."""

    def __init__(self, dsn: str, least: int, most: int) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        place = parse_dsn(dsn)
        self.place = {"database": place["dbname"], **{key: place[key] for key in ("host", "port", "user")}}
        self.pool: Any = AsyncConnectionPool(dsn, min_size=least, max_size=most, timeout=60, open=False)
        self.run(self.pool.open(wait=True))
        self.checkout = self.bare

    async def bare(self) -> None:
        """Check out once, and do nothing."""
        async with self.pool.connection():
            pass

    async def query(self) -> None:
        """Check out once, and run a query."""
        async with self.pool.connection() as connection:
            await connection.execute("select 1")


class Written(hooked_asyncpg.Written):
    """The same telemetry, written by hand around the pool."""

    def acquiring(self) -> Any:
        """Return the context manager that acquires a connection."""
        return self.pool.connection()

    def backend(self, connection: Any) -> int:
        """Return the process id of a connection's backend."""
        pid: int = connection.info.backend_pid
        return pid


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """Measure one task."""
    return hooked_asyncpg.measure(Loop, contestants, dsn)


def measure_traced(contestants: Sequence[str], dsn: str) -> Round:
    """Measure one task with telemetry."""
    return hooked_asyncpg.measure_traced(Loop, Written, contestants, dsn)


def measure_crowd(contestants: Sequence[str], dsn: str) -> Round:
    """Measure many tasks."""
    return hooked_asyncpg.measure_crowd(Loop, contestants, dsn)


ROWS = rows(
    "hooked-psycopg-async",
    "pool.connection()",
    (measure, measure_traced, measure_crowd),
    "A checkout without a query sends nothing.",
)
