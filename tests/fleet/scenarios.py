"""What happens to a fleet, the same for real processes and for simulated ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Event(Enum):
    """A disturbance of the fleet."""

    NONE = "steady load"
    ROLLING_RESTART = "rolling restart"
    POSTGRES_RESTART = "restart of PostgreSQL"
    PGBOUNCER_AWAY = "PgBouncer away"
    LEAK = "one process leaks"
    FLOOD = "one process floods"

    @property
    def is_outage(self) -> bool:
        """Return whether no process is served for a while."""
        return self in {Event.POSTGRES_RESTART, Event.PGBOUNCER_AWAY}

    @property
    def is_of_one_process(self) -> bool:
        """Return whether the first process disturbs the others, so that it is left out of their figures."""
        return self in {Event.LEAK, Event.FLOOD}


FLOODERS = 50
"""Threads of the process that floods, each of which checks out again and again."""


@dataclass(frozen=True)
class Fleet:
    """The processes, and what they share."""

    processes: int = 150
    maxconn: int = 5
    """Connections of the pool of each process."""
    budget: int = 40
    """Connections of PgBouncer to PostgreSQL."""
    arrivals: float = 2.0
    """Checkouts a second that each process begins, at random moments (a Poisson process)."""
    hold: float = 0.02
    """Mean seconds of one hold: ``pg_sleep`` of an exponentially distributed time in one transaction."""
    timeout: float = 5.0
    """Seconds that a checkout waits for a connection."""


@dataclass(frozen=True)
class Scenario:
    """One run."""

    event: Event
    fleet: Fleet = Fleet()
    before: float = 10.0
    """Seconds of steady load before the event."""
    disturbance: float = 0.0
    """Seconds that the event lasts."""
    after: float = 20.0
    """Seconds of load after the event."""

    @property
    def name(self) -> str:
        """Return the name that the tables show."""
        return self.event.value

    def at(self, processes: int) -> Scenario:
        """Return the same scenario for another number of processes, with the budget in proportion."""
        share = processes / self.fleet.processes
        return replace(
            self, fleet=replace(self.fleet, processes=processes, budget=max(1, round(self.fleet.budget * share)))
        )


SCENARIOS = (
    Scenario(Event.NONE, after=30.0),
    Scenario(Event.ROLLING_RESTART, disturbance=60.0),
    Scenario(Event.POSTGRES_RESTART),
    Scenario(Event.PGBOUNCER_AWAY, disturbance=60.0),
    Scenario(Event.LEAK, disturbance=20.0),
    Scenario(Event.FLOOD, disturbance=20.0),
)
