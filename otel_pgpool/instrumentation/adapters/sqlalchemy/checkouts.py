"""The records of checkouts from SQLAlchemy's pools, by the keys that its events provide."""

from __future__ import annotations

import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.pool import Pool

from otel_pgpool.instrumentation.adapters.sqlalchemy.private import current_greenlet, driver_connection, record_of
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_external
from otel_pgpool.pool.checkout import ManualCheckout
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record
    from otel_pgpool.instrumentation.open_checkouts import TrackedSlot
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack


class EngineCheckout(ManualCheckout):
    """A call of ``Engine.raw_connection`` or ``Pool.connect``, and its connection until the release."""

    __slots__ = ("fairy", "tracker")

    tracker: PoolTracker
    fairy: weakref.ref[Any]
    """SQLAlchemy's ``_ConnectionFairy``, which the caller received; set just before the hand-over."""

    # Defaults of the attributes that few checkouts set.
    wait_ended: float | None = None
    """When the wait for a released connection ended."""
    connect_began: float | None = None
    """When the connect in progress began."""
    connected = False
    """Whether a connection was opened for this checkout and not lost since."""
    opened: tuple[weakref.ref[Record], TrackedSlot] | None = None
    """SQLAlchemy's record and the slot of that connection, if its connect was observed."""
    lost: BaseException | None = None
    """The error for which SQLAlchemy replaces the connection; reset afterwards, as an error keeps its frames."""


LightCall = tuple["PoolTracker", "Stack", float]
"""A light checkout that has no connection yet: the tracker, the call sites and the start."""

LightHold = tuple["PoolTracker", "weakref.ref[Any]"]
"""A light checkout that holds a connection: the tracker, and SQLAlchemy's fairy. The tracker keeps the rest."""


def is_light(session: InstrumentationSession) -> bool:
    """Return whether ordinary checkouts are light: they leave no span."""
    return session.options.telemetry.spans == "off"


def driver_of(tracker: PoolTracker) -> EngineDriver:
    """Return the driver of a pool's connections."""
    adapter: Any = tracker.adapter  # an `EnginePoolReader`
    driver: EngineDriver = adapter.driver
    return driver


def is_dropped(checkout: EngineCheckout) -> bool:
    """Return whether the garbage collector releases the connection, because its holder dropped it.

    The release is then deferred, because the garbage collector may run under any lock, including the telemetry's.
    """
    return checkout.fairy() is None


def is_connection_closed(conn: Any, tracker: PoolTracker) -> bool:
    """Return whether a connection is closed; False if that is unknown."""
    try:
        closed: bool = conn.closed
    except AttributeError:
        return driver_of(tracker).is_closed(driver_connection(conn))
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        raise_if_external(error)
        return False
    return closed


def driver_error(error: BaseException, driver: EngineDriver) -> BaseException:
    """Return the driver's error inside an error of SQLAlchemy, or inside that of its adapter of asyncpg."""
    with ignore_errors:  # an error of the application may have any ``orig``, or a property that raises
        own = getattr(error, "orig", None)
        error = own if isinstance(own, BaseException) else error
    cause = error.__cause__
    return cause if cause is not None and driver.is_error(cause) and not driver.is_error(error) else error


def is_timeout_of(pool: Any, error: BaseException) -> bool:
    """Return whether an error is the timeout of a pool, and not of another one that a callback of this pool uses."""
    if not isinstance(error, QueuePoolTimeout):
        return False
    methods = (frame.f_locals.get("self") for frame, _line in traceback.walk_tb(error.__traceback__))
    pools = [each for each in methods if issubclass(type(each), Pool)]
    return bool(pools) and pools[-1] is pool  # the innermost


def call_key_of(conn: Any) -> int:
    """Return the key of the call in progress that has opened or uses a connection."""
    return current_call_key(is_async=isinstance(conn, AdaptedConnection))


def current_call_key(*, is_async: bool) -> int:
    """Return the key of the call in progress here: of a thread, or of SQLAlchemy's greenlet in a task."""
    return id(current_greenlet()) if is_async else threading.get_ident()


