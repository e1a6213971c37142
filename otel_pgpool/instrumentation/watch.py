"""The background thread of the instrumentation, and the calls that finalizers defer to the thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.background import ParkingThread
from otel_pgpool.runtime.wakeup import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.runtime.background import Duties


class Watch:
    """The background thread of a session, and the calls that finalizers have deferred to the thread.

    A finalizer may run under any lock, the telemetry's included. It therefore does nothing but defer.
    """

    def __init__(self, duties: Duties) -> None:
        self.reset(duties)

    def reset(self, duties: Duties) -> None:
        """Set up the thread, anew in a forked child, which drops what the parent's finalizers have deferred."""
        self.parked = True  # so that the first checkout starts the thread
        self._thread = ParkingThread(self, duties, "otel_pgpool-watch")
        self._deferred: Deferred[Callable[[], object]] = Deferred(self._thread.wakeup)

    def defer(self, action: Callable[[], object]) -> None:
        """Leave a call to the thread."""
        self._deferred.append(action)

    def pool_collected(self, _ref: object) -> None:
        """Wake the thread, which ends the tracker of a collected pool. A finalizer."""
        self._thread.wakeup.set()

    def run_deferred(self) -> None:
        """Make the calls that finalizers have deferred."""
        for action in self._deferred.drain():
            action()

    def wake(self) -> None:
        """Start a pass of the thread, because a connection was checked out."""
        self._thread.wake()

    def end(self) -> None:
        """End the thread."""
        self._thread.wakeup.set()
        self._thread.join(1.0)
