"""SQLAlchemy's engines for asyncio with and without the instrumentation: checkouts of one task."""
# ruff: noqa: PLC0415 - the package is imported only in the process that is instrumented

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import parse_dsn

from benchmarks.checkout import EACH, forbid_sdk, take_turns
from benchmarks.hooked import INSTRUMENTED, NOT_INSTRUMENTED
from benchmarks.measured_pools import SOCKETS
from benchmarks.row import Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

CYCLES, SLICES = 200, 20


class Tasks:
    """An event loop with an engine, from which one task checks out."""

    def __init__(self, driver: str, dsn: str) -> None:
        from sqlalchemy import URL
        from sqlalchemy.ext.asyncio import create_async_engine

        at = parse_dsn(dsn)
        url = URL.create(
            f"postgresql+{driver}", at.get("user"), at.get("password"), at["host"], int(at["port"]), at["dbname"]
        )
        kept, allowed = SOCKETS
        self.loop = asyncio.new_event_loop()
        self.engine: Any = create_async_engine(url, pool_size=kept, max_overflow=allowed - kept)
        self.spin(1)

    def spin(self, times: int) -> None:
        """Check out this number of times, one after the other."""

        async def work() -> None:
            engine = self.engine
            for _ in range(times):
                async with engine.connect():
                    pass

        self.loop.run_until_complete(work())

    def close(self) -> None:
        """Close the engine and its loop."""
        self.loop.run_until_complete(self.engine.dispose())
        self.loop.close()


def measure(driver: str, contestants: Sequence[str], dsn: str) -> Round:
    """Measure one task, in a process that cannot import OpenTelemetry's SDK."""
    [name] = contestants
    forbid_sdk()
    if name == INSTRUMENTED:
        from otel_pgpool import PgPoolInstrumentor

        PgPoolInstrumentor().instrument(spans="off")
    tasks = Tasks(driver, dsn)
    played = take_turns({name: tasks.spin}, CYCLES, SLICES)
    tasks.close()
    return played


ROWS = tuple(
    Row(
        name=f"hooked-sqlalchemy-{driver}",
        work=f"one task, `async with engine.connect(): pass` on {driver}, instrumented, spans off, no SDK installed",
        contestants=(INSTRUMENTED, NOT_INSTRUMENTED),
        columns=EACH,
        measure=partial(measure, driver),
        targets=(
            Target("against the same without the instrumentation", ratio("us", INSTRUMENTED, NOT_INSTRUMENTED), 1.5),
        ),
        note="Each contestant has a process of its own, one after the other in each round.",
    )
    for driver in ("psycopg", "asyncpg")
)
