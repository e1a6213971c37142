"""The records of checkouts from SQLAlchemy's pools, by the keys that its events provide."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.interfaces import AdaptedConnection

from otel_pgpool.instrumentation.adapters.sqlalchemy.private import current_greenlet, driver_connection, record_of
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_asynchronous
from otel_pgpool.pool.checkout import ManualCheckout
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record
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
    lost: BaseException | None = None
    """The error for which SQLAlchemy replaces the connection; reset afterwards, as an error keeps its frames."""


LightRequest = tuple["PoolTracker", "Stack", float]
"""A checkout without a connection, as long as there is nothing to report: tracker, call sites and start."""

LightHold = tuple["PoolTracker", "weakref.ref[Any]"]
"""A checkout with a connection, which its tracker keeps in the light form: the tracker, and SQLAlchemy's fairy."""


def is_light(session: InstrumentationSession) -> bool:
    """Return whether ordinary checkouts are light: they leave no span."""
    return session.options.telemetry.spans == "off"


def driver_of(tracker: PoolTracker) -> EngineDriver:
    """Return the driver of a pool's connections."""
    adapter: Any = tracker.adapter  # an `EnginePools`
    driver: EngineDriver = adapter.driver
    return driver


def is_dropped(checkout: EngineCheckout) -> bool:
    """Return whether the garbage collector releases the connection, because its holder dropped it.

    The release is then deferred, because the garbage collector may run under any lock, including the telemetry's.
    """
    return checkout.fairy() is None


def closed_of(conn: Any, tracker: PoolTracker) -> bool:
    """Return whether a connection is closed; False if that is unknown."""
    try:
        closed: bool = conn.closed
    except AttributeError:
        return driver_of(tracker).is_closed(driver_connection(conn))
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        raise_if_asynchronous(error)
        return False
    return closed


def driver_error(error: BaseException, driver: EngineDriver) -> BaseException:
    """Return the driver's error inside an error of SQLAlchemy, or inside that of its adapter of asyncpg."""
    error = getattr(error, "orig", None) or error
    cause = error.__cause__
    return cause if cause is not None and driver.is_error(cause) and not driver.is_error(error) else error


def key_of(conn: Any) -> int:
    """Return the key of the call in progress that has opened or uses a connection."""
    return key_here(is_async=isinstance(conn, AdaptedConnection))


def key_here(*, is_async: bool) -> int:
    """Return the key of the call in progress here: of a thread, or of SQLAlchemy's greenlet in a task."""
    return id(current_greenlet()) if is_async else threading.get_ident()


def record_of_request(request: EngineCheckout | LightRequest) -> EngineCheckout:
    """Return the record of a checkout without a connection. Called by the thread that has requested it."""
    if isinstance(request, EngineCheckout):
        return request
    tracker, stack, started = request
    checkout = EngineCheckout()
    checkout.tracker = tracker
    return tracker.start_with(checkout, stack, started)


def record_of_hold(held: LightHold, conn: Any) -> EngineCheckout | None:
    """Return the record of a light checkout that holds a connection; None if the tracker has ended it.

    The tracker may have made the record already. It is no `EngineCheckout`, but gets the attributes of one.
    """
    tracker, fairy = held
    slot = tracker.slots.get(id(conn))
    record: Any = None if slot is None else tracker.promote(slot) or slot.checkout
    if record is not None:
        record.tracker, record.fairy = tracker, fairy
    checkout: EngineCheckout | None = record
    return checkout


class UnknownRequest:
    """A call of ``Pool.connect`` in progress, of a pool without an engine that is not known yet."""

    def __init__(self) -> None:
        self.started = monotonic()
        self.queued: float | None = None
        self.wait_ended: float | None = None
        self.is_connected = False


class CheckoutTable:
    """The checkouts in progress. The dictionaries are never replaced, so that others may refer to them.

    A light checkout gets its record as soon as it is looked up.
    """

    def __init__(self) -> None:
        # Those without a connection yet, by `key_here`.
        self.in_progress: dict[int, EngineCheckout | LightRequest] = {}
        self.unknown: dict[int, UnknownRequest] = {}  # likewise, by `key_here`
        self.held: dict[int, EngineCheckout | LightHold] = {}  # by id of the connection
        self.closed_while_held: dict[int, EngineCheckout] = {}  # by id of the record, which outlives its connection
        self.trackers: weakref.WeakKeyDictionary[Record, PoolTracker] = weakref.WeakKeyDictionary()

    def requested(self, key: int) -> EngineCheckout | None:
        """Return the checkout in progress of a call; None if there is none."""
        request = self.in_progress.get(key)
        if request is None:
            return None
        record = self.in_progress[key] = record_of_request(request)
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
        """Look up a checkout by SQLAlchemy's record from now on: its connection is closed before the release."""
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
        for known in (self.in_progress, self.unknown, self.held, self.closed_while_held):
            known.clear()
