"""The steps that the wrappers have in common, with and without asyncio."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from sys import _getframe
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.adapters.psycopg.driver import error_text, is_closed, is_lost
from otel_pgpool.instrumentation.adapters.psycopg.target import target_of_connection
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import (
    is_left_to_worker,
    reason_at_release,
    reason_of_method,
    record_closed,
    record_discard,
)
from otel_pgpool.instrumentation.adapters.psycopg_pool.worker_connects import WorkerConnects
from otel_pgpool.instrumentation.guards import ignore_errors, never_raise
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.pool.call_site import SkippedModules, call_sites_fast_filtered, caller_of, task_call_sites
from otel_pgpool.pool.checkout import Attempt, ManualCheckout
from otel_pgpool.pool.shared_threads import end_shared_threads
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason, Outcome, PoolErrorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType, FrameType

    from otel_pgpool.instrumentation.adapters.psycopg_pool.fork import InheritedPsycopgPools
    from otel_pgpool.instrumentation.adapters.replacements import Replacements
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.runtime.tasks import TaskReference

SKIPPED_MODULES = SkippedModules(
    *("psycopg_pool", "contextlib", "asyncio", "opentelemetry", "wrapt"),
    *("django", "asgiref", "concurrent", "threading"),
)
"""Modules to skip in the search for the application's call site.

