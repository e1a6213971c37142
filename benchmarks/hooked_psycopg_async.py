"""psycopg_pool's pools for asyncio with the instrumentation and without: one task, and a crowd of tasks."""

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
    """A loop with a pool of psycopg_pool."""

    def __init__(self, dsn: str, least: int, most: int) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        place = parse_dsn(dsn)
        self.place = {"database": place["dbname"], **{key: place[key] for key in ("host", "port", "user")}}
        self.pool: Any = AsyncConnectionPool(dsn, min_size=least, max_size=most, timeout=60, open=False)
        self.run(self.pool.open(wait=True))
        self.checkout = self.bare

    async def bare(self) -> None:
        """One checkout."""
        async with self.pool.connection():
            pass

    async def query(self) -> None:
        """One checkout for a query."""
        async with self.pool.connection() as connection:
            await connection.execute("select 1")


class Written(hooked_asyncpg.Written):
    """What a person writes around the pool to leave the same telemetry."""

    def take(self) -> Any:
        """Give the context of a checkout."""
        return self.pool.connection()

    def backend(self, connection: Any) -> int:
        """Give the process of a connection."""
        pid: int = connection.info.backend_pid
        return pid


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """One task."""
    return hooked_asyncpg.measure(Loop, contestants, dsn)


def measure_traced(contestants: Sequence[str], dsn: str) -> Round:
    """One task, whose checkouts are recorded."""
    return hooked_asyncpg.measure_traced(Loop, Written, contestants, dsn)


def measure_crowd(contestants: Sequence[str], dsn: str) -> Round:
    """Many tasks."""
    return hooked_asyncpg.measure_crowd(Loop, contestants, dsn)


ROWS = rows(
    "hooked-psycopg-async",
    "pool.connection()",
    (measure, measure_traced, measure_crowd),
    "A checkout without a query sends nothing.",
)
