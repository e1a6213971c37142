"""The wrappers of asyncpg's methods that every checkout calls.

An acquire has two parts. ``Pool.acquire`` is a plain call in the task and at the line of the application, and returns a
context. Entering or awaiting the context acquires the connection, maybe in a task that ``asyncio.wait_for`` has made.

A hold ends in ``PoolConnectionHolder._release``, when the connection is available again: ``Pool.release`` may be
cancelled while its reset goes on, and a closed connection is not released at all.

The benchmark ``hooked-asyncpg`` measures the wrappers.
"""

from __future__ import annotations

from functools import wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from asyncpg.exceptions import InterfaceError

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.callbacks import frames_of
from otel_pgpool.instrumentation.adapters.asyncpg.driver import TIMEOUTS
from otel_pgpool.instrumentation.adapters.asyncpg.private import CONNECTION_ATTR
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.instrumentation.open_checkouts import TaskCheckout
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.pool.call_site import SkippedModules, caller_of, task_call_sites
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.tasks import running_task
from otel_pgpool.types import PoolErrorType

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import CodeType, FrameType

    from otel_pgpool.instrumentation.adapters.asyncpg.fork import InheritedAsyncpgPools
    from otel_pgpool.instrumentation.adapters.asyncpg.tracked import TrackedPools
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import ManualCheckout

    Method = Callable[..., Any]

SKIPPED_MODULES = SkippedModules("asyncio", "asyncpg", "contextlib", "opentelemetry", "wrapt")
"""Modules to skip in the search for the application's call site."""

CHECKOUT_CODES: set[CodeType] = set()
"""Code of the coroutines in which a checkout is in progress."""


class ContextCheckout(TaskCheckout):
    """The record of a checkout, created before the checkout starts. It is false: see `private.attach`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


def new_checkout(frame: FrameType) -> ContextCheckout:
    """Create the record of a checkout that the running task requests in this frame."""
    checkout = ContextCheckout()
    checkout.task = task = running_task()
    checkout.stack = task_call_sites(frame, task, SKIPPED_MODULES)
    return checkout


class IteratorAwaitable:
    """An awaitable around the iterator that an ``__await__`` has returned."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: Generator[Any, Any, Any]) -> None:
        self._iterator = iterator

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._iterator


