"""What every acquire from an engine or a pool records, whether a thread or a task makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError as QueuePoolTimeout

from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import driver_error, key_here
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import driver_connection
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.types import PoolErrorType

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable, EngineCheckout
    from otel_pgpool.instrumentation.session import InstrumentationSession


class Acquires:
    """The acquires of one session.

    Args:
        session: the session of the instrumentation.
        table: the checkouts in progress.
    """

    def __init__(self, session: InstrumentationSession, table: CheckoutTable) -> None:
        self.guard = session.guard
        self._table = table
        self._in_progress = table.in_progress
        self._held = table.held

    def _acquired_again(self, checkout: EngineCheckout, fairy: Any, conn: Any) -> None:
        """Record a checkout of a connection that is checked out already, or is not one of SQLAlchemy's."""
        tracker, before = checkout.tracker, self._held.get(id(conn))
        if conn is None:
            tracker.acquired(checkout, fairy)
            tracker.released(checkout)
            return
        if before is not None and before.fairy() is fairy:
            # A thread takes its own connection again, of which only the last release is seen: it ends the first hold.
            slot = tracker.slot_of(driver_connection(conn))
            slot.checkout = None
            tracker.acquired(checkout, driver_connection(conn))
            tracker.released(checkout)
            slot.checkout = before
            return
        if before is not None:  # a StaticPool hands out its only connection any number of times
            before.tracker.released(before)
        self._held[id(conn)] = checkout
        tracker.acquired(checkout, driver_connection(conn))

    @never_raise
    def _failed(self, checkout: EngineCheckout, error: BaseException) -> None:
        """Record a failed checkout. The driver's error is recorded without SQLAlchemy's wrapper around it."""
        if hasattr(checkout, "acquired"):  # an interrupt hit after the hand-over; the release will be recorded
            return
        tracker = checkout.tracker
        driver = checkout.driver
        cause = driver_error(error, driver)
        began = checkout.connect_began
        if began is None and not checkout.connected and driver.is_error(cause) and cause is not checkout.lost:
            began = checkout.wait_ended or checkout.started  # a creator of the application, for which there is no event
        if began is not None:
            tracker.connect_failed(began, cause, checkout.caller)
            tracker.connects.connecting.discard(key_here(is_async=checkout.caller is not None))
        timed_out = isinstance(error, QueuePoolTimeout)
        if timed_out and checkout.queued is None:
            tracker.enqueued_at(checkout, checkout.started)
        tracker.failed(checkout, cause, PoolErrorType.TIMEOUT if timed_out else None)
