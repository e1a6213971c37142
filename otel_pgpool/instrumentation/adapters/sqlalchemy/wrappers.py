"""The wrappers of SQLAlchemy's methods that acquire connections, and of the method in which callers wait.

SQLAlchemy has no event for the start or the failure of an acquire, so events do not show how long a caller waited.
Every connection of an engine is acquired by ``Engine.raw_connection``, whose engine also has the URL. ``Pool.connect``
is wrapped for pools without an engine, which are recognized by their first connection. Neither method distinguishes a
wait for a release from a slow check of an idle connection (``pool_pre_ping``, a listener of the application). A pool
waits in the ``get`` of its queue and nowhere else.

The wrappers are plain functions: the benchmark ``hooked-sqlalchemy`` measures them, and one of wrapt is slower.
"""

from __future__ import annotations

import threading
import weakref
from functools import wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from sqlalchemy.util.queue import Empty

from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import (
    EngineCheckout,
    UnknownPoolCall,
    current_call_key,
    driver_error,
    driver_of,
    is_timeout_of,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import driver_of_connection
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import made_by_create_engine
from otel_pgpool.instrumentation.adapters.sqlalchemy.failed_listeners import discard_opened
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import driver_connection, record_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.tasks import start_in_greenlet
from otel_pgpool.instrumentation.guards import never_raise, raise_if_external
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR, PoolTracker
from otel_pgpool.pool.call_site import SkippedModules, call_sites_fast_filtered
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.types import PoolErrorType

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from sqlalchemy.engine import Engine

    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.session import InstrumentationSession

SKIPPED_MODULES = SkippedModules("sqlalchemy", "contextlib", "opentelemetry", "wrapt")
"""Modules to skip in the search for the application's call site, as inside ``with engine.begin()``."""


class EngineCalls:
    """The calls of wrapped methods. Each ``wrap_`` method returns the wrapper of one.

    Args:
        session: the session of the instrumentation.
        table: the checkouts in progress.
        track_engine: return the tracker of an engine's pool, or None.
        track_pool: return the tracker of a pool without an engine, given its first connection and its driver, or None.
    """

    def __init__(
        self,
        session: InstrumentationSession,
        table: CheckoutTable,
        track_engine: Callable[[Engine], PoolTracker | None],
        track_pool: Callable[[Any, Any, EngineDriver], PoolTracker | None],
    ) -> None:
        self.guard = session.guard
        self._session = session
        self.table = table
        self._in_progress = table.in_progress
        self._held = table.held
        self.watch = session.watch
        self.async_owner = object()
        """The owner of the fast path of asynchronous engines' pools, which tasks use."""
        self._track_engine = track_engine
        self._track_pool = track_pool

    def wrap_raw_connection(  # noqa: C901 - the function inside counts
        self, original: Callable[..., Any], depth: int = 1
    ) -> Callable[..., Any]:
        """Wrap ``Engine.raw_connection``, which the application's code calls through ``depth`` wrappers."""
        calls, async_owner = self, self.async_owner
        track_engine, check_out, call_untracked = self._track_engine, self.check_out, self._call_untracked
        in_progress, unobserved = self._in_progress, self._session.unobserved

        @wraps(original)
        def raw_connection(  # noqa: C901 - in one piece, because a call would cost 2 %
            engine: Engine, *args: Any, **kwargs: Any
        ) -> Any:
            if not is_here:
                renew()
            try:
                tracker: PoolTracker | None = engine.pool._otel_pgpool  # type: ignore[attr-defined]  # noqa: SLF001 - set by `PoolTracker`
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                tracker = None
            except Exception as error:  # noqa: BLE001 - an engine that the application has built itself
                raise_if_external(error)
                tracker = None
            if tracker is None or tracker.fast_path_owner is not calls:
                if tracker is unobserved and not in_progress:
                    return original(engine, *args, **kwargs)
                if tracker is unobserved:
                    return call_untracked(original, engine, *args, **kwargs)
                if tracker is None or tracker.fast_path_owner is not async_owner:
                    tracker = track_engine(engine)
                if tracker is None:
                    return call_untracked(original, engine, *args, **kwargs)
                if tracker.fast_path_owner is async_owner:
                    return check_out(
                        tracker, _getframe(), lambda engine: original(engine, *args, **kwargs), engine, in_task=True
                    )
            try:
                frame = _getframe(depth)
            except ValueError:  # no Python caller, as for a greenlet's first function
                frame = _getframe()
            if args or kwargs:  # of SQLAlchemy 1.4
                return check_out(tracker, frame, lambda engine: original(engine, *args, **kwargs), engine)
            return check_out(tracker, frame, original, engine)

        return raw_connection

    def wrap_pool_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``Pool.connect``."""
        calls, async_owner, checkout_of_call = self, self.async_owner, self.table.checkout_of_call
        check_out, check_out_from_unknown_pool = self.check_out, self._check_out_from_unknown_pool
        unobserved = self._session.unobserved

        @wraps(original)
        def connect(pool: Any) -> Any:
            try:
                tracker: PoolTracker | None = pool._otel_pgpool  # noqa: SLF001 - set by `PoolTracker`
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                tracker = None
            except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
                raise_if_external(error)
                tracker = None
            if tracker is not None and tracker.fast_path_owner is calls:  # `raw_connection` of its engine records this
                return original(pool)
            if tracker is unobserved or (tracker is not None and tracker.fast_path_owner is async_owner):
                return original(pool)
            checkout = checkout_of_call(threading.get_ident())
            if (checkout is not None and checkout.tracker is tracker) or made_by_create_engine(pool):
                return original(pool)
            if not is_here:
                renew()
            try:
                frame = _getframe(1)
            except ValueError:
                frame = _getframe()
            if tracker is None:
                return check_out_from_unknown_pool(pool, original, frame)
            return check_out(tracker, frame, original, pool)

        return connect

    def wrap_queue_get(self, original: Callable[..., Any], key: Callable[[], int]) -> Callable[..., Any]:
        """Wrap the ``get`` of a pool's queue; ``key`` returns the key of the call in progress."""
        in_progress, checkout_of_call = self._in_progress, self.table.checkout_of_call
        unknown_calls, get_in_unknown_pool = self.table.unknown_calls, self._get_in_unknown_pool

        @wraps(original)
        def get(queue: Any, block: Any = True, timeout: float | None = None) -> Any:  # noqa: FBT002 - its signature
            if not block:
                return original(queue, block, timeout)
            if key() not in in_progress:
                if unknown_calls:
                    return get_in_unknown_pool(original, queue, block, timeout)
                return original(queue, block, timeout)
            try:
                return original(queue, False)  # noqa: FBT003 - its signature
            except Empty:  # without a context manager, which would cost a tenth of the whole checkout
                pass
            checkout = checkout_of_call(key())
            if checkout is None or checkout.queued is not None:
                return original(queue, block, timeout)
            checkout.tracker.enqueued(checkout)
            try:
                return original(queue, block, timeout)
            finally:
                checkout.wait_ended = monotonic()

        return get

    def _get_in_unknown_pool(self, get: Callable[..., Any], queue: Any, block: Any, timeout: float | None) -> Any:
        """Call the ``get`` of a queue, and note the wait if the pool is not known yet."""
        call = self.table.unknown_calls.get(threading.get_ident())
        if call is None or call.queued is not None:
            return get(queue, block, timeout)
        try:
            return get(queue, False)
        except Empty:
            pass
        call.queued = monotonic()
        try:
            return get(queue, block, timeout)
        finally:
            call.wait_ended = monotonic()

    def check_out(
        self,
        tracker: PoolTracker,
        frame: FrameType,
        acquire: Callable[[Any], Any],
        subject: Any,
        *,
        in_task: bool = False,
    ) -> Any:
        """Record a checkout, made by a call of ``acquire`` in a thread or in a task's greenlet.

        Args:
            tracker: the tracker of the pool.
            frame: the frame of the caller.
            acquire: the method to call.
            subject: its argument, an engine or a pool.
            in_task: whether a task calls.
        """
        in_progress, held = self._in_progress, self._held
        checkout = EngineCheckout()
        checkout.tracker = tracker
        try:
            if in_task:
                key = start_in_greenlet(checkout, frame)
            else:
                tracker.start_with(checkout, call_sites_fast_filtered(frame, SKIPPED_MODULES))
                key = threading.get_ident()
            outer = in_progress.get(key)
            in_progress[key] = checkout
            try:
                fairy = acquire(subject)
            finally:
                if outer is None:
                    in_progress.pop(key, None)
                else:
                    in_progress[key] = outer
            try:
                conn, checkout.fairy = fairy.dbapi_connection, weakref.ref(fairy)
            except Exception as error:  # noqa: BLE001 - third-party code may return any object
                raise_if_external(error)
                conn = None
            connection_key = id(conn)
            if conn is None or connection_key in held:
                self.record_hand_over(checkout, fairy, conn)
            else:
                held[connection_key] = checkout
                tracker.acquired(checkout, driver_connection(conn) if in_task else conn)
        except BaseException as error:
            self.failed(checkout, error)
            raise
        return fairy

    def record_hand_over(self, checkout: EngineCheckout, fairy: Any, conn: Any) -> None:
        """Record that a checkout received a connection, which may be checked out already, or not be SQLAlchemy's."""
        tracker, before = checkout.tracker, self.table.held_by(conn)
        if conn is None:
            tracker.acquired(checkout, fairy)
            tracker.released(checkout)
            return
        if before is not None and before.fairy() is fairy:
            # The thread has acquired its own connection again. Only the last release is observed, so it ends the first
            # hold.
            slot = tracker.slot_of(driver_connection(conn))
            slot.checkout = None
            tracker.acquired(checkout, driver_connection(conn))
            tracker.released(checkout)
            slot.checkout = before
            return
        if before is not None:  # a StaticPool hands out its only connection any number of times
            before.tracker.released(before)
        self._held[id(conn)] = checkout
        tracker.acquired(checkout, driver_connection(conn))

    @never_raise
    def wake_watch(self) -> None:
        """Start a pass of the watching thread, because a connection was checked out."""
        self.watch.wake()

    @never_raise
    def failed(self, checkout: EngineCheckout, error: BaseException) -> None:
        """Record a failed checkout. The driver's error is recorded without SQLAlchemy's wrapper around it."""
        if not hasattr(checkout, "is_observed") or hasattr(checkout, "acquired"):
            return  # interrupted at its start, or after the hand-over, so that the release will be recorded
        if not hasattr(checkout, "started"):
            checkout.started = monotonic()
        tracker = checkout.tracker
        driver = driver_of(tracker)
        cause = driver_error(error, driver)
        began = checkout.connect_began
        if began is None and not checkout.connected and driver.is_error(cause) and cause is not checkout.lost:
            began = checkout.wait_ended or checkout.started  # the application's creator has connected, without an event
        if began is not None:
            tracker.connect_failed(began, cause, checkout.caller)
            tracker.connects.connecting.discard(current_call_key(is_async=checkout.caller is not None))
        discard_opened(checkout, cause)
        timed_out = began is None and not checkout.connected and is_timeout_of(tracker.pool, error)
        if timed_out and checkout.queued is None:
            tracker.enqueued_at(checkout, checkout.started)
        tracker.failed(checkout, cause, PoolErrorType.TIMEOUT if timed_out else None)

    def _check_out_from_unknown_pool(self, pool: Any, acquire: Callable[[Any], Any], frame: FrameType) -> Any:
        """Check out from an unknown pool without an engine; track the pool if its connections are PostgreSQL's.

        The checkout is recorded afterwards, with the times that `UnknownPoolCall` has stored.
        """
        key = threading.get_ident()
        unknown = self.table.unknown_calls[key] = UnknownPoolCall()
        try:
            fairy = self._call_untracked(acquire, pool)
        except BaseException as error:
            self._failed_from_unknown_pool(pool, unknown, frame, error)
            raise
        finally:
            self.table.unknown_calls.pop(key, None)
        try:
            conn = fairy.dbapi_connection
            driver = driver_of_connection(conn) if self._session.is_on else None
            tracker = None if driver is None else self._track_pool(pool, conn, driver)
            if driver is None and conn is not None:
                self._session.ignore(pool)
            if tracker is not None:
                self.table.trackers[record_of(fairy)] = tracker
                self._record_from_unknown_pool(tracker, unknown, frame, fairy)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
        return fairy

    def _record_from_unknown_pool(
        self, tracker: PoolTracker, unknown: UnknownPoolCall, frame: FrameType, fairy: Any
    ) -> None:
        """Record a checkout of a pool that has become known by its connection."""
        checkout = EngineCheckout()
        try:
            _start_from_unknown_pool(checkout, tracker, unknown, frame)
            conn, checkout.fairy = fairy.dbapi_connection, weakref.ref(fairy)
            if unknown.is_connected:
                tracker.connected(unknown.wait_ended or unknown.started, conn)
            self.record_hand_over(checkout, fairy, conn)
        except BaseException as error:
            self.failed(checkout, error)
            raise

    @never_raise
    def _failed_from_unknown_pool(
        self, pool: Any, unknown: UnknownPoolCall, frame: FrameType, error: BaseException
    ) -> None:
        """Record a failed checkout, if the pool is tracked by now, because of a call in another thread."""
        tracker = getattr(pool, TRACKER_ATTR, None)
        if isinstance(tracker, PoolTracker) and tracker.watch is self.watch:
            checkout = EngineCheckout()
            try:
                _start_from_unknown_pool(checkout, tracker, unknown, frame)
            finally:
                self.failed(checkout, error)

    def _call_untracked(self, acquire: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Check out from an engine that is not observed.

        The checkout in progress is hidden meanwhile, so that the other engine's events are not attributed to it.
        """
        thread = threading.get_ident()
        outer = self._in_progress.pop(thread, None)
        try:
            return acquire(*args, **kwargs)
        finally:
            if outer is not None:
                self._in_progress[thread] = outer


def _start_from_unknown_pool(
    checkout: EngineCheckout, tracker: PoolTracker, unknown: UnknownPoolCall, frame: FrameType
) -> None:
    """Start the checkout of a pool that has become known during the call."""
    checkout.tracker, checkout.wait_ended, checkout.connected = tracker, unknown.wait_ended, unknown.is_connected
    tracker.start_with(checkout, call_sites_fast_filtered(frame, SKIPPED_MODULES), unknown.started)
    if unknown.queued is not None:
        tracker.enqueued_at(checkout, unknown.queued)
