"""One fault happening to one pool, from the first good query before it to the books afterwards."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from contextvars import copy_context
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn

from benchmarks.peers import Setup
from benchmarks.row import OURS
from faults.application import Application
from faults.census import Census
from faults.footprint import Footprint, at_rest
from faults.ground import one_server
from faults.pools import capacity, make
from otel_pgpool.telemetry.names import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from faults.ground import Ground

NAME = "otel_pgpool faults"
MAXCONN, WORKERS = 4, 8
TIMEOUT = 2.0
"""Seconds that a caller waits for a connection."""
GRACE = 0.25
"""Seconds beyond its timeout after which a caller of ours has been forgotten."""
PATIENCE = 15.0
"""Seconds within which good work has to be done again."""


@dataclass(frozen=True)
class Fault:
    """One way to break it."""

    title: str
    cause: str
    strike: Callable[[Scene], float]
    """Break it, and mend it; when it was mended, as a reading of the monotonic clock."""
    ground: Callable[[ExitStack], Ground] = one_server
    beside: int = 0
    """Server processes that somebody else has on the pool's behalf meanwhile."""
    ours_alone: bool = False
    """It needs something that the peers do not have."""


@dataclass
class Outcome:
    """What came of it."""

    attempts: int
    errors: dict[str, int]
    first_good: float | None
    lost: int
    hung: int
    threads: int
    """Left behind when the pool was closed."""
    descriptors: int
    """Likewise, open file descriptors."""
    most_backends: int
    longest_wait: float
    longest_work: float
    longest_stall: float
    """Seconds that the machine kept a thread which does nothing, at most."""
    violations: list[str]
    notes: list[str]
    """What else went wrong, with the fault's own words."""

    def wrongs(self) -> list[str]:
        """All that a pool which loses nothing must not show."""
        left = {
            "connections lost": self.lost,
            "workers hang": self.hung,
            "threads left": self.threads,
            "file descriptors left": self.descriptors,
        }
        counted = [f"{number} {what}" for what, number in left.items() if number]
        return [*self.violations, *self.notes, *counted, *["never good again"] * (self.first_good is None)]


class Scene:
    """What a fault can lay its hands on."""

    def __init__(self, ground: Ground, app: Application, away: float) -> None:
        self.ground = ground
        self.server = ground.server
        self.app = app
        self.away = away
        """Seconds that something is away, where it goes away."""
        self.notes: list[str] = []

    def admin(self) -> connection:
        """A connection past the proxy."""
        conn = psycopg2.connect(self.ground.server.dsn, application_name="admin")
        conn.autocommit = True
        return conn

    def ask(self, statement: str, *parameters: object) -> list[Any]:
        """The first column of a statement's rows."""
        conn = self.admin()
        try:
            with conn.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []
        finally:
            conn.close()

    def backends(self) -> list[int]:
        """Those of the pool."""
        return self.ask("select pid from pg_stat_activity where application_name = %s", NAME)

    def in_state(self, state: str, query: str = "") -> list[int]:
        """Those that are at something."""
        return self.ask(
            "select pid from pg_stat_activity where application_name = %s and state = %s and lower(query) like %s",
            NAME,
            state,
            f"{query}%",
        )

    def kill(self, pids: list[int]) -> None:
        """End backends as an administrator does, and wait until they are gone."""
        self.ask("select pg_terminate_backend(pid, 5000) from unnest(%s) as pid", pids)

    def wait_for(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait for something that the fault needs."""
        deadline = monotonic() + patience
        while not condition():
            if monotonic() > deadline:
                raise AssertionError("the fault could not be brought about")
            time.sleep(0.005)


def play(fault: Fault, name: str, away: float) -> Outcome:
    """Let a fault happen to a pool while an application works on it."""
    with ExitStack() as stage:
        ground = fault.ground(stage)
        threads, before = set(threading.enumerate()), Footprint.now()
        dsn = make_dsn(**{"application_name": NAME, "connect_timeout": 2, **ground.dsn})
        pool = make(name, Setup(dsn, MAXCONN, MAXCONN, timeout=TIMEOUT, checked=True), ground.options)
        app = Application(pool.connection, WORKERS)
        scene = Scene(ground, app, away)
        ours = pool.pool if name == OURS else None
        with Census(ground.server, NAME, ours, MAXCONN, fault.beside) as census:
            app.start()
            scene.wait_for(lambda: sum(each.committed for each in [*app.attempts]) >= 5 * WORKERS)
            mended = copy_context().run(fault.strike, scene)  # where a block is never left, its span stays current
            with suppress(AssertionError):
                scene.wait_for(lambda: app.first_good(mended) is not None)
            hung = app.stop(TIMEOUT + PATIENCE)
            lost = MAXCONN - capacity(pool.connection, MAXCONN, TIMEOUT + GRACE)
        app.check_the_books(ground.books.dsn)
        violations = [*app.violations, *census.violations]
        if ours is not None:
            violations += check_ours(pool, app, census.longest_stall)
        closing = threading.Thread(target=pool.close, daemon=True)  # some never come back
        closing.start()
        closing.join(PATIENCE)
        left = wait_for_threads(threads)
        descriptors = max(0, at_rest(before).descriptors - before.descriptors)
        return Outcome(
            attempts=len(app.attempts),
            errors=dict(app.errors()),
            first_good=app.first_good(mended),
            lost=lost,
            hung=hung,
            threads=left,
            descriptors=descriptors,
            most_backends=census.most,
            longest_wait=app.longest_wait(),
            longest_work=app.longest_work(),
            longest_stall=census.longest_stall,
            violations=violations,
            notes=scene.notes,
        )


def check_ours(pool: Any, app: Application, stall: float) -> list[str]:
    """The invariants that only our pool can be asked for."""
    stats = pool.pool.stats()
    found = []
    if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
        found.append(f"at rest: {stats.used} used, {stats.idle} idle of {stats.size}, {stats.waiting} waiting")
    if app.longest_wait() > TIMEOUT + GRACE + stall:
        found.append(f"a caller was inside for {app.longest_wait():.3f} s, where nobody stood still for {stall:.3f} s")
    asked = sum(stats.checkouts.values()) + stats.timeouts + stats.errors
    if pool.spans.ended[CHECKOUT] != asked:
        found.append(f"{pool.spans.ended[CHECKOUT]} spans of {asked} checkouts")
    return found


def wait_for_threads(before: set[threading.Thread], patience: float = 3.0) -> int:
    """How many threads stay, but for the one that watches deadlines, which belongs to the process."""
    deadline = monotonic() + patience
    while True:
        left = [
            thread
            for thread in threading.enumerate()
            if thread not in before and thread.is_alive() and thread.name not in {"otel_pgpool-deadlines", "proxy"}
        ]
        if not left or monotonic() > deadline:
            return len(left)
        time.sleep(0.01)
