"""The operations on a whole pool: open, wait, close, drain, resize, and changes of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver import session
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.core import State
from otel_pgpool.pool.outage import OutageChange
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import counted
from otel_pgpool.runtime.wakeup import acquire_within
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from otel_pgpool.pool.acquire import Acquirer
    from otel_pgpool.pool.connect import Connectors
    from otel_pgpool.pool.discard import Discarder
    from otel_pgpool.pool.keepalive import Keepalive

OPEN_TIMEOUT = 30.0
"""Seconds that opening the pool may take if ``timeout``, the bound of a checkout, is 0."""

MIN_JOIN = 0.1
"""Minimum number of seconds that `Lifecycle.wait_for_holders` waits for the maintenance thread to end."""


class Lifecycle(Part):
    """Opens, fills, resizes and closes a pool."""

    def __init__(
        self, common: Common, discarder: Discarder, connectors: Connectors, acquirer: Acquirer, keepalive: Keepalive
    ) -> None:
        super().__init__(common)
        self._discarder = discarder
        self._connectors = connectors
        self._acquirer = acquirer
        self._keepalive = keepalive

    def open(self, timeout: float | None, *, wait: bool | None) -> None:
        """Open the pool; wait for ``minconn`` connections, up to ``timeout`` seconds. None: see `PoolControl.open`.

        A pool that was not open before is not open after a wait that failed, unless another caller has opened it in
        the background meanwhile.
        """
        if wait is False:
            self._core.open(stays=True)
            self._acquirer.ensure_open()
            return
        if self._core.state is State.OPEN:
            if wait:
                self.wait(timeout)
            return
        try:
            self.wait(timeout)
        except BaseException:
            self._discarder.discard(self._core.rollback_open(), DiscardReason.CLOSED)
            self._connectors.stop()
            raise

    def wait(self, timeout: float | None) -> None:
        """Wait until ``minconn`` connections are open, up to ``timeout`` seconds; None for the pool's ``timeout``."""
        limit = (self._durations.timeout or OPEN_TIMEOUT) if timeout is None else timeout
        self._acquirer.ensure_open()
        began = monotonic()
        waiter = self._core.register_fill_waiter()
        if waiter is None:
            return
        self._connectors.start_if_needed()
        if not self._connectors.wait_for(waiter.lock, monotonic() + limit):
            self._core.remove_fill_waiter(waiter)
            outage = self._core.outage
            reason = f"{counted(self._core.minconn, 'connection')} could not be opened within {limit:.3g} s"
            raise self._connectors.diagnose(reason, began, outage.attempts if outage else 0)
        try:
            if waiter.error is not None:
                raise waiter.error
        finally:
            del waiter  # breaks a reference cycle: the error's traceback refers to this frame

    def close(self) -> None:
        """Refuse new checkouts, fail the waiters, and close the idle connections."""
        idle = self._core.close()
        self._connectors.stop()
        self._keepalive.stop()
        self._maintenance_thread.wakeup.set()
        self._discarder.discard(idle, DiscardReason.CLOSED)

    def wait_for_holders(self, deadline: float) -> None:
        """Wait until no connection is checked out and the threads have ended, up to a reading of the clock."""
        waiter = self._core.register_idle_waiter()
        if waiter is not None:
            acquire_within(waiter.lock, deadline - monotonic())
        self._maintenance_thread.wakeup.set()
        self._connectors.join(deadline - monotonic())
        self._keepalive.join(deadline - monotonic())
        if not self._core.used:
            self._maintenance_thread.join(max(MIN_JOIN, deadline - monotonic()))

    def close_held(self) -> None:
        """Close the connections that are checked out."""
        for slot in list(self._core.slots.values()):
            conn = slot.ref()
            if conn is not None and slot.checkout is not None:
                session.close(conn)

    def drain(self) -> None:
        """Close the idle connections now, and the others when they are released."""
        self._discarder.discard(self._core.drain(DiscardReason.DRAINED), DiscardReason.DRAINED)

    def resize(self, minconn: int, maxconn: int) -> None:
        """Change the limits; close surplus connections."""
        outage = self._core.outage
        self._discarder.discard(self._core.resize(minconn, maxconn), DiscardReason.RESIZED)
        self._connectors.start_if_needed()
        observer = self._notifier.observer
        if observer is not None:
            OutageChange(outage, self._core.outage).report_end(self._notifier, observer, monotonic())

    def resume(self) -> None:
        """Serve the waiters of a suspended pool, and open connections again."""
        self._core.resume(monotonic())
        self._connectors.start_if_needed()
        self._wake_maintenance()

    # Options

    def change_timeout(self, seconds: float) -> None:
        """Change the longest wait of a checkout, also of those that wait now."""
        self._durations.timeout = seconds
        self._core.renew_waits()

    def change_long_hold(self, seconds: float) -> None:
        """Change the threshold of long holds, also for holds in progress."""
        self._core.change_long_hold(seconds)
        self._wake_maintenance()

    def change_max_idle(self, seconds: float) -> None:
        """Change the time after which surplus connections are closed, also of those that are idle now."""
        self._durations.max_idle = seconds
        self._wake_maintenance()

    def change_max_lifetime(self, seconds: float) -> None:
        """Change the maximum age of connections, also of those that are open now."""
        self._durations.max_lifetime = seconds  # first: a connection that is opened meanwhile reads it under the lock
        self._core.change_lifetimes(seconds)
        self._wake_maintenance()

    def _wake_maintenance(self) -> None:
        if self._core.state is State.OPEN:
            self._maintenance_thread.wake()
