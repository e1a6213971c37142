"""The records of checkouts from SQLAlchemy's pools, by the keys that its events provide."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.interfaces import AdaptedConnection

from otel_pgpool.instrumentation.adapters.sqlalchemy.private import current_greenlet, driver_connection, record_of
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_asynchronous
from otel_pgpool.pool.checkout import ManualCheckout

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record
    from otel_pgpool.instrumentation.tracker import PoolTracker


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

    @property
    def driver(self) -> EngineDriver:
        """The driver of the pool's connections."""
        adapter: Any = self.tracker.adapter  # an `EnginePools`
        driver: EngineDriver = adapter.driver
        return driver

    @property
    def is_dropped(self) -> bool:
        """Whether the garbage collector releases the connection, because its holder dropped it.

        The release is then deferred, because the garbage collector may run under any lock, including the telemetry's.
        """
        return self.fairy() is None


def closed_of(conn: Any, checkout: EngineCheckout) -> bool:
    """Return whether a connection is closed; False if that is unknown."""
    try:
        closed: bool = conn.closed
    except AttributeError:
        return checkout.driver.is_closed(driver_connection(conn))
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


class CheckoutTable:
    """The checkouts in progress. The dictionaries are never replaced, so that others may refer to them."""

    def __init__(self) -> None:
        self.in_progress: dict[int, EngineCheckout] = {}  # those without a connection yet, by `key_here`
        self.held: dict[int, EngineCheckout] = {}  # by id of the connection
        self.closed_while_held: dict[int, EngineCheckout] = {}  # by id of the record, which outlives its connection
        self.trackers: weakref.WeakKeyDictionary[Record, PoolTracker] = weakref.WeakKeyDictionary()

    def mark_closed_while_held(self, checkout: EngineCheckout, conn: Any, record: Record) -> None:
        """Look up a checkout by its record from now on, because its connection is closed before the release."""
        self.closed_while_held[id(record)] = checkout
        self.held.pop(id(conn), None)

    def leave_to_parent(self, pool: Any, idle: list[Record], inherited: InheritedConnections) -> None:
        """Drop, in a forked child, all connections of a pool that are checked out, or were at the fork."""
        for record, tracker in [*self.trackers.items()]:
            if tracker.pool is pool and record not in idle and record.dbapi_connection is not None:
                adapter: Any = tracker.adapter
                driver: EngineDriver = adapter.driver
                inherited.add(record, record.dbapi_connection, driver)  # was being checked out or released at the fork

    def leave_held_to_parent(self, inherited: InheritedConnections) -> None:
        """Drop, in a forked child, every checkout of the parent."""
        for checkout in self.held.values():
            with ignore_errors:
                fairy: Any = checkout.fairy()
                inherited.add(record_of(fairy), fairy.dbapi_connection, checkout.driver)
        for known in (self.in_progress, self.held, self.closed_while_held):
            known.clear()
