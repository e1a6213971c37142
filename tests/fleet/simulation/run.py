"""One run of a scenario with simulated processes."""

from __future__ import annotations

import random
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2

from otel_pgpool import PoolError
from otel_pgpool.config import PoolConfig
from otel_pgpool.driver import attempt, session
from otel_pgpool.pool import backoff, connect, context, discard, liveness, slots, waiters
from otel_pgpool.pool import parts as parts_module
from otel_pgpool.runtime import background, wakeup
from tests.fleet.figures import SIMULATED, Figures, fairness, peak
from tests.fleet.scenarios import FLOODERS, Event, Fleet, Scenario
from tests.fleet.simulation.server import Bouncer, Connection, Costs
from tests.fleet.simulation.tasks import Here, Tasks, Threading, monotonic
from tests.support.replaced import clocks, replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREVER = 1e6
START = 5.0
"""Seconds after which the fleet has started, so that the peaks do not contain its start."""


def longest_delay(number: int) -> float:
    """Return the delay after a failed attempt to connect as it is without jitter."""
    delay: float = backoff.FIRST_DELAY * 2 ** min(number - 1, backoff.MOST_DOUBLINGS)
    return min(backoff.LONGEST_DELAY, delay)


def ping(conn: Connection, *_check: object) -> None:
    """Check a connection; a query takes no virtual time."""
    conn.fail_if_cut()


@contextmanager
def simulated(chance: random.Random, *, jitter: bool) -> Iterator[None]:
    """Put the simulated clock, threads, locks and connections in the place of the real ones in the pool's modules."""
    changes: list[tuple[Any, str, Any]] = [
        (module, "threading", Threading) for module in (slots, waiters, connect, attempt, background, wakeup)
    ]
    changes += clocks(monotonic)
    changes += [(module, "is_unpatched", lambda _lock: False) for module in (background, wakeup)]
    changes += [(module, "close", Connection.close) for module in (discard, session)]
    changes += [(module, "random", chance) for module in (connect, backoff)]
    changes += [
        (connect, "delay_forks_until_this_thread_ends", lambda: None),
        (connect, "local_port", lambda _number: 0),
        (connect, "delay_after", backoff.delay_after if jitter else longest_delay),
        (liveness, "is_readable", lambda conn: conn.is_cut),
        (liveness, "ping", ping),
    ]
    with replaced(changes):
        yield


class Process:
    """A worker process with a pool, which begins checkouts at random moments."""

    def __init__(self, run: Run, fleet: Fleet) -> None:
        self._run, self._fleet = run, fleet
        self.served = 0
        self.first_served_after: float | None = None
        """When a checkout was served for the first time after the disturbance."""
        self.is_calm = False
        """Whether the disturbance is over."""
        self.open()

    def open(self) -> None:
        """Open the pool, with one connection."""
        config = PoolConfig.of(1, self._fleet.maxconn, timeout=self._fleet.timeout, environ={})
        self.parts = parts_module.Parts(config, self._run.bouncer, None)  # type: ignore[arg-type]  # a simulated target
        self.parts.lifecycle.open(None, wait=False)

    def restart(self) -> None:
        """Let a new process take the place of this one, whose pool closes once its holders have ended."""
        former = self.parts
        self.open()
        former.lifecycle.close()
        former.lifecycle.wait_for_holders(Here.tasks.now + self._fleet.timeout)

    def work(self) -> None:
        """Begin checkouts, each in a task of its own, until the run ends."""
        tasks, chance = Here.tasks, self._run.chance
        while True:
            tasks.sleep(chance.expovariate(self._fleet.arrivals))
            tasks.start(self._check_out)

    def leak(self) -> None:
        """Check all connections out, begin a transaction in each, and never return them."""
        for _ in range(self._fleet.maxconn):
            block = self._block()
            conn = block.__enter__()
            self._run.leaked.append(block)
            Here.tasks.start(partial(self._run.bouncer.transaction, conn, FOREVER))

    def flood(self) -> None:
        """Check out again and again while the disturbance lasts."""
        while not self.is_calm:
            self._check_out()

    def _block(self) -> Any:
        block: Any = context.CheckoutContext()
        block.owner, block.parts, block.timeout = self, self.parts, None
        frame = sys._getframe()
        block.stack = frame.f_code, frame.f_lasti
        block.checkout = block.conn = None
        return block

    def _check_out(self) -> None:
        run, now, seconds = self._run, Here.tasks.now, self._run.chance.expovariate(1 / self._fleet.hold)
        try:
            with self._block() as conn:
                run.waits.append(Here.tasks.now - now)
                run.bouncer.transaction(conn, seconds)
        except (PoolError, psycopg2.Error) as error:
            run.failed[type(error).__name__] += 1
            return
        self.served += 1
        if self.first_served_after is None and now >= run.disturbed_until:
            self.first_served_after = Here.tasks.now


