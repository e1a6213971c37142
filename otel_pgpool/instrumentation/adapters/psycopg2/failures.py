"""Failed calls of ``getconn`` and ``putconn``, and connections that the pool closes at a release."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.pool import PoolError

from otel_pgpool.driver.session import BROKEN
from otel_pgpool.instrumentation.adapters.psycopg2 import private
from otel_pgpool.instrumentation.adapters.psycopg2.driver import closed_of
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason, Outcome, PoolErrorType

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import ManualCheckout, Slot

EXHAUSTED = "connection pool exhausted"


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error means that all connections are in use; psycopg2 has only this text for it, no class."""
    if isinstance(error, PoolError):
        with ignore_errors:  # ``str`` of an application's own class may raise
            return str(error) == EXHAUSTED
    return False


def handle_failed_getconn(
    tracker: PoolTracker, pool: Any, checkout: ManualCheckout | None, acquired: Any, error: BaseException
) -> None:
    """Record a failed checkout, and release a connection that an interrupt has kept from the caller."""
    if acquired is not None:
        release_unused(pool, acquired)
    if checkout is not None and hasattr(checkout, "is_observed") and not hasattr(checkout, "released"):
        if not hasattr(checkout, "started"):
            checkout.started = monotonic()
        record_failure(tracker, pool, checkout, error)


def handle_failed_putconn(
    tracker: PoolTracker, pool: Any, conn: Any, checkout: ManualCheckout, error: BaseException
) -> None:
    """Record the end of a hold, unless the release was refused, or interrupted early."""
    if isinstance(error, psycopg2.Error):
        tracker.released(checkout, Outcome.DISCARDED, error)
    elif not still_checked_out(pool, conn, error):
        tracker.released(checkout, Outcome.DISCARDED if closed_of(conn) else Outcome.RELEASED)


def release_unused(pool: Any, conn: Any) -> None:
    """Release a connection that was handed out but, due to an interrupt, did not reach the caller."""
    with suppress(Exception):  # the caller has to get the interrupt, not this error
        private.release(pool, conn)


def record_failure(tracker: PoolTracker, pool: Any, checkout: ManualCheckout, error: BaseException) -> None:
    """Record that the pool handed out no connection."""
    refusal = None
    if is_exhausted(error):
        refusal = PoolErrorType.TIMEOUT
    elif isinstance(error, PoolError):
        with ignore_errors:  # a subclass may have no such attribute
            refusal = PoolErrorType.CLOSED if pool.closed else None
    tracker.failed(checkout, error, refusal)


def still_checked_out(pool: Any, conn: Any, error: BaseException) -> bool:
    """Return whether the connection is still checked out after a failed release: refused, or interrupted early.

    If the pool's own work on the connection failed, such as its rollback, the hold is over, although psycopg2's pool
    counts the connection as used until it is released once more.
    """
    return isinstance(error, PoolError) or (
        private.is_checked_out(pool, conn) and not isinstance(error, psycopg2.Error)
    )


def record_discard(
    tracker: PoolTracker, slot: Slot, was_closed: int, *, close: bool, checkout: ManualCheckout | None = None
) -> None:
    """Record that the pool closed a connection at its release: as requested, as dead, or as one too many."""
    if was_closed:
        reason = DiscardReason.BROKEN if was_closed == BROKEN else DiscardReason.RETURNED_CLOSED
    else:
        reason = DiscardReason.RETURNED_CLOSED if close else DiscardReason.IDLE
    if checkout is not None:
        tracker.released(checkout, Outcome.RELEASED if reason is DiscardReason.IDLE else Outcome.DISCARDED)
    held_again = slot.checkout not in (None, checkout) or slot.key in tracker.light  # so the next holder closed it
    if tracker.slots.get(slot.key) is slot and not held_again:
        tracker.discarded(slot, reason, None, checkout)
