"""Hundreds of pools in one process: what each of them costs."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from psycopg2.extensions import make_dsn

from otel_pgpool import ConnectionPool
from otel_pgpool.demo.postgres import PostgresServer
from otel_pgpool.telemetry import Telemetry
from tests.chaos.footprint import Footprint, at_rest
from tests.chaos.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "otel_pgpool fleet"
OTHERS = 20
"""Places at the server for whoever is not one of the pools."""
MOST_RESIDENT = 200.0
"""KB for each pool, its connection's included."""


@dataclass(frozen=True)
class Sailed:
    """What came of it: threads, and KB of this process, for each pool."""

    pools: int
    seconds: float
    """Until each had made its connection and served once."""
    threads_new: float
    """Before its first connection."""
    resident_new: float
    descriptors_new: float
    threads_open: float
    """With one connection, which has been lent and is idle."""
    resident_open: float
    descriptors_open: float
    backends: int
    threads_left: int
    """In all, when they were closed."""
    descriptors_left: int

    @property
    def violations(self) -> list[str]:
        """What should not be."""
        found = []
        if self.threads_open > 1 or self.threads_new:
            found.append(f"{self.threads_new:g} threads for each new pool, {self.threads_open:g} for each that works")
        if self.backends != self.pools:
            found.append(f"{self.backends} server processes of {self.pools} pools with one connection each")
        if self.descriptors_open > 1 or self.descriptors_new:
            found.append(
                f"{self.descriptors_new:g} descriptors for each new pool, {self.descriptors_open:g} with a connection"
            )
        if self.resident_open > MOST_RESIDENT:
            found.append(f"{self.resident_open:.0f} KB for each pool")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        yield "### Many pools"
        yield ""
        yield (
            f"{self.pools:,} pools in one process, with spans and metrics; {self.seconds:.1f} s until each had "
            "connected and served once."
        )
        yield ""
        yield "| for each pool | threads | memory (KB) | file descriptors |"
        yield "| --- | ---: | ---: | ---: |"
        new = f"{self.threads_new:g} | {self.resident_new:.0f} | {self.descriptors_new:g}"
        opened = f"{self.threads_open:g} | {self.resident_open:.0f} | {self.descriptors_open:g}"
        yield f"| before its first connection | {new} |"
        yield f"| with one idle connection, which has been checked out once | {opened} |"
        yield f"| closed, in all | {self.threads_left} | | {self.descriptors_left} |"


def play(pools: int = 500) -> Sailed:
    """Make so many pools, borrow from each, close them."""
    with ExitStack() as stage:
        server = stage.enter_context(PostgresServer(settings={"max_connections": pools + OTHERS}))
        dsn = make_dsn(server.dsn, application_name=NAME)
        tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        tracers.add_span_processor(Tally())
        stage.callback(meters.shutdown)
        stage.callback(tracers.shutdown)
        cold = Footprint.now()
        warm_up(dsn, tracers, meters)
        before = at_rest(cold)  # its threads may take a moment to end
        fleet = [
            ConnectionPool(0, 5, dsn, name=f"fleet-{n}", open=False, observer=Telemetry(tracers, meters))
            for n in range(pools)
        ]
        new = Footprint.now()
        began = monotonic()
        for pool in fleet:
            use(pool)
        seconds = monotonic() - began
        meters.force_flush()
        opened = Footprint.now()
        backends = count(server.dsn)
        for pool in fleet:
            pool.close()
        after = at_rest(before)
        return Sailed(
            pools=pools,
            seconds=seconds,
            threads_new=(new.threads - before.threads) / pools,
            resident_new=(new.resident - before.resident) * 1024 / pools,
            descriptors_new=(new.descriptors - before.descriptors) / pools,
            threads_open=(opened.threads - before.threads) / pools,
            resident_open=(opened.resident - before.resident) * 1024 / pools,
            descriptors_open=(opened.descriptors - before.descriptors) / pools,
            backends=backends,
            threads_left=max(0, after.threads - before.threads),
            descriptors_left=max(0, after.descriptors - before.descriptors),
        )


def warm_up(dsn: str, tracers: TracerProvider, meters: MeterProvider) -> None:
    """Create a first pool, so that what it loads is not counted for the others."""
    with ConnectionPool(0, 1, dsn, name="first", observer=Telemetry(tracers, meters)) as pool:
        use(pool)


def use(pool: ConnectionPool) -> None:
    """Borrow once."""
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("select 1")


def count(dsn: str) -> int:
    """Return the number of server processes of all pools."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where application_name = %s", (NAME,))
        (number,) = cursor.fetchone() or (0,)
        return int(number)
