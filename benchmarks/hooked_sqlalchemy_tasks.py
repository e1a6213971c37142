"""SQLAlchemy's engines for asyncio with the instrumentation and without: one task that takes and gives back."""
# ruff: noqa: PLC0415 - our code is imported only where the hook is on

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import parse_dsn

from benchmarks.checkout import EACH, forbid_sdk, take_turns
from benchmarks.hooked import HOOKED, UNHOOKED
from benchmarks.lenders import SOCKETS
from benchmarks.row import Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

CYCLES, SLICES = 200, 20


class Tasks:
    """A loop with an engine, whose checkouts are made by one task."""

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
        """Check out so often, one after another."""

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
    """One task, in a process that cannot import OpenTelemetry's SDK."""
    [name] = contestants
    forbid_sdk()
    if name == HOOKED:
        from otel_pgpool import PgPoolInstrumentor

        PgPoolInstrumentor().instrument(spans="off")
    tasks = Tasks(driver, dsn)
    played = take_turns({name: tasks.spin}, CYCLES, SLICES)
    tasks.close()
    return played


ROWS = tuple(
    Row(
        name=f"hooked-sqlalchemy-{driver}",
        work=f"one task, `async with engine.connect(): pass` on {driver}, the hook on, spans off, no SDK installed",
        contestants=(HOOKED, UNHOOKED),
        columns=EACH,
        measure=partial(measure, driver),
        targets=(Target("against the same without the hook", ratio("us", HOOKED, UNHOOKED), 1.5),),
        note="Each has a process of its own, one after the other in each round.",
    )
    for driver in ("psycopg", "asyncpg")
)