class CheckoutCalls:
    """The checkouts in progress. Each ``wrap_`` method returns the wrapper of one method.

    Args:
        session: the session of the instrumentation.
        tracked: the trackers of the pools.
        inherited: the pools of a parent process.
    """

    def __init__(
        self, session: InstrumentationSession, tracked: TrackedPools, inherited: InheritedAsyncpgPools
    ) -> None:
        self.guard = session.guard
        self._session = session
        self._tracked = tracked
        self._inherited = inherited

    def wrap_acquire(self, original: Method) -> Method:
        """Wrap ``Pool.acquire``."""
        queue_of, attach, unobserved, guard = private.queue_of, private.attach, self._session.unobserved, self.guard

        @wraps(original)
        def acquire(pool: Any, *args: Any, **kwargs: Any) -> Any:
            context = original(pool, *args, **kwargs)
            try:
                if getattr(queue_of(pool), TRACKER_ATTR, None) is not unobserved:
                    attach(context, new_checkout(caller_of(_getframe())))
            except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                guard.log_error(error)
            return context

        return acquire

    def wrap_enter(self, original: Method) -> Method:
        """Wrap ``PoolAcquireContext.__aenter__``."""
        start, acquired, failed, detach = self._start, self._acquired, self._failed, private.detach

        @wraps(original)
        async def __aenter__(context: Any) -> Any:  # noqa: N807 - the method's name
            checkout = proxy = None
            try:
                tracker, checkout = start(context, detach(context))
                proxy = await original(context)
                if checkout is not None:
                    acquired(tracker, checkout, proxy)
            except BaseException as error:
                if checkout is not None:
                    failed(tracker, checkout, context, proxy, error)
                raise
            return proxy

        _add_checkout_code(__aenter__)
        return __aenter__

    def wrap_await(self, original: Method) -> Method:
        """Wrap ``PoolAcquireContext.__await__``."""
        start, acquired, failed = self._start, self._acquired, self._failed
        queue_of, unobserved = private.queue_of, self._session.unobserved

        async def check_out(context: Any, acquiring: IteratorAwaitable, requested: ContextCheckout | None) -> Any:
            checkout = proxy = None
            try:
                tracker, checkout = start(context, requested)
                proxy = await acquiring
                if checkout is not None:
                    acquired(tracker, checkout, proxy)
            except BaseException as error:
                if checkout is not None:
                    failed(tracker, checkout, context, proxy, error)
                raise
            return proxy

        @wraps(original)
        def __await__(context: Any) -> Generator[Any, Any, Any]:  # noqa: N807 - the method's name
            requested = private.detach(context)  # before asyncpg marks the context as done
            acquiring: Generator[Any, Any, Any] = original(context)
            if getattr(queue_of(context.pool), TRACKER_ATTR, None) is unobserved:
                return acquiring
            return check_out(context, IteratorAwaitable(acquiring), requested).__await__()

        _add_checkout_code(check_out)
        return __await__

    def _start(self, context: Any, requested: ContextCheckout | None) -> tuple[Any, ManualCheckout | None]:
        """Start a checkout; return its tracker and its record, or None twice if the pool is not tracked."""
        pool = context.pool
        tracker = self._tracked.tracker_of(pool)
        if tracker is None:
            return None, None
        if self._inherited.any_unused:
            self._report_first_use(tracker)
        if requested is None:  # not made by the wrapper of `Pool.acquire`
            requested = new_checkout(_getframe(2))
        checkout = tracker.start_in_task_with(requested, requested.stack, requested.task)
        if private.has_to_wait(pool):
            tracker.enqueued(checkout)
        return tracker, checkout

    @never_raise
    def _report_first_use(self, tracker: PoolTracker) -> None:
        self._inherited.report_first_use(tracker.pool, tracker.name)

    def _acquired(self, tracker: PoolTracker, checkout: ManualCheckout, proxy: Any) -> None:
        con = getattr(proxy, CONNECTION_ATTR, None)
        if con is None:  # closed meanwhile, or an object of a subclass
            tracker.passed_through(checkout, proxy)
            return
        if id(con) not in tracker.slots:  # opened before the instrumentation
            self._tracked.register(con, tracker)
        tracker.acquired(checkout, con)

    @never_raise
    def _failed(
        self, tracker: PoolTracker, checkout: ManualCheckout, context: Any, proxy: Any, error: BaseException
    ) -> None:
        if proxy is not None:  # an interrupt hit after the hand-over, so the caller does not get the connection
            private.release_later(context.pool, proxy)
            return
        refusal = None
        if isinstance(error, TIMEOUTS):
            # A connect and the callback ``setup`` may time out too, after the wait.
            has_waited = private.ACQUIRE in {frame.f_code for frame in frames_of(error)}
            refusal = PoolErrorType.TIMEOUT if context.timeout is not None and not has_waited else None
        elif isinstance(error, InterfaceError) and private.is_closing(context.pool):
            refusal = PoolErrorType.CLOSED
        tracker.failed(checkout, error, refusal)

    def wrap_release(self, original: Method) -> Method:
        """Wrap ``PoolConnectionHolder._release``."""
        tracker_attr_of_holder, guard = private.tracker_attr_of_holder, self.guard

        @wraps(original)
        def _release(holder: Any) -> None:
            con = getattr(holder, CONNECTION_ATTR)
            original(holder)
            if not is_here:
                renew()
            try:
                tracker: PoolTracker = tracker_attr_of_holder(holder)
            except AttributeError:  # not tracked yet: nothing is held
                return
            try:
                slot = tracker.slots.get(id(con))
                checkout: Any = None if slot is None else slot.checkout
                if checkout is not None:
                    tracker.released(checkout)
            except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                guard.log_error(error)

        return _release


def _add_checkout_code(check_out: Any) -> None:
    CHECKOUT_CODES.add(check_out.__code__)


def checkout_in_progress(frame: FrameType | None, tracker: PoolTracker) -> ManualCheckout | None:
    """Return the checkout of a pool whose coroutine has led to the call of a frame; None if there is none.

    The checkout of a connect is searched for in this way, because few checkouts connect.
    """
    while frame is not None:
        if frame.f_code in CHECKOUT_CODES:
            names = frame.f_locals
            return names.get("checkout") if names.get("tracker") is tracker else None
        frame = frame.f_back
    return None
