"""The totals, statistics and diagnoses that every pool has, whether it is a `ConnectionPool` or an instrumented one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_pgpool.errors import LONGEST_HOLDERS, PoolTimeout
from otel_pgpool.pool.utilization import status_of
from otel_pgpool.runtime.text import counted, printable
from otel_pgpool.stats import PoolStats, describe_holder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.stats import Holder
    from otel_pgpool.types import PoolStatus

COUNTERS = ("queued", "timeouts", "errors", "retries", "long_holds", "created", "wait_seconds")
"""The totals that are kept as numbers; each is named as its field of `PoolStats`."""


@dataclass(slots=True)
class ConnectionTotals:
    """The totals of a pool's connections that `PoolStats` does not have; the pool's lock guards them."""

    connect_failures: int = 0
    connect_seconds: float = 0.0
    """Sum of the durations of all connects that succeeded."""
    lost: int = 0
    """Idle connections that were found dead, or did not pass their check."""
    bad_returns: int = 0
    """Connections that were released and could not be used again, because they were broken or closed."""


class Counters:
    """The totals of one pool. A base class, because an object of its own would cost each checkout some lookups."""

    __slots__ = COUNTERS

    def reset_counters(self) -> None:
        """Reset the totals."""
        self.queued = self.timeouts = self.errors = self.retries = self.long_holds = self.created = 0
        self.wait_seconds = 0.0

    def flag(self, checkout: Checkout, now: float) -> None:
        """Mark a hold that has passed its threshold, and count it."""
        checkout.flagged = checkout.is_remarkable = True
        checkout.flagged_at = now
        self.long_holds += 1


def make_stats(
    *, maxconn: int, used: int, waiting: int, status: PoolStatus | None, expected: int = 0, **figures: Any
) -> PoolStats:
    """Return the statistics of a pool.

    Args:
        maxconn: maximum number of connections; 0 for no limit.
        used: connections that are checked out.
        waiting: callers in the queue.
        status: the status; None if the utilization decides.
        expected: checked-out connections whose hold is expected to be long, and that the utilization leaves out.
        figures: the other fields.
    """
    others = maxconn - expected
    utilization = max(0, used - expected) / others if others > 0 else float(maxconn > 0 and waiting > 0)
    status = status or status_of(utilization)
    return PoolStats(
        maxconn=maxconn, used=used, waiting=waiting, utilization=utilization, status=status.value, **figures
    )


def diagnose(
    reason: str,
    stats: PoolStats,
    holds: Sequence[Checkout],
    *,
    since: float,
    now: float,
    retries: int,
    waiter: Checkout | None = None,
    last_failure: str = "",
    kind: type[PoolTimeout] = PoolTimeout,
) -> PoolTimeout:
    """Build the error of a caller that has waited for a connection, with the figures of the pool in its message.

    Args:
        reason: what happened, the first words of the message.
        stats: the pool's present figures.
        holds: the checkouts that hold a connection, the longest hold first.
        since: when the wait began, as a reading of the clock.
        now: reading of the clock.
        retries: failed attempts during the wait.
        waiter: the checkout that waited, whose thread or task may hold connections itself.
        last_failure: text of the last failed connect, free of secrets; empty if there was none.
        kind: the class of the error.
    """
    waited = now - since
    levels = f"{stats.used} of {stats.maxconn} in use, {stats.idle} idle, {stats.connecting} connecting"
    history = f"{stats.waiting} waiting; waited {waited:.3f} s, {counted(retries, 'failed attempt')}"
    lines = [f"{reason} (pool {stats.name!r}: {levels}, {history})"]
    if last_failure:
        lines.append(f"the last attempt to connect failed: {last_failure}")
    own_holds = 0 if waiter is None else sum(map(waiter.is_by_holder_of, holds))
    if own_holds:
        holder = "thread" if waiter is None or waiter.task is None else "task"
        lines.append(
            f"this {holder} already holds {own_holds} of them, and releases none while it waits: instead of a nested "
            "checkout, pass the connection down"
        )
    longest = tuple(hold.holder(now) for hold in holds[:LONGEST_HOLDERS])
    lines += _held(longest)
    if len(holds) > len(longest):
        lines.append(f"and {len(holds) - len(longest)} more holders")
    text = "\n  ".join(map(printable, lines))
    return kind(text, waited=waited, retries=retries, holders=longest, **stats.levels())


def _held(holders: Sequence[Holder]) -> list[str]:
    """Return a line for each holder, in which each head of a chain is described once."""
    described = {holder.pid for holder in holders}
    lines = []
    for holder in holders:
        lines.append(f"held {describe_holder(holder, described)}")
        if holder.database_state is not None and holder.database_state.root_blocker is not None:
            described.add(holder.database_state.root_blocker.pid)
    return lines
