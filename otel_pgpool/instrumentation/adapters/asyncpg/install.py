"""The adapter of asyncpg's pools: the methods that are wrapped, and a pool's state."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncpg.connection import Connection
from asyncpg.pool import Pool, PoolAcquireContext, PoolConnectionHolder

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.checkouts import CheckoutCalls
from otel_pgpool.instrumentation.adapters.asyncpg.driver import Asyncpg
from otel_pgpool.instrumentation.adapters.asyncpg.fork import InheritedAsyncpgPools
from otel_pgpool.instrumentation.adapters.asyncpg.monitor import connector
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_arguments
from otel_pgpool.instrumentation.adapters.asyncpg.tracked import POOL_ATTR, TrackedPools
from otel_pgpool.instrumentation.adapters.asyncpg.wrappers import PoolCalls
from otel_pgpool.instrumentation.adapters.base import Levels, PoolAdapter
from otel_pgpool.instrumentation.adapters.replacements import Replacements
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.session import find_instances, subclasses_of

if TYPE_CHECKING:
    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker


class AsyncpgAdapter(Asyncpg, PoolAdapter):
    """The adapter of ``asyncpg.Pool`` and its subclasses.

    A pool accepts neither a further attribute nor a weak reference. Its queue accepts both, and exists as long as the
    pool. So trackers are created for queues, and each queue gets a reference to its pool.
    """

    def __init__(self, session: InstrumentationSession) -> None:
        self._session = session
        self._inherited = InheritedAsyncpgPools(is_repaired=session.options.fork_repair)
        self._tracked = TrackedPools(session, self._track)
        self._calls = PoolCalls(session, self._tracked)
        self._checkouts = CheckoutCalls(session, self._tracked, self._inherited)
        self._queues: weakref.WeakSet[Any] = weakref.WeakSet()
        self._replacements = Replacements()

    @classmethod
    def pool_of(cls, given: Any) -> Any:
        """Return the queue, which stands for a pool, or the list of holders of a pool that is not initialized."""
        if not isinstance(given, Pool):
            return None
        queue = private.queue_of(given)
        return private.referable_holders(given) if queue is None else queue

    @classmethod
    def owner_of(cls, given: Any) -> Any:
        """Return the list of holders that stood for a pool when it was chosen; None if the queue did."""
        return private.chosen_holders(given)

    def install(self) -> None:
        """Wrap the methods, and track the pools that are open.

        Raises:
            AttributeError: this release of asyncpg lacks a private name that is needed.
        """
        private.check_names()
        checkouts, calls, wrap = self._checkouts, self._calls, self._replacements.wrap
        wrap(Pool, "acquire", checkouts.wrap_acquire)
        wrap(PoolAcquireContext, "__aenter__", checkouts.wrap_enter)
        wrap(PoolAcquireContext, "__await__", checkouts.wrap_await)
        wrap(PoolConnectionHolder, "_release", checkouts.wrap_release)
        wrap(Pool, "_get_new_connection", calls.wrap_connect)
        wrap(Connection, "_cleanup", calls.wrap_cleanup)
        wrap(Pool, "_async__init__", calls.wrap_initialize)
        wrap(Pool, "close", calls.wrap_close)
        wrap(Pool, "terminate", calls.wrap_terminate)
        wrap(Pool, "set_connect_args", partial(calls.wrap_set_connect_args, target=self._target_of))
        for pool in find_instances({Pool, *subclasses_of(Pool)}):
            with ignore_errors:  # a pool whose constructor has not finished
                if not private.is_closed(pool):
                    self._tracked.tracker_of(pool)

    def uninstall(self) -> None:
        """Restore the original methods."""
        self._replacements.restore()
        for queue in [*self._queues]:
            vars(queue).pop(POOL_ATTR, None)

    def _track(self, pool: Any) -> PoolTracker | None:
        """Create the tracker of a pool that was not tracked before."""
        queue, chosen = private.queue_of(pool), private.chosen_holders(pool)
        if not (self._session.is_on and self._session.observes(queue, self.kind, owner=chosen)):
            return None
        setattr(queue, POOL_ATTR, pool)
        self._queues.add(queue)
        self._inherited.opened(queue)
        tracker = self._session.track(queue, self, owner=chosen)
        if tracker is not None:
            for con in private.connections_of(pool):
                self._tracked.register(con, tracker)
        return tracker

    # The state of a pool, given by its queue

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool. A pool of a parent process has no connections until it begins anew."""
        is_inherited = self._inherited.is_inherited(pool)
        pool = getattr(pool, POOL_ATTR, None)
        if pool is None:  # after `uninstall`, when a collected tracker reads its last figures
            return Levels(0, 0, 0, 0, 0, closed=True)
        size, idle = (0, 0) if is_inherited else private.sizes_of(pool)
        least, limit = private.limits_of(pool)
        return Levels(least, limit, size - idle, idle, limit, closed=private.is_closed(pool))

    def target(self, pool: Any) -> Target:
        """Return the target of a pool's connects."""
        return self._target_of(getattr(pool, POOL_ATTR))

    def _target_of(self, pool: Any) -> Target:
        if not private.connects_itself(pool):  # a function of the application may connect to anything
            return UNKNOWN
        return target_of_arguments(*private.connect_arguments(pool))

    def monitor_connect(self, pool: Any) -> MonitorConnect:
        """Return the function that opens monitoring connections."""
        return connector(pool)

    def forget_inherited(self, pool: Any) -> int:
        """Note a pool, and its connections, as those of the parent; return the number of connections."""
        cons = [*private.connections_of(getattr(pool, POOL_ATTR))]
        self._inherited.inherit(pool, cons)
        return len(cons)
