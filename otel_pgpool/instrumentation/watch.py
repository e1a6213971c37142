"""The background thread of the instrumentation, which watches all instrumented pools."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.pool.utilization import SAMPLE_INTERVAL
from otel_pgpool.runtime.background import ParkingThread
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.wakeup import popped
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_PAUSE = 0.01
"""Minimum number of seconds between two passes of the thread."""


class Watched(Protocol):
    """A tracker, as far as the watch uses it."""

    @property
    def pool(self) -> Any:
        """The tracked pool, or None if it was collected."""
        ...

    @property
    def handed_out(self) -> int:
        """Number of checkouts that received a connection."""
        ...

    @property
    def is_at_rest(self) -> bool:
        """Whether there is nothing to watch."""
        ...

    def report_due(self, now: float) -> float | None:
        """Report what is due; return when the next call is due, as a reading of the clock; None after an error."""
        ...

    def end(self, outcome: Outcome, reason: DiscardReason | None = None) -> None:
        """End the reports and the holds in progress."""
        ...


class Watch:
    """The trackers of a session, their background thread, and the calls that finalizers have deferred to the thread.

    A finalizer may run under any lock, the telemetry's included. It therefore does nothing but defer.
    """

    def __init__(self, long_hold: float) -> None:
        self.long_hold = long_hold
        self.is_on = True
        self.trackers: dict[Watched, None] = {}
        self._collected: deque[Watched] = deque()
        self._deferred: deque[Callable[[], object]] = deque()
        self.reset_thread()

    def reset_thread(self) -> None:
        """Replace the thread, also in a forked child, which has not inherited it."""
        self.parked = True  # so that the first checkout starts the thread
        self._handed_out = 0  # number of checkouts at the last pass
        self._thread = ParkingThread(self, self, "otel_pgpool-watch")

    def defer(self, action: Callable[[], object]) -> None:
        """Leave a call to the thread."""
        self._deferred.append(action)
        self._thread.wakeup.set()

    def pool_collected(self, tracker: Watched) -> None:
        """Leave the end of a collected pool's tracker to the thread."""
        if self.is_on:
            self._collected.append(tracker)
        self._thread.wakeup.set()

    def run_deferred(self) -> None:
        """Make the calls that finalizers have deferred, and end the trackers of collected pools."""
        for action in popped(self._deferred):
            action()
        for tracker in popped(self._collected):
            self.trackers.pop(tracker, None)
            tracker.end(Outcome.RECLAIMED, DiscardReason.RECLAIMED)

    def drop_deferred(self) -> None:
        """Drop, in a forked child, the calls that the parent's finalizers have deferred."""
        self._deferred.clear()
        for tracker in popped(self._collected):
            self.trackers.pop(tracker, None)

    def wake(self) -> None:
        """Start a pass of the thread, because a connection was checked out."""
        self._thread.wake()

    def end(self) -> None:
        """End the thread."""
        self._thread.wakeup.set()
        self._thread.join(1.0)

    def run_once(self) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread.

        The next pass is when the next long hold is due, after a `SAMPLE_INTERVAL` at most. When nothing was checked out
        since the last pass, and nothing is held, the thread parks.
        """
        self.run_deferred()
        if not self.is_on:
            return None
        now = monotonic()
        due = NEVER
        for tracker in list(self.trackers.copy()):
            due = min(due, tracker.report_due(now) or NEVER)
        trackers = list(self.trackers.copy())
        before, self._handed_out = self._handed_out, sum(tracker.handed_out for tracker in trackers)
        if self._handed_out == before:
            self.parked = True  # set before looking for holds; a checkout adds its hold before it reads `parked`
            if all(tracker.is_at_rest for tracker in trackers):
                return NEVER
            self.parked = False
        return max(MIN_PAUSE, min(due - monotonic(), SAMPLE_INTERVAL, self.long_hold))
