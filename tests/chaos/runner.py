"""One fault on one pool, from the first successful work before the fault to the checks afterwards."""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn

from benchmarks.peers import Setup
from benchmarks.row import OURS
from otel_pgpool.telemetry.names import SPAN_CHECKOUT
from tests.chaos.application import Application
from tests.chaos.checks import ProcessUsage, usage_at_rest
from tests.chaos.environment import one_server
from tests.chaos.monitors import BackendMonitor
from tests.chaos.pools import capacity, make
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from tests.chaos.application import Attempt
    from tests.chaos.environment import Environment
    from tests.chaos.pools import Ours


NAME = "otel_pgpool faults"
MAXCONN, WORKERS = 4, 8
TIMEOUT = 2.0
"""Seconds that a caller waits for a connection."""
PATIENCE = 15.0
"""Seconds within which work has to succeed again."""
OUTAGE = 7.0
"""The same for our pool after an outage: its retry thread pauses for up to 5 s while no connection can be made."""
RELEASE = 5.0
"""Seconds that a release of ours may take, its commit not counted."""
GRACE = 0.25
"""Seconds beyond a bound from which our pool is late."""


@dataclass(frozen=True)
class Fault:
    """One way to break the server, the network, the process or telemetry."""

    title: str
    cause: str
    inject: Callable[[FaultRun], float]
    """Causes the fault and ends it; returns the end as a reading of the monotonic clock."""
    environment: Callable[[ExitStack], Environment] = one_server
    extra_backends: int = 0
    """Server processes allowed beside those of the pool, as for a forked child."""
    ours_alone: bool = False
    """Whether the fault needs something that the other pools do not have."""
    evidence: tuple[str, ...] = ()
    """Patterns that show that the fault happened: an error of our pool or of its application must match each."""
    errors: int = 0
    """Errors that the application may get from our pool."""
    shut_out: bool = False
    """Whether no connection can be made during the fault, so that callers may time out in addition."""
    within: float = 1.0
    """Seconds within which work succeeds again on our pool."""


@dataclass
class Outcome:
    """The result of one fault on one pool."""

    attempts: int
    errors: dict[str, int]
    in_doubt: int
    """Errors that leave open whether the work was committed."""
    first_good: float | None
    lost: int
    hung: int
    threads: int
    """Threads left when the pool was closed."""
    descriptors: int
    """Open file descriptors left when the pool was closed."""
    most_backends: int
    """Server processes whose client is connected, at most."""
    most_backends_at_all: int
    longest_wait: float
    longest_release: float
    longest_work: float
    longest_stall: float
    """Seconds by which an idle thread was late, at most."""
    violations: list[str]
    notes: list[str]
    """Other problems, which the fault itself has found."""

    def failures(self) -> list[str]:
        """Return everything that a pool without a defect would not show."""
        left = {
            "connections lost": self.lost,
            "workers hang": self.hung,
            "threads left": self.threads,
            "file descriptors left": self.descriptors,
        }
        counted = [f"{number} {what}" for what, number in left.items() if number]
        return [*self.violations, *self.notes, *counted, *["work never succeeded again"] * (self.first_good is None)]