def record_of_call(call: EngineCheckout | LightCall) -> EngineCheckout:
    """Return the record of a checkout that has no connection yet. Only the thread of the checkout may call this."""
    if isinstance(call, EngineCheckout):
        return call
    tracker, stack, started = call
    checkout = EngineCheckout()
    checkout.tracker = tracker
    return tracker.start_with(checkout, stack, started)


def record_of_hold(held: LightHold, conn: Any) -> EngineCheckout | None:
    """Return the record of a light checkout that holds a connection; None if the tracker has ended it.

    The tracker may have made the record before. That record is no `EngineCheckout`, but gets the attributes of one.
    """
    tracker, fairy = held
    slot = tracker.slots.get(id(conn))
    record: Any = None if slot is None else tracker.promote(slot) or slot.checkout
    if record is not None:
        record.tracker, record.fairy = tracker, fairy
    checkout: EngineCheckout | None = record
    return checkout


class UnknownPoolCall:
    """A call of ``Pool.connect`` in progress, for a pool without an engine that is not tracked yet."""

    def __init__(self) -> None:
        self.started = monotonic()
        self.queued: float | None = None
        self.wait_ended: float | None = None
        self.is_connected = False


class CheckoutTable:
    """The checkouts in progress. The dictionaries are never replaced, because wrappers refer to them.

    The methods of this class replace a light checkout by its record.
    """

    def __init__(self) -> None:
        # Checkouts that have no connection yet, by `current_call_key`.
        self.in_progress: dict[int, EngineCheckout | LightCall] = {}
        self.unknown_calls: dict[int, UnknownPoolCall] = {}  # by `current_call_key`
        self.held: dict[int, EngineCheckout | LightHold] = {}  # by id of the connection
        self.closed_while_held: dict[int, EngineCheckout] = {}  # by id of the record, which outlives its connection
        self.trackers: weakref.WeakKeyDictionary[Record, PoolTracker] = weakref.WeakKeyDictionary()

    def checkout_of_call(self, key: int) -> EngineCheckout | None:
        """Return the checkout in progress of a call; None if there is none."""
        call = self.in_progress.get(key)
        if call is None:
            return None
        record = self.in_progress[key] = record_of_call(call)
        return record

    def held_by(self, conn: Any) -> EngineCheckout | None:
        """Return the checkout that holds a connection; None if there is none."""
        held = self.held.get(id(conn))
        if not isinstance(held, tuple):
            return held
        record = record_of_hold(held, conn)
        if record is None:
            self.held.pop(id(conn), None)
        else:
            self.held[id(conn)] = record
        return record

    def mark_closed_while_held(self, checkout: EngineCheckout, conn: Any, record: Record) -> None:
        """Note that a connection is closed before its release, so that its checkout is found by SQLAlchemy's record."""
        self.closed_while_held[id(record)] = checkout
        self.held.pop(id(conn), None)

    def leave_to_parent(self, pool: Any, idle: list[Record], inherited: InheritedConnections) -> None:
        """Drop, in a forked child, all connections of a pool that are checked out, or were at the fork."""
        for record, tracker in [*self.trackers.items()]:
            if tracker.pool is not pool:
                continue
            if record not in idle and record.dbapi_connection is not None:
                # Was being checked out or released at the fork.
                inherited.add(record, record.dbapi_connection, driver_of(tracker), tracker.name)
            self.trackers.pop(record, None)

    def leave_held_to_parent(self, inherited: InheritedConnections) -> None:
        """Drop, in a forked child, every checkout of the parent."""
        for held in self.held.values():
            tracker, fairy_ref = held if isinstance(held, tuple) else (held.tracker, held.fairy)
            with ignore_errors:
                fairy: Any = fairy_ref()
                inherited.add(record_of(fairy), fairy.dbapi_connection, driver_of(tracker), tracker.name)
        for known in (self.in_progress, self.unknown_calls, self.held, self.closed_while_held):
            known.clear()
