"""The adapter of psycopg_pool's pools: the classes and methods that are wrapped, and a pool's state."""

from __future__ import annotations

import inspect
import os
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    pool,
    pool_async,
)
from psycopg_pool.base import BasePool

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.base import Levels, PoolAdapter
from otel_pgpool.instrumentation.adapters.psycopg.driver import Psycopg, is_closed
from otel_pgpool.instrumentation.adapters.psycopg.target import target_of_arguments
from otel_pgpool.instrumentation.adapters.psycopg_pool import blocking, coroutines, light, light_coroutines, private
from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
from otel_pgpool.instrumentation.adapters.psycopg_pool.fork import InheritedPsycopgPools
from otel_pgpool.instrumentation.adapters.psycopg_pool.monitor import connector
from otel_pgpool.instrumentation.adapters.replacements import Replacements
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.session import find_instances, subclasses_of
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.by_identity import WeakIdentityDict
from otel_pgpool.runtime.text import may_hold_password
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import ModuleType

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.open_checkouts import TrackedSlot
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker


class PsycopgPoolAdapter(Psycopg, PoolAdapter):
    """The adapter of psycopg_pool's pools.

    A subclass's own ``getconn`` is observed where it calls that of psycopg_pool.
    """

    def __init__(self, session: InstrumentationSession) -> None:
        self._session = session
        self._replacements = Replacements()
        of_both = session, self._track, self._replacements
        self._calls = PoolCalls(*of_both, _code_of(ConnectionPool.connection), get_ident)
        self._async_calls = PoolCalls(*of_both, _code_of(AsyncConnectionPool.connection), coroutines.current_key)
        # The class and the wrappers of ``check``, until these are installed.
        self._check_wrappers: dict[PoolCalls, Any] = {}
        self._is_light = session.options.telemetry.spans == "off"
        self._inherited = InheritedPsycopgPools(is_repaired=session.options.fork_repair)
        self._calls.inherited = self._async_calls.inherited = self._inherited
        # The process that opened each pool, and the slots of its connections, kept for a forked child, whose tracker
        # has new ones.
        self._origins: WeakIdentityDict[tuple[int, dict[int, TrackedSlot]]] = WeakIdentityDict()

    @classmethod
    def pool_of(cls, given: Any) -> Any:
        """Return the pool that an object is."""
        return given if isinstance(given, (ConnectionPool, AsyncConnectionPool)) else None

    def track_selected(self, pool: Any) -> None:
        """Start to track a pool, if it is open, and its connections."""
        self._track_open([pool])

    # Which methods are wrapped

    def install(self) -> None:
        """Wrap the methods, and track the present pools.

        Raises:
            AttributeError: this release of psycopg_pool lacks a private name that is needed.
        """
        private.check_names()
        self._check_wrappers = {
            self._calls: (ConnectionPool, blocking),
            self._async_calls: (AsyncConnectionPool, coroutines),
        }
        of_threads = {**blocking.POOL_WRAPPERS, **(light.POOL_WRAPPERS if self._is_light else {})}
        self._wrap(self._calls, (ConnectionPool, NullConnectionPool), of_threads, blocking, pool)
        self._wrap(
            self._async_calls,
            (AsyncConnectionPool, AsyncNullConnectionPool),
            {**coroutines.POOL_WRAPPERS, **(light_coroutines.POOL_WRAPPERS if self._is_light else {})},
            coroutines,
            pool_async,
        )
        self._track_open(find_instances([BasePool, *subclasses_of(BasePool)]))

    def _wrap(
        self, calls: PoolCalls, owners: Sequence[type], of_pools: Mapping[str, Any], wrappers: Any, module: ModuleType
    ) -> None:
        """Wrap the methods of classes of pools, and of the classes that these use."""
        for cls, methods in (
            *((owner, of_pools) for owner in owners),
            (module.WaitingClient, wrappers.WAITING_CLIENT_WRAPPERS),
            (module.ReturnConnection, wrappers.RETURN_CONNECTION_WRAPPERS),
        ):
            for name in methods.keys() & vars(cls).keys():  # an earlier release may not have each method
                self._replacements.wrap(cls, name, partial(methods[name], calls))

    def _wrap_check(self, calls: PoolCalls) -> None:
        """Wrap the method that calls ``check``, as soon as a pool has a check: every checkout calls that method."""
        owner, wrappers = self._check_wrappers.pop(calls, (None, None))
        if owner is not None:
            self._replacements.wrap(owner, "_check_connection", partial(wrappers.CHECK_WRAPPER, calls))

    def uninstall(self) -> None:
        """Restore the original methods."""
        self._check_wrappers.clear()
        self._replacements.restore()
        self._inherited.end()

    # Pools

    def _track_open(self, pools: Iterable[Any]) -> None:
        """Track the pools that are open, and their connections, so that the checked-out ones count."""
        pools = [each for each in pools if _is_open(each)]
        conns = [*find_instances([psycopg.BaseConnection, *subclasses_of(psycopg.BaseConnection)])] if pools else []
        for each in pools:
            self._calls_of(each).separate(each)
            tracker = self._calls_of(each).tracker_for_use(each)
            if tracker is not None:
                with ignore_errors:
                    checked_out = [conn for conn in conns if private.is_checked_out(each, conn)]
                    for conn in (*private.idle_connections(each), *checked_out):
                        tracker.slot_of(conn)

    def _calls_of(self, pool: Any) -> PoolCalls:
        return self._async_calls if isinstance(pool, AsyncConnectionPool) else self._calls

    def _track(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool, created if there is none and the pool was opened."""
        if not (private.is_initialized(pool) and private.was_opened(pool)):
            return None
        if not self._session.observes(pool, self.kind):
            return None
        target = self.target(pool)
        tracker = self._session.track(pool, self, name=_name_of(pool, target), target=target)
        if tracker is not None and pool not in self._inherited:
            self._origins[pool] = os.getpid(), tracker.slots
            calls = self._calls_of(pool)
            if private.has_check(pool):
                self._wrap_check(calls)
            is_light = self._is_light and light.is_light(pool)
            tracker.fast_path_owner = calls.light_owner if is_light else calls
        return tracker

    # The state of a pool

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool. A connection that was dropped without a release occupies its place forever."""
        tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
        used = 0
        if tracker is not None and tracker is not self._session.unobserved:
            used = sum(_is_used(pool, tracker, slot) for slot in tracker.slots.copy().values())
            used += len(tracker.cleared) + tracker.discards.get(DiscardReason.RECLAIMED.value, 0)
        max_idle = 0 if private.is_null(pool) else pool.max_size
        return Levels(pool.min_size, pool.max_size, used, private.idle_count(pool), max_idle, closed=pool.closed)

    def target(self, pool: Any) -> Target:
        """Return the target of a pool's connects; unknown if the application provides it by a function."""
        return target_of_arguments(pool.conninfo, pool.kwargs)

    def monitor_connect(self, pool: Any) -> MonitorConnect:
        """Return the function that opens monitoring connections."""
        return connector(pool)

    def is_idle(self, pool: Any, conn: Any) -> bool:
        """Return whether a connection is idle: a subclass may release by a method that is not wrapped."""
        return not private.is_checked_out(pool, conn)

    def forget_inherited(self, pool: Any) -> int:
        """Leave the parent's connections to the parent, if pools are repaired; return their number."""
        tracker: PoolTracker = getattr(pool, TRACKER_ATTR)
        tracker.fast_path_owner = None  # so that the next use calls `_track`
        self._calls_of(pool).reset_after_fork()
        parent, slots = self._origins.pop(pool) or (os.getppid(), {})
        # The slots include connections that the pool was checking or was about to hand out at the fork.
        known = [*private.idle_connections(pool), *(slot.ref() for slot in slots.values())]
        conns = {id(conn): conn for conn in known if conn is not None and not is_closed(conn)}
        if not pool.closed:
            self._inherited.inherit(pool, parent, conns.values())
        return len(conns)


def _name_of(pool: Any, target: Target) -> str | None:
    """Return the name of a pool; None if it may be a secret, or is only a number while the target is known."""
    name = str(pool.name)
    is_number = private.GENERATED_NAME.fullmatch(name) is not None
    return None if (is_number and target is not UNKNOWN) or may_hold_password(name) else name


def _is_used(pool: Any, tracker: PoolTracker, slot: TrackedSlot) -> bool:
    """Return whether a connection is checked out of a pool, and not one that is closed before a caller receives it."""
    conn = slot.ref()
    if conn is None or not private.is_checked_out(pool, conn):
        return False
    return slot.checkout is not None or slot.key in tracker.light or not is_closed(conn)


def _is_open(pool: Any) -> bool:
    with ignore_errors:
        return private.is_initialized(pool) and not pool.closed
    return False


def _code_of(method: Any) -> Any:
    return getattr(inspect.unwrap(method), "__code__", None)
