"""Thousands of threads that want one of a few connections at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from otel_pgpool import ConnectionPool
from otel_pgpool.demo.postgres import PostgresServer
from tests.chaos.census import Census
from tests.chaos.footprint import Footprint, at_rest
from tests.chaos.quiet import silenced

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "otel_pgpool crowd"
MAXCONN = 10
PATIENCE = 120.0
"""Seconds that each of a crowd would wait."""
STACK = 256 * 1024
"""Bytes for each of its threads."""
MOST_RESIDENT = 100.0
"""KB for each that waits: some 20 of 2,000, more where few share what all need."""
SERVED = "served"


@dataclass(frozen=True)
class Crowded:
    """What came of many threads that wanted a connection at once."""

    threads: int
    maxconn: int
    outcomes: dict[str, int]
    """How many were served, and how many saw which error."""
    seconds: float
    """From then until the last was served."""
    waiting: int
    """At the moment when the ten connections came back."""
    resident: float
    """KB for each that waited, its thread included."""
    most_backends: int
    threads_left: int
    descriptors_left: int
    found: list[str]
    """What was seen meanwhile that should not be."""

    @property
    def served(self) -> int:
        """How many got a connection."""
        return self.outcomes.get(SERVED, 0)

    @property
    def violations(self) -> list[str]:
        """What should not be."""
        found = [*self.found]
        if self.waiting != self.threads:
            found.append(f"{self.waiting} of {self.threads} threads wait")
        if self.outcomes != {SERVED: self.threads}:
            found.append(f"of {self.threads} threads: {self.outcomes}")
        if self.most_backends != self.maxconn:
            found.append(f"{self.most_backends} server processes of {self.maxconn}")
        if self.resident > MOST_RESIDENT:
            found.append(f"{self.resident:.0f} KB for each that waits")
        if self.threads_left or self.descriptors_left:
            found.append(f"{self.threads_left} threads and {self.descriptors_left} descriptors are left")
        return found

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        yield "### A crowd"
        yield ""
        yield (
            f"{self.waiting:,} threads wait at once for {self.maxconn} connections, all of which are held and "
            f"then released. {self.served:,} are served, the last after {self.seconds:.3f} s, with "
            f"{sum(self.outcomes.values()) - self.served} errors and never more than {self.most_backends} server "
            f"processes. Each waiter takes {self.resident:.0f} KB, its thread included. Left: {self.threads_left} "
            f"threads, {self.descriptors_left} file descriptors."
        )


class Crowd:
    """Threads that each ask once, and use what they get."""

    def __init__(self, pool: ConnectionPool, size: int) -> None:
        self.outcomes: list[str] = []
        """Of each that has come back: served, or the name of its error."""
        self._pool = pool
        self._threads = [threading.Thread(target=self._ask, name="crowd", daemon=True) for _ in range(size)]

    def gather(self) -> None:
        """Let all ask, and wait until all wait."""
        before = threading.stack_size(STACK)
        for thread in self._threads:
            thread.start()
        threading.stack_size(before)
        deadline = monotonic() + PATIENCE / 2
        while self._pool.stats().waiting < len(self._threads) and monotonic() < deadline:
            time.sleep(0.005)

    def disperse(self) -> None:
        """Wait until the last has gone, or must have."""
        deadline = monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _ask(self) -> None:
        try:
            with self._pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("select 1")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            self.outcomes.append(type(error).__name__)
        else:
            self.outcomes.append(SERVED)


def play(threads: int = 2_000) -> Crowded:
    """Let so many threads ask at once for one of ten connections."""
    with ExitStack() as stage:
        stage.enter_context(silenced())
        server = stage.enter_context(PostgresServer())
        dsn = make_dsn(server.dsn, application_name=NAME)
        before = Footprint.now()
        pool = ConnectionPool(MAXCONN, MAXCONN, dsn, timeout=PATIENCE)
        with Census(server, NAME, pool, MAXCONN) as census:
            crowd = Crowd(pool, threads)
            with ExitStack() as all_lent:
                for _ in range(MAXCONN):
                    all_lent.enter_context(pool.connection())
                crowd.gather()
                waiting, resident = pool.stats().waiting, Footprint.now().resident
            began = monotonic()
            crowd.disperse()
            seconds = monotonic() - began
        stats = pool.stats()
        found = sorted(census.violations)
        if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
            found.append(f"at rest: {pool!r}")
        pool.close()
        after = at_rest(before)
        return Crowded(
            threads=threads,
            maxconn=MAXCONN,
            outcomes=dict(Counter(crowd.outcomes)),
            seconds=seconds,
            waiting=waiting,
            resident=(resident - before.resident) * 1024 / threads,
            most_backends=census.most,
            threads_left=max(0, after.threads - before.threads),
            descriptors_left=max(0, after.descriptors - before.descriptors),
            found=found,
        )
