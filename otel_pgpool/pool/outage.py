"""Outages, as the results of the attempts to connect show them, and their reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from otel_pgpool.observer import Connect, PoolObserver
    from otel_pgpool.runtime.failures import ObserverGuard


class Outage(NamedTuple):
    """A period in which no connection can be opened. Times are readings of ``time.monotonic`` in seconds."""

    since: float
    attempts: int
    error: BaseException | None = None
    message: str = ""
    """Text of the error, free of secrets."""
    next_attempt: float = 0.0
    is_refusal: bool = False
    """Whether the server was reached and refused the last attempt; this is not reported as an outage."""


def after_failure(before: Outage | None, failed: Outage) -> Outage:
    """Return the outage after a failed attempt; ``failed`` describes this attempt as an outage of one attempt."""
    if before is None or before.is_refusal != failed.is_refusal:
        return failed
    return failed._replace(since=before.since, attempts=before.attempts + 1)


def number_after(outage: Outage | None) -> int:
    """Return the number of the next attempt to connect."""
    return 1 if outage is None else outage.attempts + 1


def is_unreachable(outage: Outage | None) -> bool:
    """Return whether no connection can be opened for another reason than a refusal: the status ``unreachable``.

    `health` is not so strict: of a server that is full, the connections that the pool has still serve.
    """
    return outage is not None and not outage.is_refusal


class OutageChange(NamedTuple):
    """The outage before and after an attempt to connect."""

    before: Outage | None
    after: Outage | None

    @property
    def has_begun(self) -> bool:
        """Whether the server cannot be reached any more."""
        return is_unreachable(self.after) and not is_unreachable(self.before)

    @property
    def ended(self) -> Outage | None:
        """The outage that has ended; None if there was none, or if it continues."""
        return self.before if is_unreachable(self.before) and not is_unreachable(self.after) else None

    def report(self, guard: ObserverGuard, observer: PoolObserver, connect: Connect) -> None:
        """Notify the observer that the attempt ``connect`` has begun or ended an outage."""
        if self.has_begun:
            guard.notify(observer.outage_started, connect)
        self.report_end(guard, observer, connect.ended)

    def report_end(self, guard: ObserverGuard, observer: PoolObserver, now: float) -> None:
        """Notify the observer of an outage that has ended."""
        ended = self.ended
        if ended is not None:
            guard.notify(observer.outage_ended, ended.attempts, now - ended.since)
