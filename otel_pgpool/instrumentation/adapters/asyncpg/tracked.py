"""The trackers of asyncpg's pools, found by a pool or by one of its connections."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker

POOL_ATTR = "_otel_pgpool_pool"
"""Name of the attribute with which the queue of a pool refers to the pool."""


class TrackedPools:
    """The trackers of a session.

    Args:
        session: the session of the instrumentation.
        track: create the tracker of a pool, or return None.
    """

    def __init__(self, session: InstrumentationSession, track: Callable[[Any], PoolTracker | None]) -> None:
        self.guard = session.guard
        self._watch = session.watch
        self._track = track
        self._by_connection: weakref.WeakValueDictionary[int, PoolTracker] = weakref.WeakValueDictionary()  # by id

    def tracker_of(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool; None before the pool is initialized, or if the instrumentation has ended."""
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = private.tracker_attr_of_pool(pool)
        except AttributeError:
            tracker = self._new_tracker_of(pool)
        return tracker if tracker is not None and tracker.watch is self._watch else None

    @never_raise
    def _new_tracker_of(self, pool: Any) -> Any:
        return None if private.queue_of(pool) is None else self._track(pool)

    @never_raise
    def register(self, con: Any, tracker: PoolTracker) -> None:
        """Register a connection of a pool."""
        self._by_connection[id(con)] = tracker
        tracker.slot_of(con)

    def forget(self, con: Any) -> PoolTracker | None:
        """Forget a connection that is closed, and return its tracker; None if it has none."""
        return self._by_connection.pop(id(con), None)
