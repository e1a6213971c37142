"""The listeners for SQLAlchemy's public events, which report connects, releases and closed connections."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import NullPool, Pool, QueuePool

from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import (
    call_key_of,
    current_call_key,
    driver_error,
    driver_of,
    is_connection_closed,
    is_dropped,
    is_light,
    record_of_hold,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.failed_listeners import ON_CHECKOUT, ON_CONNECT, discard_unused
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import (
    driver_connection,
    is_invalidated,
    keep_has_events,
    reset_has_events,
)
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.gc_state import is_collecting_here
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record
    from otel_pgpool.instrumentation.session import InstrumentationSession


class EventListeners:
    """The listeners; each has the arguments of SQLAlchemy's event.

    Args:
        session: the session of the instrumentation.
        table: the checkouts in progress.
        inherited: the connections of a parent process.
        engine_disposed: called with an engine that has replaced its pool.
    """

    def __init__(
        self,
        session: InstrumentationSession,
        table: CheckoutTable,
        inherited: InheritedConnections,
        engine_disposed: Callable[[Engine], object],
    ) -> None:
        self.guard = session.guard
        self._session = session
        self._table = table
        self._in_progress = table.in_progress
        self._held = table.held
        self._closed_while_held = table.closed_while_held
        self._inherited = inherited.conns
        self._engine_disposed = engine_disposed
        self._dialects: weakref.WeakSet[Any] = weakref.WeakSet()  # those with a listener for connects
        self._listeners: list[tuple[Any, str, Callable[..., None]]] = [
            (Engine, "engine_disposed", self._disposed),
            (Pool, "connect", self._connected),
            (Pool, "checkin", self._checked_in_lightly if is_light(session) else self._checked_in),
            (Pool, "invalidate", self._invalidated),
            (Pool, "detach", self._detached),
            (Pool, "close", self._closing),
        ]

    def add(self) -> None:
        """Add the listeners for all engines and pools."""
        with keep_has_events():
            for target, name, listener in self._listeners:
                event.listen(target, name, listener)

    def add_to_dialect(self, dialect: Any) -> None:
        """Add the listener for connects to one dialect, because other drivers' dialects get none."""
        if dialect not in self._dialects:
            event.listen(dialect, "do_connect", self._connecting)
            self._dialects.add(dialect)

    def remove(self) -> None:
        """Remove all listeners."""
        for target, name, listener in self._listeners:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)
        for dialect in [*self._dialects]:
            event.remove(dialect, "do_connect", self._connecting)
            reset_has_events(dialect)

    @never_raise
    def _disposed(self, engine: Engine) -> None:
        self._engine_disposed(engine)

    @never_raise
    def _connecting(self, dialect: Any, _record: Record, args: Any, parameters: Any) -> None:
        key = current_call_key(is_async=getattr(dialect, "is_async", False))
        checkout = self._table.checkout_of_call(key)
        if checkout is not None:
            # The parameters include ``connect_args``, which are not in the URL.
            checkout.tracker.target_known(driver_of(checkout.tracker).target(tuple(args), parameters))
            checkout.connect_began = monotonic()
            checkout.tracker.connects.connecting.add(key)

    @never_raise
    def _connected(self, conn: Any, record: Record) -> None:
        before = self._closed_while_held.pop(id(record), None)
        if before is not None:  # a StaticPool has replaced a connection, whose release will not be observed
            before.tracker.released(before, Outcome.DISCARDED)
        key = call_key_of(conn)
        checkout = self._table.checkout_of_call(key)
        if checkout is not None:
            conn = driver_connection(conn)
            began, checkout.connect_began, checkout.connected, checkout.lost = checkout.connect_began, None, True, None
            if began is None:
                began = checkout.wait_ended or checkout.started
                checkout.tracker.target_known(driver_of(checkout.tracker).target_of_connection(conn))
            checkout.tracker.connects.connecting.discard(key)
            checkout.tracker.connected(began, conn, checkout.caller)
            checkout.opened = weakref.ref(record), checkout.tracker.slot_of(conn)
            self._table.trackers[record] = checkout.tracker
        elif key in self._table.unknown_calls:
            self._table.unknown_calls[key].is_connected = True

    def _checked_in(self, conn: Any, record: Record) -> None:
        try:
            if not is_here:
                renew()
            checkout: Any = self._held.pop(id(conn), None) or self._closed_while_held.pop(id(record), None)
            if checkout is None:
                if id(conn) in self._inherited:  # this connection of the parent must not get back into the pool
                    record.dbapi_connection = None
            elif checkout.fairy() is None:  # repeats `is_dropped`
                self._session.defer(partial(checkout.tracker.released, checkout, Outcome.RECLAIMED))
            elif conn is None or is_connection_closed(conn, checkout.tracker):
                checkout.tracker.released(checkout, Outcome.DISCARDED)
            else:
                checkout.tracker.released(checkout)
        except Exception as error:  # noqa: BLE001 - as in `never_raise`, which would cost another call
            self.guard.log_error(error)

    def _checked_in_lightly(self, conn: Any, record: Record) -> None:
        """Handle the release of a light checkout. If there is anything to report, it gets a record first."""
        try:
            if not is_here:
                renew()
            key = id(conn)
            if type(self._held.get(key)) is not tuple:
                self._checked_in(conn, record)
                return
            hold = self._held.pop(key, None)
            if type(hold) is tuple:
                tracker, fairy = hold
                light = tracker.light.pop(key, None)
                if light is not None:
                    held_for = monotonic() - light[0]
                    try:
                        is_closed = conn.closed
                    except Exception:  # noqa: BLE001 - a connection of the application's own class
                        is_closed = is_connection_closed(conn, tracker)
                    if held_for < tracker.long_hold and fairy() is not None and not is_closed:
                        tracker.hold_seconds += held_for
                        return
                    tracker.light[key] = light
                hold = record_of_hold(hold, conn)
            if hold is not None:
                self._held[key] = hold
        except Exception as error:  # noqa: BLE001 - as in `never_raise`
            self.guard.log_error(error)
        self._checked_in(conn, record)

    @never_raise
    def _invalidated(self, conn: Any, record: Record, error: BaseException | None) -> None:
        held, acquiring = self._table.held_by(conn), self._table.checkout_of_call(call_key_of(conn))
        known = held or acquiring
        if known is None:
            return
        cause = None if error is None else driver_error(error, driver_of(known.tracker))
        own = driver_connection(conn)
        if held is not None:
            self._table.mark_closed_while_held(held, conn, record)
            slot = held.tracker.slot_of(own)
            held.tracker.slots.pop(slot.key, None)
            reason = _invalidation_reason(cause)
            discarded = partial(held.tracker.discarded, slot, reason, cause, held)
            self._session.defer(discarded) if is_dropped(held) else discarded()
        elif acquiring is not None:
            if cause is not None:
                acquiring.connected, acquiring.lost, acquiring.wait_ended = False, cause, monotonic()
            if isinstance(cause, DisconnectionError):  # the only error after which SQLAlchemy tries another connection
                acquiring.retried(Attempt(monotonic(), error_type(cause), 0.0), None)
                acquiring.tracker.retries += 1
            acquiring.opened = None
            callback = ON_CHECKOUT if record.in_use else ON_CONNECT
            discard_unused(acquiring, acquiring.tracker.slot_of(own), callback, cause)

    @never_raise
    def _detached(self, conn: Any, _record: Record) -> None:
        held = self._table.held_by(conn)
        if held is None:
            return
        self._held.pop(id(conn), None)
        slot = held.tracker.slot_of(driver_connection(conn))
        if is_dropped(held):  # outside of the event loop, SQLAlchemy cannot roll back, and detaches the connection
            self._session.defer(partial(held.tracker.reclaim, slot))
        else:
            held.tracker.released(held, Outcome.DISCARDED)
            held.tracker.discarded(slot, DiscardReason.RETURNED_CLOSED, None, held)

    @never_raise
    def _closing(self, conn: Any, record: Record) -> None:
        held = self._table.held_by(conn)
        if held is not None:  # a StaticPool may close a connection that is checked out
            self._table.mark_closed_while_held(held, conn, record)
        tracker = self._table.trackers.get(record)
        slot = None if tracker is None else tracker.slots.get(id(driver_connection(conn)))
        if tracker is None or slot is None:  # discarded as broken before
            return
        discarded = partial(tracker.discarded, slot, self._close_reason(tracker.pool, conn, record))
        self._session.defer(discarded) if is_collecting_here() else discarded()

    def _close_reason(self, pool: Any, conn: Any, record: Record) -> DiscardReason:
        if isinstance(pool, NullPool) or (isinstance(pool, QueuePool) and 0 < pool.size() <= pool.checkedin()):
            return DiscardReason.IDLE  # released to a pool that was full
        if call_key_of(conn) not in self._in_progress:
            return DiscardReason.DRAINED  # by ``dispose``
        return DiscardReason.DRAINED if is_invalidated(record) else DiscardReason.EXPIRED


def _invalidation_reason(cause: BaseException | None) -> DiscardReason:
    """Return why SQLAlchemy has invalidated a connection that is checked out."""
    if cause is None:  # the application asked to close it
        return DiscardReason.RETURNED_CLOSED
    return DiscardReason.CHECK_FAILED if type(cause) is DisconnectionError else DiscardReason.BROKEN
