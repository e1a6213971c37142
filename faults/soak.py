"""A million checkouts with telemetry exporting: what grows with them?"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic

from faults.footprint import Footprint, at_rest
from faults.sink import Sink
from otel_pgpool import ConnectionPool, otlp
from otel_pgpool.cli.postgres import PostgresServer
from otel_pgpool.telemetry import names

POOLS, THREADS, MAXCONN = 2, 2, 1
"""Two pools, so that each has series of its own; more threads than connections, so that some queue."""
LOOKS = 10
MOST_BEHIND = 1_500
"""Spans that may wait for their export; the SDK throws away what is over 2,048."""
ENVIRONMENT = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}


@dataclass
class Soaked:
    """What came of it."""

    checkouts: int
    seconds: float = 0.0
    at: list[int] = field(default_factory=list)
    """Checkouts after which the following were looked at."""
    resident: list[float] = field(default_factory=list)
    """MB."""
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    series: list[int] = field(default_factory=list)
    """Pairs of a metric and an attribute set in the last export."""
    series_twice: int = 0
    """Points of one export that had the metric and the attributes of another."""
    exports: int = 0
    """Of metrics."""
    spans: int = 0
    """Of checkouts, that have arrived."""
    undelivered: int = 0
    """Spans that have not."""
    threads_left: int = 0

    def look(self, done: int, series: int) -> None:
        """Look at this process."""
        now = Footprint.now()
        self.at.append(done)
        self.resident.append(now.resident)
        self.threads.append(now.threads)
        self.descriptors.append(now.descriptors)
        self.series.append(series)

    @property
    def grown(self) -> float:
        """MB that came after the first look."""
        return self.resident[-1] - self.resident[0]


def play(checkouts: int = 1_000_000) -> Soaked:
    """Check out so often. It sets the process's providers: it needs one of its own."""
    soaked = Soaked(checkouts)
    with ExitStack() as stage:
        server = stage.enter_context(PostgresServer())
        sink = stage.enter_context(Sink())
        os.environ.update(ENVIRONMENT, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
        before = Footprint.now()
        providers = stage.enter_context(otlp.configure("soak"))
        pools = [ConnectionPool(1, MAXCONN, server.dsn, name=f"soak-{n}") for n in range(POOLS)]
        began = monotonic()
        work(soaked, pools, providers, sink)
        soaked.seconds = monotonic() - began
        for pool in pools:
            pool.close()
        providers.shutdown(30)
        counts = sink.counts()
        soaked.spans, soaked.undelivered = counts["spans"][names.CHECKOUT], providers.undelivered.spans
        soaked.series_twice, soaked.exports = counts["twice"], counts["exports"]
        soaked.threads_left = at_rest(before).threads - before.threads
    return soaked


def work(soaked: Soaked, pools: list[ConnectionPool], providers: otlp.Providers, sink: Sink) -> None:
    """Let all borrow until enough is done, and look at the process after each tenth of it."""
    goal, over = soaked.checkouts, threading.Event()

    def borrow(pool: ConnectionPool) -> None:
        while not over.is_set():
            while providers.undelivered.spans > MOST_BEHIND:
                time.sleep(0.002)
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("select 1")

    threads = [threading.Thread(target=borrow, args=(pool,)) for pool in pools for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for look in range(1, LOOKS + 1):
        while (done := sum(served(pool) for pool in pools)) < goal * look // LOOKS:
            time.sleep(0.02)
        soaked.look(done, len(sink.counts()["series"]))
        print(f"soak: {soaked.at[-1]:,} checkouts, {soaked.resident[-1]:.1f} MB", flush=True)
    over.set()
    for thread in threads:
        thread.join()
    soaked.checkouts = sum(served(pool) for pool in pools)


def served(pool: ConnectionPool) -> int:
    """How many checkouts."""
    return sum(pool.stats().checkouts.values())