They are those of ``with pool.connection()``, of the event loop, of Django, whose ORM checks a connection out, and of
the threads in which its asynchronous methods run.
"""

IDLE = TransactionStatus.IDLE
InProgress = tuple["PoolTracker", "ManualCheckout"]
"""A call of ``getconn`` in progress: the tracker of its pool, and its checkout."""

Waiting = tuple[Any, "ManualCheckout | None"]
"""A wait: the tracker of the pool, and the checkout that waits; None for either if there is none."""

NO_CALL: Any = (None, None)

REFUSALS = {
    PoolTimeout: PoolErrorType.TIMEOUT,
    PoolClosed: PoolErrorType.CLOSED,
    TooManyRequests: PoolErrorType.TOO_MANY_REQUESTS,
}


class PoolCalls:
    """The calls of wrapped methods.

    Once the instrumentation has ended, the wrappers only call the original methods. They do so even during a later
    instrumentation, which installs its own wrappers.

    Args:
        session: the session of the instrumentation.
        track: return the tracker of a pool that has none, or None.
        replacements: the attributes of classes that are replaced.
        connection_code: the code of the pools' ``connection()``.
        current_key: return the identity of the running thread or task, which is the key of a wait or a worker.
    """

    def __init__(
        self,
        session: InstrumentationSession,
        track: Callable[[Any], PoolTracker | None],
        replacements: Replacements,
        connection_code: CodeType | None,
        current_key: Callable[[], int],
    ) -> None:
        self.guard = session.guard
        self.watch = session.watch  # distinguishes this session's trackers from others'
        self.unobserved = session.unobserved
        self._track = track
        self._replacements = replacements
        self.connection_code = connection_code
        self.light_owner = object()
        """The owner of the fast path of pools whose ordinary checkouts leave no record."""
        self.current_key = current_key
        self.light_getconn_code: CodeType | None = None
        """The code of the coroutine that makes light checkouts."""
        self.getconn_codes: set[CodeType] = set()
        """The code of the wrappers of ``getconn`` that keep a record: by the code, their frames are found."""
        self.light_waits: dict[int, InProgress] = {}  # light checkouts that have waited, by `current_key`
        self._failed_checks: dict[int, list[tuple[Any, BaseException]]] = {}  # by id of the checkout
        self._failed_resets: dict[int, BaseException] = {}  # by id of the connection, until its discard is recorded
        self.worker_connects = WorkerConnects()
        self.inherited: InheritedPsycopgPools  # set by the adapter, which has one for both kinds of calls

    @never_raise
    def separate(self, pool: Any) -> None:
        """Separate the tracker of a pool from that of another one, to which its class may delegate.

        Only a class with a ``__getattr__`` gets an attribute, because that would make the hot path of others slower.
        """
        cls = type(pool)
        if hasattr(cls, "__getattr__") and TRACKER_ATTR not in vars(cls):
            self._replacements.set(cls, TRACKER_ATTR, None)

    def tracker_of(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool; None if there is none, or one of a later instrumentation."""
        try:
            tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
            if tracker is None or tracker.fast_path_owner is None:
                tracker = self._track(pool)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
            return None
        return tracker if tracker is not None and tracker.watch is self.watch else None

    def tracker_for_use(self, pool: Any) -> PoolTracker | None:
        """Return the tracker of a pool that is about to be used; report or repair a parent's pool first."""
        self._use_inherited(pool)
        return self.tracker_of(pool)

    @never_raise
    def _use_inherited(self, pool: Any) -> None:
        if self.inherited.any_unused and pool in self.inherited and (tracker := self.tracker_of(pool)) is not None:
            self.inherited.report_first_use(pool, tracker.name)

    def reset_after_fork(self) -> None:
        """Drop the parent's calls in a forked child."""
        self.light_waits.clear()
        self._failed_checks.clear()
        self._failed_resets.clear()
        self.worker_connects.clear()

    # Checkouts

    def start(self, tracker: PoolTracker, frame: FrameType) -> ManualCheckout:
        """Start a checkout that was requested at this frame."""
        if frame.f_code is self.connection_code:  # called by contextlib, which the application calls
            frame = getattr(frame.f_back, "f_back", None) or frame
        return tracker.start_with(ManualCheckout(), call_sites_fast_filtered(frame, SKIPPED_MODULES))

    def _start_light(self, tracker: PoolTracker, frame: FrameType) -> ManualCheckout:
        """Start the record of a light checkout that waits; ``frame`` is inside its call of ``getconn``."""
        each: FrameType | None = frame
        while each is not None:
            if each.f_code is self.light_getconn_code:
                found = each.f_locals
                (_thread, task), stack = found["holder"], found["stack"]
                return tracker.start_in_task(stack, task)
            each = each.f_back
        return self.start(tracker, frame)

    def _in_progress(self, frame: FrameType) -> Any:
        """Return the innermost call of ``getconn`` around a frame; `NO_CALL` if there is none with a record."""
        each: FrameType | None = frame
        while each is not None:
            if each.f_code in self.getconn_codes:
                found = each.f_locals
                return found.get("tracker"), found.get("checkout")
            each = each.f_back
        return NO_CALL

    def stack_of_task(self, wrapper: FrameType, task: TaskReference | None) -> Stack:
        """Return the call sites of a coroutine that has called a wrapper of ``getconn``."""
        frame = caller_of(wrapper)
        if frame.f_code is self.connection_code:  # called by contextlib, which the application's coroutine calls
            frame = getattr(frame.f_back, "f_back", None) or frame
        return task_call_sites(frame, task, SKIPPED_MODULES)

    @never_raise
    def enqueued(self, frame: FrameType) -> Waiting:
        """Record that the caller waits in a pool's queue; return the pool's tracker and the checkout, if there are any.

        Args:
            frame: the frame of the pool's method that waits.
        """
        tracker, checkout = self._in_progress(frame)
        with ignore_errors:
            pool = private.waiting_pool(frame)
            own: Any = getattr(pool, TRACKER_ATTR, None)
            if pool is not None and own is not tracker:  # a light checkout, or a ``check`` that uses another pool
                if own is None or own.fast_path_owner is not self.light_owner:
                    return own, None
                tracker, checkout = self.light_waits[self.current_key()] = own, self._start_light(own, frame)
        if checkout is not None and checkout.queued is None:
            tracker.enqueued(checkout)
        return tracker, checkout

    @never_raise
    def wait_ended(self, waiting: Waiting | None, client: Any) -> None:
        """Record which connect served a waiter, even if an interrupt hit when the waiter received the connection.

        Args:
            waiting: what `enqueued` has returned.
            client: the waiter's place in the queue.
        """
        key = self.worker_connects.claim(private.received_connection(client))
        if key is None or waiting is None:
            return
        tracker, checkout = waiting
        if checkout is None:
            if tracker is not None:
                tracker.report_connects(None, key)
            return
        if checkout.caller is not None:  # the key of a connect whose connection failed its check
            tracker.report_connects(checkout)
        checkout.caller = key

    def acquired(self, tracker: PoolTracker, checkout: ManualCheckout, conn: Any) -> None:
        """Record a checkout that was queued or has connected, or during which a connection failed its check."""
        self._record_failed_checks(tracker, checkout)
        tracker.acquired(checkout, conn)
        self._read_target(tracker, conn)

    @never_raise
    def _read_target(self, tracker: PoolTracker, conn: Any) -> None:
        """Read the target of a pool from a connection, if the application provides the target by a function."""
        if not tracker.target.address:
            tracker.target_known(target_of_connection(conn))

    @never_raise
    def failed(self, tracker: PoolTracker, checkout: ManualCheckout | None, error: BaseException) -> None:
        """Record a checkout that received no connection."""
        if checkout is None or not hasattr(checkout, "is_observed") or hasattr(checkout, "released"):
            return  # interrupted at its start, or after its end
        if not hasattr(checkout, "started"):
            checkout.started = monotonic()
        self._record_failed_checks(tracker, checkout)
        refusal = next((REFUSALS[each] for each in type(error).__mro__ if each in REFUSALS), None)
        if refusal is not None and _is_of_connect(tracker, error):
            refusal = None
        tracker.failed(checkout, error, refusal)

    @never_raise
    def check_failed(self, conn: Any, error: BaseException) -> None:
        """Record that a connection failed the application's check: a retry, unless the caller was interrupted."""
        tracker, checkout = self._in_progress(_getframe())
        if checkout is None:
            return
        self._failed_checks.setdefault(id(checkout), []).append((conn, error))
        if isinstance(error, Exception):
            tracker.retries += 1
            attempt = Attempt(monotonic(), error_type(error), 0.0, error_text(error, tracker.target))
            checkout.retried(attempt, None)  # without the error, which would keep its frames
            if not is_closed(conn):  # the pool keeps the connection, and tries again
                tracker.callback_failed("check", error, checkout)

    @never_raise
    def _record_failed_checks(self, tracker: PoolTracker, checkout: ManualCheckout) -> None:
        """Record the connections that the pool has closed because they failed the check."""
        for conn, error in self._failed_checks.pop(id(checkout), ()):
            record_closed(tracker, conn, DiscardReason.CHECK_FAILED, error)
            self._failed_resets.pop(id(conn), None)

    # Releases

    @never_raise
    def closed_at_release(
        self, tracker: PoolTracker, pool: Any, conn: Any, status: int, checkout: ManualCheckout | None = None
    ) -> None:
        """Record a release at which the pool has closed the connection."""
        error = self._failed_resets.pop(id(conn), None)
        slot = tracker.slots.get(id(conn))
        if slot is not None and not is_left_to_worker(pool, status):
            record_discard(tracker, slot, reason_at_release(pool, conn, status, error), checkout, error)
        elif checkout is not None:
            tracker.released(checkout)

    def release_failed(self, pool: Any, conn: Any, checkout: ManualCheckout, tracker: PoolTracker) -> None:
        """Record the end of a hold at a release that raised, unless the connection is still checked out."""
        self._failed_resets.pop(id(conn), None)
        if not private.is_checked_out(pool, conn):
            tracker.released(checkout, Outcome.DISCARDED if is_closed(conn) else Outcome.RELEASED)

    def reset_failed(self, pool: Any, conn: Any, error: BaseException) -> None:
        """Note the error that a reset raised, for which the pool is about to close the connection."""
        tracker = self.tracker_of(pool)
        if tracker is not None and id(conn) in tracker.slots:  # so the discard is recorded, and takes the error
            self._failed_resets[id(conn)] = error

    @never_raise
    def reset_by_worker(self, pool: Any, conn: Any, status: int, *, from_getconn: bool) -> None:
        """Record the discard of a connection that a worker was to reset, if the worker has closed it."""
        error = self._failed_resets.pop(id(conn), None)
        tracker = self.tracker_of(pool)
        if tracker is not None:
            is_failed_check = from_getconn and error is None
            reason = DiscardReason.CHECK_FAILED if is_failed_check else reason_at_release(pool, conn, status, error)
            record_closed(tracker, conn, reason, error)

    # Connects

    @contextmanager
    def connecting(self, tracker: PoolTracker) -> Iterator[Callable[[Any], None]]:
        """Record a connect. The block either raises, or calls the given function with the connection."""
        began = monotonic()
        _tracker, checkout = self._in_progress(_getframe())
        if checkout is None:
            key = self.worker_connects.new_key()
        elif checkout.caller is None:
            key = checkout.caller = self.worker_connects.new_key()
        else:
            key = checkout.caller
        tracker.connects.connecting.add(key)
        try:
            yield partial(self._connected, tracker, key, began, by_worker=checkout is None)
        except BaseException as error:
            self._connect_failed(tracker, key, began, error)
            if checkout is None:
                self.worker_connects.opened(self.current_key(), None, key)
            raise
        finally:
            tracker.connects.connecting.discard(key)

    @never_raise
    def _connect_failed(self, tracker: PoolTracker, key: int, began: float, error: BaseException) -> None:
        """Record a failed connect, and whether the application or the server is the cause."""
        callback, conn = private.failed_callback(error)
        if conn is not None and is_lost(conn, error):
            callback = ""
        tracker.connect_failed(began, error, key, callback=callback, is_connected=conn is not None)

    @never_raise
    def _connected(self, tracker: PoolTracker, key: int, began: float, conn: Any, *, by_worker: bool) -> None:
        tracker.connected(began, conn, key)
        if by_worker:
            self.worker_connects.opened(self.current_key(), conn, key)

    @never_raise
    def opened(self, pool: Any) -> None:
        """Track a pool that has been opened."""
        if not pool.closed:
            self.tracker_for_use(pool)

    @never_raise
    def worker_done(self, pool: Any) -> None:
        """Report a worker's connect, unless a waiter received the connection: its checkout reports the connect."""
        left = self.worker_connects.pop_unclaimed(self.current_key())
        tracker = None if left is None else self.tracker_of(pool)
        if left is not None and tracker is not None:
            conn, key = left
            tracker.report_connects(None, key)
            if conn is not None:
                self._read_target(tracker, conn)
                # The pool has closed the connection if the pool was closed meanwhile, or keeps no idle connections.
                record_closed(tracker, conn, reason_at_release(pool, conn, IDLE))

    # Idle connections

    def idle_before_closing(self, pool: Any) -> Sequence[Any]:
        """Return the idle connections of a pool, before a method that closes some or all of them."""
        self._use_inherited(pool)
        with ignore_errors:
            return private.idle_connections(pool)
        return ()

    @never_raise
    def idle_closed(self, pool: Any, method: str, idle: Sequence[Any]) -> None:
        """Record which idle connections a method has closed."""
        tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
        if tracker is None or tracker.watch is not self.watch:
            return
        for conn in idle:
            record_closed(tracker, conn, reason_of_method(method, conn))
        if method == "close" and pool.closed:
            tracker.stop_reporting()
            end_shared_threads(0.0)


def _is_of_connect(tracker: PoolTracker, error: BaseException) -> bool:
    """Return whether a failed connect raised an error, as a ``configure`` does that has no connection of another pool.

    The pool raises a timeout once more, as an error of its own.
    """
    raised = (error, error.__context__)
    return any(each.connect.error is one for each in tracker.pending.copy() for one in raised if one is not None)
