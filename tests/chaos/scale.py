"""Thousands of threads that want one of a few connections, and hundreds of pools in one process."""

from __future__ import annotations

import threading
import time
from collections import Counter
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
from otel_pgpool.runtime.deadline import stop_watching
from otel_pgpool.telemetry import Telemetry
from tests.chaos.checks import ProcessUsage, SpanCounter, usage_at_rest
from tests.chaos.monitors import BackendMonitor
from tests.chaos.pools import silence_logs
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from collections.abc import Iterator


WAITERS_NAME = "otel_pgpool many waiters"
SHARED_CONNECTIONS = 10
WAITER_TIMEOUT = 120.0
"""Seconds that each waiter would wait."""
STACK = 256 * 1024
"""Bytes of each thread's stack."""
MAX_KB_PER_WAITER = 100.0
"""KB for each waiter: about 20 with 2,000 waiters, more with fewer."""
SERVED = "served"


@dataclass(frozen=True)
class WaitersResult:
    """The result of many waiters."""

    threads: int
    maxconn: int
    outcomes: dict[str, int]
    """How many were served, and how many got which error."""
    seconds: float
    """Seconds from the release of the connections until the last waiter was served."""
    waiting: int
    """Waiters at the release of the connections."""
    resident: float
    """KB for each waiter, its thread included."""
    most_backends: int
    threads_left: int
    descriptors_left: int
    found: list[str]
    """Violations that were found during the run."""

    @property
    def served(self) -> int:
        """How many waiters got a connection."""
        return self.outcomes.get(SERVED, 0)

    @property
    def violations(self) -> list[str]:
        """Return what must not happen, and did."""
        found = [*self.found]
        if self.waiting != self.threads:
            found.append(f"{self.waiting} of {self.threads} threads wait")
        if self.outcomes != {SERVED: self.threads}:
            found.append(f"of {self.threads} threads: {self.outcomes}")
        if self.most_backends != self.maxconn:
            found.append(f"{self.most_backends} backends of {self.maxconn}")
        if self.resident > MAX_KB_PER_WAITER:
            found.append(f"{self.resident:.0f} KB for each that waits")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        yield "### Many waiters"
        yield ""
        yield (
            f"{self.waiting:,} threads wait at once for {self.maxconn} connections, all of which are held and "
            f"then released. {self.served:,} are served, the last after {self.seconds:.3f} s, with "
            f"{sum(self.outcomes.values()) - self.served} errors and at most {self.most_backends} backends. "
            f"Each waiter takes {self.resident:.0f} KB, its thread included. Left: {self.threads_left} "
            f"threads, {self.descriptors_left} file descriptors."
        )


class Waiters:
    """Threads that each check out once."""

    def __init__(self, pool: ConnectionPool, size: int) -> None:
        self.outcomes: list[str] = []
        """The outcome of each thread: served, or the name of its error."""
        self._pool = pool
        self._threads = [threading.Thread(target=self._ask, name="waiter", daemon=True) for _ in range(size)]

    def start(self) -> None:
        """Start the threads, and wait until all are in the queue."""
        before = threading.stack_size(STACK)
        for thread in self._threads:
            thread.start()
        threading.stack_size(before)
        deadline = monotonic() + WAITER_TIMEOUT / 2
        while self._pool.stats().waiting < len(self._threads) and monotonic() < deadline:
            time.sleep(0.005)

    def join(self) -> None:
        """Wait for the end of the threads."""
        deadline = monotonic() + WAITER_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _ask(self) -> None:
        try:
            with self._pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("select 1")
        except Exception as error:  # noqa: BLE001 - any error is counted
            self.outcomes.append(type(error).__name__)
        else:
            self.outcomes.append(SERVED)


def play_waiters(threads: int = 2_000) -> WaitersResult:
    """Let many threads wait at once for one of ten connections."""
    with ExitStack() as stage:
        stage.enter_context(silence_logs())
        server = stage.enter_context(ClonedServer())
        dsn = make_dsn(server.dsn, application_name=WAITERS_NAME)
        before = ProcessUsage.now()
        pool = ConnectionPool(SHARED_CONNECTIONS, SHARED_CONNECTIONS, dsn, timeout=WAITER_TIMEOUT)
        with BackendMonitor(server, WAITERS_NAME, pool, SHARED_CONNECTIONS) as backend_monitor:
            waiters = Waiters(pool, threads)
            with ExitStack() as all_held:
                for _ in range(SHARED_CONNECTIONS):
                    all_held.enter_context(pool.connection())
                waiters.start()
                waiting, resident = pool.stats().waiting, ProcessUsage.now().resident
            began = monotonic()
            waiters.join()
            seconds = monotonic() - began
        stats = pool.stats()
        found = sorted(backend_monitor.violations)
        if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
            found.append(f"at rest: {pool!r}")
        pool.close()
        after = usage_at_rest(before)
        return WaitersResult(
            threads=threads,
            maxconn=SHARED_CONNECTIONS,
            outcomes=dict(Counter(waiters.outcomes)),
            seconds=seconds,
            waiting=waiting,
            resident=(resident - before.resident) * 1024 / threads,
            most_backends=backend_monitor.most,
            threads_left=max(0, after.threads - before.threads),
            descriptors_left=max(0, after.descriptors - before.descriptors),
            found=found,
        )


