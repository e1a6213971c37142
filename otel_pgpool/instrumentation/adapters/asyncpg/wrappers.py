"""The wrappers of asyncpg's methods.

An acquire has two parts. ``Pool.acquire`` is a plain call in the task and at the line of the application, and returns a
context. Entering or awaiting the context acquires the connection, maybe in a task that ``asyncio.wait_for`` has made.

A hold ends in ``PoolConnectionHolder._release``, when the connection is available again: ``Pool.release`` may be
cancelled while its reset goes on, and a closed connection is not released at all.
"""

from __future__ import annotations

import asyncio
import weakref
from functools import partial, wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncpg.exceptions import InterfaceError

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.closing import closing_of, is_finalizer
from otel_pgpool.instrumentation.adapters.asyncpg.driver import TIMEOUTS
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_connection
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.pool.call_site import SkippedModules, task_call_sites
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.tasks import running_task
from otel_pgpool.types import DiscardReason, Outcome, PoolErrorType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import FrameType

    from otel_pgpool.instrumentation.adapters.asyncpg.fork import InheritedPools
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import ManualCheckout
    from otel_pgpool.runtime.tasks import TaskReference

    Method = Callable[..., Any]

BETWEEN = SkippedModules("asyncio", "asyncpg", "contextlib", "opentelemetry", "wrapt")
"""Modules to skip in the search for the application's call site."""


POOL_ATTR = "_otel_pgpool_pool"
"""Name of the attribute with which the queue of a pool refers to the pool."""


class Origin(NamedTuple):
    """Where and by which task a connection was asked for."""

    task: TaskReference | None
    stack: Stack


class Request(NamedTuple):
    """A checkout without a connection yet."""

    tracker: PoolTracker
    checkout: ManualCheckout