class Run:
    """The fleet, its server, and what they have measured."""

    def __init__(self, scenario: Scenario, chance: random.Random, costs: Costs) -> None:
        fleet = scenario.fleet
        self.scenario, self.chance = scenario, chance
        self.bouncer = Bouncer(fleet.budget, costs)
        self.waits: list[float] = []
        self.failed: Counter[str] = Counter()
        self.leaked: list[Any] = []
        self.disturbed_until = float("inf")
        self.processes = [Process(self, fleet) for _ in range(fleet.processes)]

    def play(self) -> None:
        """Let the load run, and the disturbance come and go."""
        tasks, scenario = Here.tasks, self.scenario
        for each in self.processes:
            tasks.start(each.work)
        tasks.run(scenario.before)
        tasks.start(self._disturb)
        tasks.run(scenario.before + scenario.disturbance)
        self._calm()
        if scenario.event is not Event.POSTGRES_RESTART:
            self.disturbed_until = tasks.now
        tasks.run(scenario.before + scenario.disturbance + scenario.after)

    def _disturb(self) -> None:
        event, odd = self.scenario.event, self.processes[0]
        if event is Event.PGBOUNCER_AWAY:
            self.bouncer.stop()
        elif event is Event.POSTGRES_RESTART:
            self.bouncer.restart_postgres()
            self.disturbed_until = Here.tasks.now
        elif event is Event.ROLLING_RESTART:
            for each in self.processes:
                Here.tasks.start(each.restart)
                Here.tasks.sleep(self.scenario.disturbance / len(self.processes))
        elif event is Event.LEAK:
            Here.tasks.start(odd.leak)
        elif event is Event.FLOOD:
            for _ in range(FLOODERS):
                Here.tasks.start(odd.flood)

    def _calm(self) -> None:
        self.processes[0].is_calm = True
        if self.scenario.event is Event.PGBOUNCER_AWAY:
            self.bouncer.start()

    def figures(self, seed: int) -> Figures:
        """Return what the run has measured."""
        scenario, waits = self.scenario, sorted(self.waits)
        firsts = [each.first_served_after for each in self.processes if each.first_served_after is not None]
        has_recovered = scenario.event.is_outage and len(firsts) == len(self.processes)
        counted = self.processes[1:] if scenario.event.is_of_one_process else self.processes
        return Figures(
            scenario=scenario.name,
            source=SIMULATED,
            processes=scenario.fleet.processes,
            seed=seed,
            served=sum(each.served for each in self.processes),
            failed=dict(sorted(self.failed.items())),
            wait_p50=round(waits[len(waits) // 2], 6),
            wait_p99=round(waits[len(waits) * 99 // 100], 6),
            recovery=round(max(firsts) - self.disturbed_until, 3) if has_recovered else None,
            logins_peak=peak(self.bouncer.logins, START),
            server_connects_peak=peak(self.bouncer.server_connects, START),
            server_connections=self.bouncer.most_opened,
            fairness=round(fairness([each.served for each in counted]), 4),
        )


def simulate(scenario: Scenario, seed: int, *, jitter: bool = True, costs: Costs | None = None) -> Figures:
    """Run a scenario with simulated processes; the same seed gives the same figures."""
    chance = random.Random(seed)
    with simulated(chance, jitter=jitter):
        Here.tasks = Tasks()
        run = Run(scenario, chance, costs or Costs())
        run.play()
        return run.figures(seed)
