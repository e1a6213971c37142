"""The connections that a pool closes, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from otel_pgpool.instrumentation.adapters.psycopg.driver import NO_PGCONN, is_broken, is_closed
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import ManualCheckout, Slot

ACTIVE, UNKNOWN = TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN
UNPLANNED_REASONS = (DiscardReason.BROKEN, DiscardReason.RETURNED_CLOSED, DiscardReason.RESET_FAILED)
"""The reasons of discards that the pool did not plan: the released connection cannot be used again."""


def pgconn_of(conn: Any) -> tuple[Any, int]:
    """Return libpq's object of a connection, and the transaction status; a stand-in if they cannot be read."""
    try:
        pgconn = conn.pgconn
        status: int = pgconn.transaction_status
    except Exception as error:  # noqa: BLE001 - a connection of the application's own class
        raise_if_external(error)
        return NO_PGCONN, UNKNOWN
    return pgconn, status


def reason_at_release(pool: Any, conn: Any, status: int, error: BaseException | None = None) -> DiscardReason:
    """Return why a pool has closed a connection at its release.

    Args:
        pool: the pool.
        conn: the connection.
        status: its transaction status at the release.
        error: the error of its rollback or its ``reset``, if there was one and it is known.
    """
    if error is not None:
        return DiscardReason.RESET_FAILED
    if status == UNKNOWN:
        return DiscardReason.BROKEN if is_broken(conn) else DiscardReason.RETURNED_CLOSED
    if pool.closed:
        return DiscardReason.CLOSED
    if private.is_null(pool):
        return DiscardReason.IDLE
    return DiscardReason.BROKEN if status == ACTIVE else _reason_of_age(pool, conn)


def _reason_of_age(pool: Any, conn: Any) -> DiscardReason:
    """Return why a pool has closed a connection that was usable at its release: its age, or else a failed reset."""
    if private.is_drained(pool, conn):
        return DiscardReason.DRAINED
    return DiscardReason.EXPIRED if private.is_expired(conn) else DiscardReason.RESET_FAILED


def reason_of_method(method: str, conn: Any) -> DiscardReason:
    """Return why a method has closed an idle connection."""
    if method == "check":
        return DiscardReason.EXPIRED if private.is_expired(conn) else DiscardReason.CHECK_FAILED
    return {"close": DiscardReason.CLOSED, "drain": DiscardReason.DRAINED}.get(method, DiscardReason.IDLE)


def is_left_to_worker(pool: Any, status: int) -> bool:
    """Return whether a worker resets a connection after its release, and then decides whether to close it."""
    return private.has_reset(pool) and status != UNKNOWN and not pool.closed and not private.is_null(pool)


def record_discard(
    tracker: PoolTracker,
    slot: Slot,
    reason: DiscardReason,
    checkout: ManualCheckout | None = None,
    error: BaseException | None = None,
) -> None:
    """Record that a pool has closed a connection, and the end of the hold, if there is one."""
    if checkout is not None:
        tracker.released(checkout, Outcome.DISCARDED if reason in UNPLANNED_REASONS else Outcome.RELEASED)
    held_again = slot.checkout not in (None, checkout) or slot.key in tracker.light  # so the next holder has closed it
    if tracker.slots.get(slot.key) is slot and not held_again:
        tracker.discarded(slot, reason, error, checkout)


def record_closed(tracker: PoolTracker, conn: Any, reason: DiscardReason, error: BaseException | None = None) -> None:
    """Record that a pool has closed a connection that no caller holds, unless that is known already."""
    slot = tracker.slots.get(id(conn))
    if slot is not None and is_closed(conn):
        record_discard(tracker, slot, reason, None, error)
