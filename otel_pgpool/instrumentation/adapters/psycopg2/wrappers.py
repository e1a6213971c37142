"""The wrappers of the pools' methods, except for the fast path of psycopg2's two classes."""

from __future__ import annotations

import threading
from functools import partial, wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection
from psycopg2.pool import PoolError
from wrapt import FunctionWrapper

from otel_pgpool.instrumentation.adapters.psycopg2 import private
from otel_pgpool.instrumentation.adapters.psycopg2.arguments import (
    asks_to_close,
    is_key_checked_out,
    released_connection,
    takes_key,
)
from otel_pgpool.instrumentation.adapters.psycopg2.driver import closed_of
from otel_pgpool.instrumentation.adapters.psycopg2.failures import (
    handle_failed_getconn,
    handle_failed_putconn,
    is_exhausted,
    record_discard,
    record_failure,
    release_unused,
)
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.pool.call_site import caller_call_sites
from otel_pgpool.pool.checkout import ManualCheckout
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_pgpool.instrumentation.fair_queue import FairQueue
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import Slot

    Method = Callable[..., Any]


class SubclassCall:
    """A call of a subclass's own ``getconn`` in progress, and what its inner call of psycopg2's method returned."""

    __slots__ = ("_inner_result", "_pool", "_tracker", "checkout", "error", "is_repeat")

    def __init__(self, pool: Any, tracker: PoolTracker) -> None:
        self._pool = pool
        self._tracker = tracker
        self.checkout: ManualCheckout | None = None
        self._inner_result: Any = None
        self.is_repeat = False  # True: by a key that was checked out already
        self.error: BaseException | None = None

    def call_inner(self, getconn: Callable[[], Any], *, is_repeat: bool) -> Any:
        """Make an inner call, and remember its result or its error."""
        waits = self.error is not None and is_exhausted(self.error)  # the subclass waits by a repeated call
        if waits and self.checkout is not None and self.checkout.queued is None:
            self._tracker.enqueued(self.checkout)
        try:
            result = getconn()
        except BaseException as error:
            self.error = error
            raise
        if private.is_checked_out(self._pool, result):
            self._inner_result, self.is_repeat = result, is_repeat
        return result

    def acquired(self, result: Any) -> Any:
        """Return the connection that was checked out, or None; a subclass's ``getconn`` may return any object."""
        if self.is_repeat:
            return None
        if isinstance(result, connection):
            return result
        return self._inner_result if private.is_checked_out(self._pool, self._inner_result) else None


