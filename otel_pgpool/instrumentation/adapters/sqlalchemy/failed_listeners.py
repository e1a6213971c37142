"""Connections that SQLAlchemy closes before their hand-over, because a listener raised or a check failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DisconnectionError

from otel_pgpool.driver.refusal_texts import refuses_by_state
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import driver_of
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import EngineCheckout
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.open_checkouts import TrackedSlot

ON_CONNECT, ON_CHECKOUT = "connect listener", "checkout listener"
"""Names of callbacks in records. A plain ``connect`` means the arguments of a connect."""


def discard_opened(checkout: EngineCheckout, cause: BaseException) -> None:
    """Discard the connection that was opened for a failed checkout, unless the pool has it.

    SQLAlchemy drops or closes the connection without an event if a listener for ``connect`` raises.
    """
    if checkout.opened is None or not checkout.connected:
        return
    record_ref, slot = checkout.opened
    record = record_ref()
    if record is None or not record.in_use:
        discard_unused(checkout, slot, ON_CONNECT, cause)


def discard_unused(checkout: EngineCheckout, slot: TrackedSlot, callback: str, cause: BaseException | None) -> None:
    """Discard a connection that is not handed out, and report the callback that raised, unless that asks for another.

    Args:
        checkout: the checkout that gets another connection or none.
        slot: the slot of the connection.
        callback: name of the callback that has raised if the connection was not lost.
        cause: the error; None if the application has only asked to close the connection.
    """
    tracker = checkout.tracker
    reason = _reason_of(cause, driver_of(tracker))
    is_failure = isinstance(cause, Exception) and not isinstance(cause, DisconnectionError)
    if reason is DiscardReason.CHECK_FAILED and is_failure:
        tracker.callback_failed(callback, cause, checkout)
    tracker.discarded(slot, reason, cause, checkout)


def _reason_of(cause: BaseException | None, driver: EngineDriver) -> DiscardReason:
    if cause is None:
        return DiscardReason.RETURNED_CLOSED
    is_lost = isinstance(cause, DisconnectionError) and type(cause) is not DisconnectionError
    return DiscardReason.BROKEN if is_lost or _ends_connection(cause, driver) else DiscardReason.CHECK_FAILED


def _ends_connection(error: BaseException, driver: EngineDriver) -> bool:
    """Return whether a driver's error means that the connection was lost, not that a statement failed."""
    state = sqlstate(error)
    return driver.is_error(error) and (state is None or not refuses_by_state(state))
