"""Thousands of threads that want one of a few connections at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from textwrap import wrap
from time import monotonic
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from faults.census import Census
from faults.document import WIDTH
from faults.footprint import Footprint, at_rest
from faults.quiet import silenced
from otel_pgpool import ConnectionPool
from otel_pgpool.cli.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "otel_pgpool crowd"
MAXCONN = 10
PATIENCE = 120.0
"""Seconds that each of a crowd would wait."""
STACK = 256 * 1024
"""Bytes for each of its threads."""


@dataclass(frozen=True)
class Crowded:
    """What came of many threads that wanted a connection at once."""

    threads: int
    maxconn: int
    served: int
    errors: dict[str, int]
    seconds: float
    """From then until the last was served."""
    longest_wait: float
    waiting: int
    """At the moment when the ten connections came back."""
    resident: float
    """KB for each that waited, its thread included."""
    most_backends: int
    threads_left: int
    descriptors_left: int
    violations: list[str]

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        yield "### A crowd"
        yield ""
        yield from wrap(
            f"{self.waiting:,} threads wait at once for one of {self.maxconn} connections, all of which are lent, and "
            f"then come back: {self.served:,} are served, the last after {self.seconds:.3f} s, with "
            f"{sum(self.errors.values())} errors and never more than {self.most_backends} server processes. Each that "
            f"waits takes {self.resident:.0f} KB, its thread included. Left: {self.threads_left} threads, "
            f"{self.descriptors_left} file descriptors.",
            WIDTH,
        )


class Crowd:
    """Threads that each ask once, and use what they get."""

    def __init__(self, pool: ConnectionPool, size: int) -> None:
        self.errors: Counter[str] = Counter()
        self.waits: list[float] = []
        """Seconds, of each that was served."""
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
        """Wait until the last has gone."""
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        asked = monotonic()
        try:
            with self._pool.connection() as conn, conn.cursor() as cursor:
                self.waits.append(monotonic() - asked)
                cursor.execute("select 1")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            self.errors[type(error).__name__] += 1


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
        violations = sorted(census.violations)
        if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
            violations.append(f"at rest: {pool!r}")
        pool.close()
        after = at_rest(before)
        return Crowded(
            threads=threads,
            maxconn=MAXCONN,
            served=len(crowd.waits),
            errors=dict(crowd.errors),
            seconds=seconds,
            longest_wait=max(crowd.waits),
            waiting=waiting,
            resident=(resident - before.resident) * 1024 / threads,
            most_backends=census.most,
            threads_left=max(0, after.threads - before.threads),
            descriptors_left=max(0, after.descriptors - before.descriptors),
            violations=violations,
        )