class PoolCalls:
    """The calls of wrapped methods. Each ``wrap_`` method returns the wrapper of one.

    Once the instrumentation has ended, the wrappers only call the original methods, also during a later
    instrumentation, which installs its own.
    """

    def __init__(self, session: InstrumentationSession, track: Callable[[Any], PoolTracker | None]) -> None:
        self._guard = session.guard
        self.watch = session.watch  # distinguishes this session's trackers from others'
        self.unobserved = session.unobserved
        self._track = track
        self._subclass_calls: dict[tuple[int, int], SubclassCall] = {}  # by pool and thread
        # Checked out in a parent process, by id. Kept alive, because an application's own class may close a connection
        # when it is collected.
        self.inherited: dict[int, Any] = {}

    def tracker_of(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool; None if there is none, or one of a later instrumentation."""
        try:
            tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None) or self._track(pool)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._guard.log_error(error)
            return None
        return tracker if tracker is not None and tracker.watch is self.watch else None

    def reset_after_fork(self, checked_out: list[Any]) -> None:
        """Drop the parent's calls in a forked child, and ignore releases of connections that the parent checked out."""
        self._subclass_calls.clear()
        self.inherited.update((id(conn), conn) for conn in checked_out)

    # Checkouts

    def wrap_getconn(self, original: Method) -> Method:
        """Wrap the ``getconn`` of a subclass.

        This wrapper and that of ``putconn`` are plain functions, because those of wrapt cost a checkout 13 %.
        """
        keyed = takes_key(original)
        check_out = self._check_out

        @wraps(original)
        def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_here:
                renew()
            getconn = partial(original, self, *args, **kwargs)
            return check_out(self, getconn, _getframe(), keyed=keyed, is_subclass=True)

        return getconn

    def check_out(self, pool: Any, original: Method, key: Any, frame: FrameType) -> Any:
        """Check out by ``getconn`` of one of psycopg2's two classes, off the fast path."""
        return self._check_out(pool, partial(original, pool, key), frame, keyed=True, is_subclass=False)

    def _check_out(self, pool: Any, getconn: partial[Any], frame: FrameType, *, keyed: bool, is_subclass: bool) -> Any:
        tracker = self.tracker_of(pool)
        if tracker is None:
            return getconn()
        is_repeat = keyed and is_key_checked_out(*getconn.args, **getconn.keywords)
        caller = id(pool), threading.get_ident()
        outer = self._subclass_calls.get(caller)
        if outer is not None:
            return outer.call_inner(getconn, is_repeat=is_repeat)
        if is_repeat:
            return getconn()
        if not is_subclass:
            return _record_checkout(tracker, pool, frame, getconn)
        call = SubclassCall(pool, tracker)
        try:
            self._subclass_calls[caller] = call
            return _record_checkout(tracker, pool, frame, getconn, call)
        finally:
            self._subclass_calls.pop(caller, None)
            call.error = None  # breaks a reference cycle: the error's frames refer to the call

    # Releases

    def wrap_putconn(self, original: Method) -> Method:
        """Wrap the ``putconn`` of a subclass, in the same way."""
        release = self.release

        @wraps(original)
        def putconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_here:
                renew()
            return release(self, original, args, kwargs)

        return putconn

    def release(self, pool: Any, original: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Release a connection off the fast path."""
        tracker = self.tracker_of(pool)
        if tracker is None and not self.inherited:
            return original(pool, *args, **kwargs)
        conn = released_connection(pool, *args, **kwargs)
        if id(conn) in self.inherited:
            return None
        if tracker is None:
            return original(pool, *args, **kwargs)
        slot = tracker.slots.get(id(conn))
        try:
            if slot is None:  # an unknown connection, or none
                return original(pool, *args, **kwargs)
            return _release_known(tracker, slot, conn, partial(original, pool, *args, **kwargs))
        finally:
            if tracker.queue is not None:
                tracker.queue.wake_next()

    def wrap_closeall(self, original: Method) -> Method:
        """Wrap the ``closeall`` of any class."""

        def closeall(wrapped: Method, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_here:
                renew()
            tracker = self.tracker_of(pool)
            if tracker is None or closed_of(pool):
                return wrapped(*args, **kwargs)
            try:
                return wrapped(*args, **kwargs)
            finally:
                if closed_of(pool) and not tracker.is_stopped:  # otherwise an inner closeall has done this
                    with ignore_errors:
                        for conn in private.idle_connections(pool):
                            tracker.discarded(tracker.slot_of(conn), DiscardReason.CLOSED)
                    tracker.end(Outcome.DISCARDED, DiscardReason.CLOSED)
                if tracker.queue is not None:
                    tracker.queue.wake_next()

        return FunctionWrapper(original, closeall)

    # Connects

    def wrap_connect(self, original: Method) -> Method:
        """Wrap the ``_connect`` of any class."""

        def _connect(wrapped: Method, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_here:
                renew()
            tracker = self.tracker_of(pool)
            thread = threading.get_ident()
            if tracker is None or thread in tracker.connects.connecting:
                return wrapped(*args, **kwargs)
            tracker.connects.connecting.add(thread)
            began = monotonic()
            try:
                conn = wrapped(*args, **kwargs)
            except BaseException as error:
                tracker.connect_failed(began, error)
                raise
            finally:
                tracker.connects.connecting.discard(thread)
            tracker.connected(began, conn)
            return conn

        return FunctionWrapper(original, _connect)

    def wrap_init(self, original: Method) -> Method:
        """Wrap the constructor, which opens connections."""

        def init(wrapped: Method, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            try:
                wrapped(*args, **kwargs)
            except BaseException:
                tracker = self.tracker_of(pool)
                if tracker is not None:  # an error's traceback may keep the unusable pool alive
                    tracker.end(Outcome.DISCARDED, DiscardReason.CLOSED)
                raise
            tracker = self.tracker_of(pool)
            if tracker is not None:
                tracker.report_connects()

        return FunctionWrapper(original, init)


def _record_checkout(
    tracker: PoolTracker, pool: Any, frame: FrameType, getconn: Callable[[], Any], call: SubclassCall | None = None
) -> Any:
    """Check out, and record that."""
    checkout = result = None
    try:
        checkout = ManualCheckout()
        tracker.start_with(checkout, caller_call_sites(frame))
        if call is not None:
            call.checkout = checkout
        # A subclass's own getconn is called again as a whole, because it may hold a lock while it calls psycopg2's
        # method, and a wait inside would keep that lock.
        queue = tracker.queue
        result = getconn() if queue is None else _wait_if_exhausted(tracker, queue, pool, checkout, getconn)
        conn = result if call is None else call.acquired(result)
        if conn is not None:
            tracker.acquired(checkout, conn)
        elif call is not None and call.error is not None:
            record_failure(tracker, pool, checkout, call.error)
        elif call is None or not call.is_repeat:
            tracker.passed_through(checkout, result)
    except BaseException as error:
        inner = None if call is None else call.error
        reported = inner if inner and is_exhausted(inner) else error  # a subclass may raise an error of its own
        handle_failed_getconn(tracker, pool, checkout, result, reported)
        raise
    return result


def _release_known(tracker: PoolTracker, slot: Slot, conn: Any, putconn: partial[Any]) -> Any:
    """Release a connection by a subclass's putconn. If that calls another putconn, only the inner call is recorded."""
    checkout: Any = slot.checkout or tracker.promote_checkout_of(conn)
    was_closed = closed_of(conn)
    try:
        result = putconn()
        if closed_of(conn):
            close = asks_to_close(*putconn.args, **putconn.keywords)
            record_discard(tracker, slot, was_closed, close=close, checkout=checkout)
        elif checkout is not None:
            tracker.released(checkout)
    except BaseException as error:
        if checkout is not None:
            handle_failed_putconn(tracker, tracker.pool, conn, checkout, error)
        raise
    return result


def _wait_if_exhausted(
    tracker: PoolTracker, queue: FairQueue, pool: Any, checkout: ManualCheckout, getconn: Callable[[], Any]
) -> Any:
    """Ask an exhausted pool again until the timeout, after those callers that came first."""
    if not queue:
        try:
            return getconn()
        except PoolError as error:
            if not is_exhausted(error):
                raise
    tracker.enqueued(checkout)
    seconds = checkout.started + (tracker.wait_timeout or 0.0) - monotonic()
    return queue.wait_for(getconn, seconds, partial(release_unused, pool))
