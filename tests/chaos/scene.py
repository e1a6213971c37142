"""One fault happening to one pool, from the first good query before it to the books afterwards."""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn

from benchmarks.peers import Setup
from benchmarks.row import OURS
from tests.chaos.application import Application
from tests.chaos.census import Census
from tests.chaos.footprint import Footprint, at_rest
from tests.chaos.ground import one_server
from tests.chaos.pools import capacity, make
from tests.chaos.verdict import GRACE, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from tests.chaos.application import Attempt
    from tests.chaos.ground import Ground
    from tests.chaos.pools import Ours

NAME = "otel_pgpool faults"
MAXCONN, WORKERS = 4, 8
TIMEOUT = 2.0
"""Seconds that a caller waits for a connection."""
PATIENCE = 15.0
"""Seconds within which good work has to be done again."""
OUTAGE = 7.0
"""Seconds of it, on ours, after an outage: the prober pauses for up to 5 s while no connection can be made."""
RETURN = 5.0
"""Seconds that a return of ours may take, its commit apart."""


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
    meets: tuple[str, ...] = ()
    """What shows that it happened: patterns that errors met by our pool or told to its application must match."""
    errors: int = 0
    """Errors that the application may see of ours."""
    shut_out: bool = False
    """No connection can be made meanwhile, so that callers may time out besides."""
    within: float = 1.0
    """Seconds in which the first good work comes, on ours."""


@dataclass
class Outcome:
    """What came of it."""

    attempts: int
    errors: dict[str, int]
    in_doubt: int
    """Of these, the ones that leave open whether the work was committed."""
    first_good: float | None
    lost: int
    hung: int
    threads: int
    """Left behind when the pool was closed."""
    descriptors: int
    """Likewise, open file descriptors."""
    most_backends: int
    """Server processes whose client is there."""
    most_backends_at_all: int
    longest_wait: float
    longest_return: float
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

    def __init__(self, fault: Fault, ground: Ground, app: Application, ours: Ours | None, away: float) -> None:
        self.fault = fault
        self.ground = ground
        self.server = ground.server
        self.app = app
        self.ours = ours
        self.away = away
        """Seconds that something is away, where it goes away."""
        self.notes: list[str] = []
        self.took: list[tuple[str, float, float]] = []
        """What has a bound on ours: how many seconds it took, and may take."""

    def admin(self) -> connection:
        """Open a connection that bypasses the proxy."""
        conn = psycopg2.connect(self.ground.server.dsn, application_name="admin")
        conn.autocommit = True
        return conn

    def ask(self, statement: str, *parameters: object) -> list[Any]:
        """Return the first column of a statement's rows."""
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
        """End all backends of the pool as an administrator does, and wait until they are gone."""
        if self.ask("select pg_terminate_backend(pid, 5000) from unnest(%s) as pid", pids) != [True] * MAXCONN:
            raise AssertionError("not all backends were ended")

    def comes(self, condition: Callable[[], object], patience: float = PATIENCE) -> bool:
        """Wait for something that may come."""
        deadline = monotonic() + patience
        while not condition():
            if monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for something that the fault needs."""
        if not self.comes(condition):
            raise AssertionError("the fault could not be brought about")

    def hold_all(self) -> list[Attempt]:
        """Let every connection be held, between two statements, until the application may go on; by whom."""
        self.app.stop_at_hold()
        self.wait_for(lambda: len(self.app.stopped()) == MAXCONN)
        return self.app.stopped()

    def stay_away(self) -> None:
        """Let pass the time for which something is away, and more until our pool has noticed."""
        time.sleep(self.away)
        self.comes(lambda: not self.unmet())

    def unmet(self) -> list[str]:
        """Return what otel_pgpool should have met during the fault, and has not."""
        if self.ours is None:
            return []
        met = [*self.ours.listener.met, *(each.told for each in [*self.app.attempts])]
        return [pattern for pattern in self.fault.meets if not any(re.search(pattern, text) for text in met)]


def play(fault: Fault, name: str, away: float) -> Outcome:
    """Let a fault happen to a pool while an application works on it."""
    with ExitStack() as stage:
        ground = fault.ground(stage)
        before = Footprint.now()
        dsn = make_dsn(**{"application_name": NAME, "connect_timeout": 2, **ground.dsn})
        pool = make(name, Setup(dsn, MAXCONN, MAXCONN, timeout=TIMEOUT, checked=True), ground.options)
        app = Application(pool.connection, WORKERS)
        ours = pool if name == OURS else None
        scene = Scene(fault, ground, app, ours, away)
        if ours is not None:
            stage.callback(ours.pool.close)
        with Census(ground.server, NAME, ours and ours.pool, MAXCONN, fault.beside, standby=ground.standby) as census:
            app.start()
            stage.callback(app.stop, 0.0)  # where the fault cannot be brought about, nobody works on either
            scene.wait_for(lambda: census.most == MAXCONN)
            scene.wait_for(lambda: sum(each.committed for each in [*app.attempts]) >= 5 * WORKERS)
            mended = copy_context().run(fault.strike, scene)  # where a block is never left, its span stays current
            scene.comes(lambda: app.first_good(mended) is not None)
            hung = app.stop(TIMEOUT + PATIENCE)
            lost = MAXCONN - capacity(app.borrow, MAXCONN, TIMEOUT + GRACE)
            strays = census.count(ground.forsaken)
        app.check_the_books(ground.books.dsn)
        if strays:
            census.violations.add(f"{strays} connections are on the old primary in the end")
        scene.took += [
            ("a caller was inside", app.longest_wait(), TIMEOUT),
            ("a return took", app.longest_return(), RETURN),
            ("the first good work came", app.first_good(mended) or 0.0, fault.within),
        ]
        closing = threading.Thread(target=pool.close, daemon=True)  # some never come back
        closing.start()
        closing.join(PATIENCE)
        after = at_rest(before)
        return Outcome(
            attempts=len(app.attempts),
            errors=dict(app.errors()),
            in_doubt=app.in_doubt(),
            first_good=app.first_good(mended),
            lost=lost,
            hung=hung,
            threads=max(0, after.threads - before.threads),
            descriptors=max(0, after.descriptors - before.descriptors),
            most_backends=census.most,
            most_backends_at_all=census.most_at_all,
            longest_wait=app.longest_wait(),
            longest_return=app.longest_return(),
            longest_work=app.longest_work(),
            longest_stall=census.longest_stall,
            violations=[*app.violations, *census.violations, *judge(scene, census.longest_stall)],
            notes=scene.notes,
        )
