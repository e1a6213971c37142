"""The verdict on a pool: whether it can serve its callers, as far as that is known without asking the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.driver.connect_cause import cause_of
from otel_pgpool.errors import error_type
from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.pool.core import State
from otel_pgpool.runtime.text import counted
from otel_pgpool.stats import PoolHealth
from otel_pgpool.types import HealthStatus

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core
    from otel_pgpool.pool.outage import Outage

SLOW = 1.0
"""Seconds that a connect, a check or the wait of a caller may take in a pool that is ok."""

Finding = tuple[HealthStatus, str, float]
"""A status, the reason, and since when it holds, as a reading of the clock.

The first words of a reason, up to a colon, are the same at each call; the figures follow.
"""


class Levels(NamedTuple):
    """The levels of a pool that decide the verdict, at one moment. Times are readings of the clock."""

    state: State
    closed_at: float
    suspended_at: float | None
    outage: Outage | None
    connections: int
    """Connections that are open and not being closed."""
    used: int
    idle: int
    maxconn: int
    waiting: int
    max_waiting: int
    queued: float
    """When the first waiter has queued that may be served; `NEVER` if there is none."""
    opening: int
    checking: int
    begun: float
    """When the oldest of the connects and checks began; `NEVER` if there is none."""

    @classmethod
    def of(cls, core: Core, now: float) -> Levels:
        """Read the levels of a pool."""
        with core.lock:
            first = core.queue.first()
            queued = NEVER if first is None else first.checkout.queued
            return cls(
                core.state,
                core.closed_at,
                core.suspended_at,
                core.outage,
                len(core.slots) - len(core.closing),
                core.used,
                len(core.idle),
                core.maxconn,
                len(core.queue),
                core.max_waiting,
                now if queued is None else queued,
                len(core.opening),
                len(core.checking),
                min((slot.kept_at for slot in [*core.opening, *core.checking]), default=NEVER),
            )


def health_of(core: Core, now: float) -> PoolHealth:
    """Return the health of a pool at a reading of the clock. The worst finding is its status.

    A pool that is not open yet is ok, because its first checkout opens it: a probe that keeps callers away would keep
    the pool from being opened.
    """
    levels = Levels.of(core, now)
    if levels.state is State.CLOSED:
        findings = [(HealthStatus.CLOSED, "the pool is closed", levels.closed_at)]
    else:
        each = _suspended(levels), _unreachable(levels, now), _exhausted(levels, now), _full_queue(levels, now)
        findings = [finding for finding in each if finding is not None]
    if not findings:
        return PoolHealth(core.name, HealthStatus.OK)
    status, _reason, since = findings[0]  # in the order of their severity
    return PoolHealth(core.name, status, tuple(reason for _status, reason, _since in findings), max(0.0, now - since))


def _suspended(levels: Levels) -> Finding | None:
    if levels.suspended_at is None:
        return None
    reason = f"the pool is suspended until resume() is called: {levels.waiting} waiting"
    return HealthStatus.SUSPENDED, reason, levels.suspended_at


def _unreachable(levels: Levels, now: float) -> Finding | None:
    """Return whether the server did not answer, or the pool has no connection and cannot open any."""
    outage = levels.outage
    if outage is not None:
        cause = cause_of(outage.error)
        is_up = outage.is_refusal or (cause is not None and cause.is_up)
        if is_up and levels.connections > 0:
            return None
        begin = "the server is up, but no connection can be used" if is_up else "no connection can be opened"
        known = "an error of an unknown kind" if outage.error is None else error_type(outage.error)
        attempts = counted(outage.attempts, "failed attempt")
        reason = f"{begin}: {known if cause is None else cause.value}; {attempts} within {_seconds(outage.since, now)}"
        return HealthStatus.UNREACHABLE, reason, outage.since
    if levels.idle or levels.used > 0 or now - levels.begun <= SLOW:
        return None
    return HealthStatus.UNREACHABLE, f"the server has not answered yet: {_in_progress(levels, now)}", levels.begun


def _exhausted(levels: Levels, now: float) -> Finding | None:
    """Return whether callers wait for a connection, or would have to, for longer than a connect usually takes."""
    has_waiter = levels.queued != NEVER
    can_grow = levels.used < levels.maxconn and levels.outage is None
    since = levels.queued if has_waiter and not (can_grow and now - levels.queued <= SLOW) else NEVER
    if not levels.idle and now - levels.begun > SLOW and (levels.used > 0 or has_waiter):
        since = min(since, levels.begun)
    if since == NEVER:
        return None
    figures = f"{levels.used} of {levels.maxconn} in use"
    if levels.opening or levels.checking:
        figures += f", {_in_progress(levels, now)}"
    if has_waiter:
        figures += f"; {levels.waiting} waiting, the first for {_seconds(levels.queued, now)}"
    return HealthStatus.SATURATED, f"no connection is free: {figures}", since


def _full_queue(levels: Levels, now: float) -> Finding | None:
    if not 0 < levels.max_waiting <= levels.waiting:
        return None
    reason = (
        f"the queue is full, further callers are refused: {levels.waiting} waiting (max_waiting={levels.max_waiting})"
    )
    return HealthStatus.SATURATED, reason, min(levels.queued, now)


def _in_progress(levels: Levels, now: float) -> str:
    counts = ((levels.opening, "being opened"), (levels.checking, "being checked"))
    return f"{', '.join(f'{n} {what}' for n, what in counts if n)}, the first for {_seconds(levels.begun, now)}"


def _seconds(since: float, now: float) -> str:
    return f"{max(0.0, now - since):.3f} s"