class FaultRun:
    """What a fault works with: the server, the application and, if it is ours, the pool."""

    def __init__(
        self, fault: Fault, environment: Environment, app: Application, ours: Ours | None, away: float
    ) -> None:
        self.fault = fault
        self.environment = environment
        self.server = environment.server
        self.app = app
        self.ours = ours
        self.away = away
        """Seconds that a server or a network is away."""
        self.notes: list[str] = []
        self.took: list[tuple[str, float, float]] = []
        """Durations that are bounded on our pool: the name, the seconds measured, and the maximum in seconds."""

    def admin(self) -> connection:
        """Open a connection that bypasses the proxy."""
        conn = psycopg2.connect(self.environment.server.dsn, application_name="admin")
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
        """Return the process ids of the pool's backends."""
        return self.ask("select pid from pg_stat_activity where application_name = %s", NAME)

    def in_state(self, state: str, query: str = "") -> list[int]:
        """Return the backends of the pool in a state, whose query begins as given."""
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

    def happens(self, condition: Callable[[], object], patience: float = PATIENCE) -> bool:
        """Wait for a condition; return whether it came true."""
        return wait_until(condition, patience)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for a condition that the fault needs."""
        if not self.happens(condition):
            raise AssertionError("the fault could not be caused")

    def hold_all(self) -> list[Attempt]:
        """Make the application hold every connection between two statements; return the attempts that hold them."""
        self.app.stop_at_hold()
        self.wait_for(lambda: len(self.app.stopped()) == MAXCONN)
        return self.app.stopped()

    def stay_away(self) -> None:
        """Wait for `away` seconds, and until our pool has noticed the fault."""
        time.sleep(self.away)
        self.happens(lambda: not self.missing_evidence())

    def missing_evidence(self) -> list[str]:
        """Return the patterns of `Fault.evidence` that no error has matched so far."""
        if self.ours is None:
            return []
        seen = [*self.ours.listener.seen, *(each.message for each in [*self.app.attempts])]
        return [pattern for pattern in self.fault.evidence if not any(re.search(pattern, text) for text in seen)]


def play(fault: Fault, name: str, away: float) -> Outcome:
    """Play a fault on a pool while an application works on the pool."""
    with ExitStack() as stage:
        environment = fault.environment(stage)
        before = ProcessUsage.now()
        dsn = make_dsn(**{"application_name": NAME, "connect_timeout": 2, **environment.dsn})
        pool = make(name, Setup(dsn, MAXCONN, MAXCONN, timeout=TIMEOUT, checked=True), environment.options)
        app = Application(pool.connection, WORKERS)
        ours = pool if name == OURS else None
        run = FaultRun(fault, environment, app, ours, away)
        if ours is not None:
            stage.callback(ours.pool.close)
        with BackendMonitor(
            environment.server, NAME, ours and ours.pool, MAXCONN, fault.extra_backends, standby=environment.standby
        ) as monitor:
            app.start()
            stage.callback(app.stop, 0.0)  # even if the fault cannot be caused, the application has to end
            run.wait_for(lambda: monitor.most == MAXCONN)
            run.wait_for(lambda: sum(each.committed for each in [*app.attempts]) >= 5 * WORKERS)
            mended = copy_context().run(
                fault.inject, run
            )  # in a copy, because the span of a block that is never left stays current
            run.happens(lambda: app.first_good(mended) is not None)
            hung = app.stop(TIMEOUT + PATIENCE)
            lost = MAXCONN - capacity(app.new_block, MAXCONN, TIMEOUT + GRACE)
            on_old_primary = monitor.count(environment.old_primaries)
        app.check_commits(environment.audited.dsn)
        if on_old_primary:
            monitor.violations.add(f"{on_old_primary} connections are on the old primary in the end")
        run.took += [
            ("the longest wait", app.longest_wait(), TIMEOUT),
            ("the longest release", app.longest_release(), RELEASE),
            ("the recovery", app.first_good(mended) or 0.0, fault.within),
        ]
        closing = threading.Thread(target=pool.close, daemon=True)  # some pools hang here
        closing.start()
        closing.join(PATIENCE)
        after = usage_at_rest(before)
        return Outcome(
            attempts=len(app.attempts),
            errors=dict(app.errors()),
            in_doubt=app.in_doubt(),
            first_good=app.first_good(mended),
            lost=lost,
            hung=hung,
            threads=max(0, after.threads - before.threads),
            descriptors=max(0, after.descriptors - before.descriptors),
            most_backends=monitor.most,
            most_backends_at_all=monitor.most_at_all,
            longest_wait=app.longest_wait(),
            longest_release=app.longest_release(),
            longest_work=app.longest_work(),
            longest_stall=monitor.longest_stall,
            violations=[
                *app.violations,
                *monitor.violations,
                *broken_invariants(run, monitor.longest_stall),
            ],
            notes=run.notes,
        )


def broken_invariants(run: FaultRun, stall: float) -> Iterator[str]:
    """Return the invariants of otel_pgpool and the requirements of the fault that were not kept; none for other pools.

    Args:
        run: the run, after all work, with the pool still open.
        stall: seconds for which the machine stalled, which no pool is responsible for.
    """
    if run.ours is None:
        return
    fault, app, stats = run.fault, run.app, run.ours.pool.stats()
    yield from (f"the fault did not happen: no error matches {pattern!r}" for pattern in run.missing_evidence())
    if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
        yield f"at rest: {stats.used} used, {stats.idle} idle of {stats.size}, {stats.waiting} waiting"
    counts = {
        "blocks": len(app.asked),
        "checkouts": sum(stats.checkouts.values()) + stats.timeouts + stats.errors,
        "spans begun": run.ours.spans.started[SPAN_CHECKOUT],
        "spans ended": run.ours.spans.ended[SPAN_CHECKOUT],
    }
    if len({*counts.values()}) > 1:
        yield f"counts differ: {counts}"
    for what, took, bound in run.took:
        if took > bound + GRACE + stall:
            yield f"{what}: {took:.3f} s of {bound:g}, with a stall of {stall:.3f} s"
    errors = app.errors()
    if fault.shut_out:
        del errors["PoolTimeout"]
    if errors.total() > fault.errors:
        yield f"{errors.total()} errors of at most {fault.errors}"
