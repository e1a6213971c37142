"""The wrappers of the methods that open and close connections, and that open and close pools."""

from __future__ import annotations

from functools import partial, wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.callbacks import SETUP, cause_of
from otel_pgpool.instrumentation.adapters.asyncpg.checkouts import checkout_in_progress
from otel_pgpool.instrumentation.adapters.asyncpg.closing import closing_of, is_finalizer
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_connection
from otel_pgpool.instrumentation.adapters.asyncpg.tracked import POOL_ATTR
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_pgpool.instrumentation.adapters.asyncpg.tracked import TrackedPools
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]


class PoolCalls:
    """The calls of wrapped methods. Each ``wrap_`` method returns the wrapper of one."""

    def __init__(self, session: InstrumentationSession, tracked: TrackedPools) -> None:
        self.guard = session.guard
        self._session = session
        self._tracked = tracked

    # Connects

    def wrap_connect(self, original: Method) -> Method:
        """Wrap ``Pool._get_new_connection``, which also calls the application's ``init``."""

        @wraps(original)
        async def _get_new_connection(pool: Any) -> Any:
            tracker = self._tracked.tracker_of(pool)
            if tracker is None:
                return await original(pool)
            checkout = checkout_in_progress(_getframe().f_back, tracker)
            no_checkout = object()  # its identity is the key, if the pool connects for its minimum
            caller = id(no_checkout if checkout is None else checkout)
            tracker.connects.connecting.add(caller)
            began = monotonic()
            try:
                con = await original(pool)
            except BaseException as error:
                self._connect_failed(tracker, pool, began, error, caller)
                raise
            else:
                self._connected(tracker, began, con, caller)
                return con
            finally:
                tracker.connects.connecting.discard(caller)
                if checkout is None:
                    tracker.report_connects(caller=caller)

        return _get_new_connection

    @never_raise
    def _connect_failed(self, tracker: PoolTracker, pool: Any, began: float, error: BaseException, caller: int) -> None:
        cause = cause_of(pool, error)
        tracker.connect_failed(began, error, caller, callback=cause.callback, is_connected=cause.is_connected)

    @never_raise
    def _connected(self, tracker: PoolTracker, began: float, con: Any, caller: int) -> None:
        if not tracker.address:
            tracker.target_known(target_of_connection(con))
        self._tracked.register(con, tracker)
        tracker.connected(began, con, caller)

    def wrap_cleanup(self, original: Method) -> Method:
        """Wrap ``Connection._cleanup``, which asyncpg calls at the end of every connection, pooled or not."""

        @wraps(original)
        def _cleanup(con: Any) -> Any:
            self._closed(con, _getframe())
            return original(con)

        return _cleanup

    @never_raise
    def _closed(self, con: Any, wrapper: FrameType) -> None:
        tracker = self._tracked.forget(con)
        slot = None if tracker is None else tracker.slots.get(id(con))
        caller = wrapper.f_back
        if tracker is None or slot is None or caller is None:
            return
        checkout: Any = slot.checkout
        pool = getattr(tracker.pool, POOL_ATTR, None)
        closing = closing_of(pool, con, caller, is_held=checkout is not None)
        if closing.reason is DiscardReason.CHECK_FAILED and isinstance(closing.error, Exception):
            tracker.callback_failed(SETUP, closing.error, checkout_in_progress(caller, tracker))
        ended = partial(_record_end, tracker, slot, checkout, closing)
        self._session.defer(ended) if is_finalizer(caller) else ended()

    # Pools

    def wrap_initialize(self, original: Method) -> Method:
        """Wrap ``Pool._async__init__``, so that a pool is reported before its first checkout."""

        @wraps(original)
        async def _async__init__(pool: Any) -> Any:
            try:
                result = await original(pool)
            except BaseException:
                self._end_failed(pool)
                raise
            self._tracked.tracker_of(pool)
            return result

        return _async__init__

    @never_raise
    def _end_failed(self, pool: Any) -> None:
        """End the reports of a pool that could not be initialized, and that an error's traceback may keep alive."""
        tracker = self._tracked.tracker_of(pool)
        if tracker is not None and not (tracker.is_stopped or private.is_initializing(pool)):
            tracker.end(Outcome.DISCARDED, DiscardReason.CLOSED)

    def wrap_close(self, original: Method) -> Method:
        """Wrap ``Pool.close``."""

        @wraps(original)
        async def close(pool: Any) -> Any:
            try:
                return await original(pool)
            finally:
                self._end_if_closed(pool)

        return close

    def wrap_terminate(self, original: Method) -> Method:
        """Wrap ``Pool.terminate``."""

        @wraps(original)
        def terminate(pool: Any) -> Any:
            try:
                return original(pool)
            finally:
                self._end_if_closed(pool)

        return terminate

    @never_raise
    def _end_if_closed(self, pool: Any) -> None:
        tracker = self._tracked.tracker_of(pool)
        if tracker is not None and private.is_closed(pool) and not tracker.is_stopped:
            tracker.end(Outcome.DISCARDED, DiscardReason.CLOSED)

    def wrap_set_connect_args(self, original: Method, target: Callable[[Any], Any]) -> Method:
        """Wrap ``Pool.set_connect_args``; ``target`` returns the target of a pool."""

        @wraps(original)
        def set_connect_args(pool: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(pool, *args, **kwargs)
            tracker = self._tracked.tracker_of(pool)
            if tracker is not None:
                tracker.target_known(target(pool))
            return result

        return set_connect_args


def _record_end(tracker: PoolTracker, slot: Any, checkout: Any, closing: Any) -> None:
    if checkout is not None:
        tracker.released(checkout, closing.outcome, closing.error)
    tracker.discarded(slot, closing.reason, closing.error, checkout)