class Begun:
    """An awaitable for an iterator that ``__await__`` has returned."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Generator[Any, Any, Any]) -> None:
        self._iterator = iterator

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._iterator


class PoolCalls:
    """The calls of wrapped methods. Each ``wrap_`` method returns the wrapper of one.

    Args:
        session: the session of the instrumentation.
        track: return the tracker of a pool, or None.
        inherited: the pools of a parent process.
    """

    def __init__(
        self,
        session: InstrumentationSession,
        track: Callable[[Any], PoolTracker | None],
        inherited: InheritedPools,
    ) -> None:
        self.guard = session.guard
        self._session = session
        self._track = track
        self._inherited = inherited
        self._origins: dict[int, Origin] = {}  # by id of the context that `Pool.acquire` has returned last
        self._in_progress: dict[int, Request] = {}  # by id of the task that acquires
        self.trackers: weakref.WeakKeyDictionary[Any, PoolTracker] = weakref.WeakKeyDictionary()  # by connection

    def tracker_of(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool; None if there is none."""
        if not is_here:
            renew()
        try:
            return self._track(pool)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
            return None

    def reset_after_fork(self) -> None:
        """Drop the parent's calls in a forked child."""
        self._origins.clear()
        self._in_progress.clear()

    # Checkouts

    def wrap_acquire(self, original: Method) -> Method:
        """Wrap ``Pool.acquire``."""

        @wraps(original)
        def acquire(pool: Any, *args: Any, **kwargs: Any) -> Any:
            context = original(pool, *args, **kwargs)
            self._note_origin(context, _getframe())
            return context

        return acquire

    @never_raise
    def _note_origin(self, context: Any, wrapper: FrameType) -> None:
        task = running_task()
        self._origins[id(context)] = Origin(task, task_call_sites(wrapper.f_back or wrapper, task, BETWEEN))

    def wrap_enter(self, original: Method) -> Method:
        """Wrap ``PoolAcquireContext.__aenter__``."""

        @wraps(original)
        def __aenter__(context: Any) -> Coroutine[Any, Any, Any]:  # noqa: N807 - the method's name
            return self._check_out(context, partial(original, context))

        return __aenter__

    def wrap_await(self, original: Method) -> Method:
        """Wrap ``PoolAcquireContext.__await__``."""

        @wraps(original)
        def __await__(context: Any) -> Generator[Any, Any, Any]:  # noqa: N807 - the method's name
            acquire = Begun(original(context))
            return self._check_out(context, lambda: acquire).__await__()

        return __await__

    async def _check_out(self, context: Any, acquire: Callable[[], Any]) -> Any:
        pool = context.pool
        tracker = self.tracker_of(pool)
        if tracker is None:
            self._origins.pop(id(context), None)
            return await acquire()
        self._inherited.first_use(tracker.pool, tracker.name)
        checkout = self._start(tracker, context, _getframe())
        key = _running_key()
        outer = self._in_progress.get(key)
        self._in_progress[key] = Request(tracker, checkout)
        proxy = None
        try:
            try:
                if private.has_to_wait(pool):
                    tracker.enqueued(checkout)
                proxy = await acquire()
            finally:
                if outer is None:
                    self._in_progress.pop(key, None)
                else:
                    self._in_progress[key] = outer
            self._acquired(tracker, checkout, proxy)
        except BaseException as error:
            if proxy is None:
                self._failed(tracker, checkout, context, error)
            else:  # an interrupt hit after the hand-over, and the caller does not get the connection
                private.release_later(pool, proxy)
            raise
        return proxy

    def _start(self, tracker: PoolTracker, context: Any, frame: FrameType) -> ManualCheckout:
        origin = self._origins.pop(id(context), None)
        if origin is None:  # the context was not made by `Pool.acquire`, or before the instrumentation
            task = running_task()
            origin = Origin(task, task_call_sites(frame.f_back or frame, task, BETWEEN))
        return tracker.start_in_task(origin.stack, origin.task)

    def _acquired(self, tracker: PoolTracker, checkout: ManualCheckout, proxy: Any) -> None:
        con = private.connection_of(proxy)
        if con is None:  # closed meanwhile, or an object of a subclass
            tracker.passed_through(checkout, proxy)
            return
        if id(con) not in tracker.slots:  # opened before the instrumentation
            self.know(con, tracker)
        tracker.acquired(checkout, con)

    @never_raise
    def know(self, con: Any, tracker: PoolTracker) -> None:
        """Register a connection of a pool."""
        self.trackers[con] = tracker
        tracker.slot_of(con)

    @never_raise
    def _failed(self, tracker: PoolTracker, checkout: ManualCheckout, context: Any, error: BaseException) -> None:
        refusal = None
        if isinstance(error, TIMEOUTS):
            of_connect = any(each.connect.error is error for each in tracker.pending.copy())
            refusal = PoolErrorType.TIMEOUT if context.timeout is not None and not of_connect else None
        elif isinstance(error, InterfaceError) and context.pool.is_closing():
            refusal = PoolErrorType.CLOSED
        tracker.failed(checkout, error, refusal)

    # Connects

    def wrap_connect(self, original: Method) -> Method:
        """Wrap ``Pool._get_new_connection``, which also calls the application's ``init``."""

        @wraps(original)
        async def _get_new_connection(pool: Any) -> Any:
            tracker = self.tracker_of(pool)
            if tracker is None:
                return await original(pool)
            request = self._in_progress.get(_running_key())
            is_asked = request is not None and request.tracker is tracker
            nobody = object()  # whose identity is the key of a connect for the pool's minimum
            caller = id(request.checkout) if request is not None and is_asked else id(nobody)
            tracker.connects.connecting.add(caller)
            began = monotonic()
            try:
                con = await original(pool)
            except BaseException as error:
                tracker.connect_failed(began, error, caller)
                raise
            else:
                self._connected(tracker, began, con, caller)
                return con
            finally:
                tracker.connects.connecting.discard(caller)
                if not is_asked:
                    tracker.report_connects(caller=caller)

        return _get_new_connection

    @never_raise
    def _connected(self, tracker: PoolTracker, began: float, con: Any, caller: int) -> None:
        if not tracker.address:
            tracker.target_known(target_of_connection(con))
        self.trackers[con] = tracker
        tracker.connected(began, con, caller)

    # Releases

    def wrap_release(self, original: Method) -> Method:
        """Wrap ``PoolConnectionHolder._release``."""

        @wraps(original)
        def _release(holder: Any) -> None:
            con = private.connection_of(holder)
            original(holder)
            if con is not None:
                self._released(holder, con)

        return _release

    @never_raise
    def _released(self, holder: Any, con: Any) -> None:
        tracker = self.tracker_of(private.pool_of(holder))
        slot = None if tracker is None else tracker.slots.get(id(con))
        checkout: Any = None if slot is None else slot.checkout
        if tracker is not None and checkout is not None:
            tracker.released(checkout)

    def wrap_cleanup(self, original: Method) -> Method:
        """Wrap ``Connection._cleanup``, which ends every connection of the process, pooled or not."""

        @wraps(original)
        def _cleanup(con: Any) -> Any:
            self._closed(con, _getframe())
            return original(con)

        return _cleanup

    @never_raise
    def _closed(self, con: Any, wrapper: FrameType) -> None:
        tracker = self.trackers.pop(con, None)
        slot = None if tracker is None else tracker.slots.get(id(con))
        caller = wrapper.f_back
        if tracker is None or slot is None or caller is None:
            return
        checkout: Any = slot.checkout
        pool = getattr(tracker.pool, POOL_ATTR, None)
        closing = closing_of(pool, con, caller, is_held=checkout is not None)
        ended = partial(_end, tracker, slot, checkout, closing)
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
            self.tracker_of(pool)
            return result

        return _async__init__

    @never_raise
    def _end_failed(self, pool: Any) -> None:
        """End the reports of a pool that could not be initialized, and that an error's traceback may keep alive."""
        tracker = self.tracker_of(pool)
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
        tracker = self.tracker_of(pool)
        if tracker is not None and private.is_closed(pool) and not tracker.is_stopped:
            tracker.end(Outcome.DISCARDED, DiscardReason.CLOSED)

    def wrap_set_connect_args(self, original: Method, target: Callable[[Any], Any]) -> Method:
        """Wrap ``Pool.set_connect_args``; ``target`` returns the target of a pool."""

        @wraps(original)
        def set_connect_args(pool: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(pool, *args, **kwargs)
            tracker = self.tracker_of(pool)
            if tracker is not None:
                tracker.target_known(target(pool))
            return result

        return set_connect_args


def _end(tracker: PoolTracker, slot: Any, checkout: Any, closing: Any) -> None:
    if checkout is not None:
        tracker.released(checkout, closing.outcome, closing.error)
    tracker.discarded(slot, closing.reason, closing.error, checkout)


def _running_key() -> int:
    """Return the identity of the running task."""
    return id(asyncio.current_task())