POOLS_NAME = "otel_pgpool many pools"
OTHER_CLIENTS = 20
"""Connections of the server that are not for the pools."""
MAX_KB_PER_POOL = 200.0
"""KB for each pool, its connection included."""


@dataclass(frozen=True)
class PoolsResult:
    """The result of many pools: threads, KB and descriptors of this process for each pool."""

    pools: int
    seconds: float
    """Seconds until each pool had connected and served once."""
    threads_new: float
    """Threads for each pool before its first connection."""
    resident_new: float
    descriptors_new: float
    threads_open: float
    """Threads for each pool with one idle connection, which has been checked out once."""
    resident_open: float
    descriptors_open: float
    backends: int
    threads_left: int
    """Threads left after all pools were closed."""
    descriptors_left: int

    @property
    def violations(self) -> list[str]:
        """Return what must not happen, and did."""
        found = []
        if self.threads_open > 1 or self.threads_new:
            found.append(f"{self.threads_new:g} threads for each new pool, {self.threads_open:g} for each that works")
        if self.backends != self.pools:
            found.append(f"{self.backends} backends of {self.pools} pools with one connection each")
        if self.descriptors_open > 1 or self.descriptors_new:
            found.append(
                f"{self.descriptors_new:g} descriptors for each new pool, {self.descriptors_open:g} with a connection"
            )
        if self.resident_open > MAX_KB_PER_POOL:
            found.append(f"{self.resident_open:.0f} KB for each pool")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
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


def play_pools(pools: int = 500) -> PoolsResult:
    """Create many pools, check out from each, close them."""
    with ExitStack() as stage:
        server = stage.enter_context(ClonedServer(settings={"max_connections": pools + OTHER_CLIENTS}))
        dsn = make_dsn(server.dsn, application_name=POOLS_NAME)
        tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        tracers.add_span_processor(SpanCounter())
        stage.callback(meters.shutdown)
        stage.callback(tracers.shutdown)
        stop_watching()  # this thread may be another run's, and end only now
        cold = ProcessUsage.now()
        warm_up(dsn, tracers, meters)
        before = usage_at_rest(cold)  # its threads may take a moment to end
        made = [
            ConnectionPool(0, 5, dsn, name=f"pool-{n}", open=False, observer=Telemetry(tracers, meters))
            for n in range(pools)
        ]
        new = ProcessUsage.now()
        began = monotonic()
        for pool in made:
            use_once(pool)
        seconds = monotonic() - began
        meters.force_flush()
        opened = ProcessUsage.now()
        backends = count_backends(server.dsn)
        for pool in made:
            pool.close()
        after = usage_at_rest(before)
        # Threads and descriptors of another run may have ended meanwhile.
        others, files = min(before.threads, after.threads), min(before.descriptors, after.descriptors)
        return PoolsResult(
            pools=pools,
            seconds=seconds,
            threads_new=(new.threads - others) / pools,
            resident_new=(new.resident - before.resident) * 1024 / pools,
            descriptors_new=(new.descriptors - files) / pools,
            threads_open=(opened.threads - others) / pools,
            resident_open=(opened.resident - before.resident) * 1024 / pools,
            descriptors_open=(opened.descriptors - files) / pools,
            backends=backends,
            threads_left=max(0, after.threads - before.threads),
            descriptors_left=max(0, after.descriptors - before.descriptors),
        )


def warm_up(dsn: str, tracers: TracerProvider, meters: MeterProvider) -> None:
    """Create a first pool, so that what it loads is not counted for the others."""
    with ConnectionPool(0, 1, dsn, name="first", observer=Telemetry(tracers, meters)) as pool:
        use_once(pool)


def use_once(pool: ConnectionPool) -> None:
    """Check out once."""
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("select 1")


def count_backends(dsn: str) -> int:
    """Return the number of backends of all pools."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where application_name = %s", (POOLS_NAME,))
        (number,) = cursor.fetchone() or (0,)
        return int(number)
