"""The wrappers of the methods of pools without asyncio.

They are plain functions, because those of wrapt are slower. Those of ``getconn`` and ``putconn`` call few helpers: the
benchmark ``hooked-psycopg-pool`` measures them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg.driver import is_closed
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import status_of
from otel_pgpool.pool.call_site import caller_of
from otel_pgpool.runtime.fork import is_here, keep_from_forking, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]


def wrap_getconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``getconn``."""
    in_progress, start = calls.in_progress, calls.start

    @wraps(original)
    def getconn(self: Any, timeout: float | None = None) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        if tracker is None or tracker.fast_path_owner is not calls:
            tracker = calls.first_use(self)
            if tracker is None:
                return original(self, timeout)
        me = get_ident()
        outer = in_progress.get(me)  # for example a check that uses another pool
        checkout = conn = None
        try:
            try:
                frame = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                frame = _getframe()
            checkout = start(tracker, frame)
            in_progress[me] = tracker, checkout
            conn = original(self, timeout)
            if checkout.queued is None and not checkout.retries and checkout.caller is None:
                tracker.acquired(checkout, conn)
            else:
                calls.acquired(tracker, checkout, conn)
        except BaseException as error:
            if conn is not None:  # due to an interrupt the caller will not get the connection
                with suppress(Exception):
                    self.putconn(conn)
            calls.failed(tracker, checkout, error)
            raise
        finally:
            if outer is None:
                in_progress.pop(me, None)
            else:
                in_progress[me] = outer
        return conn

    return getconn


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``putconn``."""
    inherited = calls.inherited.conns

    @wraps(original)
    def putconn(self: Any, conn: Any) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        if tracker is None or tracker.fast_path_owner is not calls:
            tracker = calls.tracker_of(self)
        if inherited and id(conn) in inherited:
            return None
        if (
            tracker is None or (slot := tracker.slots.get(id(conn)) or tracker.seen_again(conn)) is None
        ):  # an unknown connection
            return original(self, conn)
        checkout: Any = slot.checkout
        status = status_of(conn)
        try:
            result = original(self, conn)
            if is_closed(conn):
                calls.closed_at_release(tracker, self, conn, status, checkout)
            elif checkout is not None:
                tracker.released(checkout)
        except BaseException:
            if checkout is not None:
                calls.release_failed(self, conn, checkout, tracker)
            raise
        return result

    return putconn


def wrap_wait(calls: PoolCalls, original: Method) -> Method:
    """Wrap the ``wait`` of a place in the queue."""

    @wraps(original)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = calls.enqueued(caller_of(_getframe()))
        try:
            return original(self, *args, **kwargs)
        finally:
            calls.wait_ended(waiting, self)

    return wait


def wrap_set(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method by which a place in the queue receives a connection, under the pool's lock."""
    fresh = calls.fresh

    @wraps(original)
    def set(self: Any, conn: Any) -> Any:  # noqa: A001 - the name of the method
        me = calls.me()
        if not fresh.offer(me, conn):
            return original(self, conn)
        accepted = original(self, conn)
        if accepted:
            fresh.accepted(me)
        else:
            fresh.refused(conn)
        return accepted

    return set


def wrap_check(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method that checks a connection before it is handed out."""

    @wraps(original)
    def _check_connection(self: Any, conn: Any) -> Any:
        if not private.has_check(self):
            return original(self, conn)
        try:
            return original(self, conn)
        except BaseException as error:
            calls.check_failed(conn, error)
            raise

    return _check_connection


def wrap_connect(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method that opens a connection."""

    @wraps(original)
    def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracker = calls.tracker_of(self)
        if tracker is None:
            return original(self, *args, **kwargs)
        with calls.connecting(tracker) as connected:
            conn = original(self, *args, **kwargs)
            connected(conn)
        return conn

    return _connect


def wrap_add_connection(calls: PoolCalls, original: Method) -> Method:
    """Wrap the work of a worker that connects."""

    @wraps(original)
    def _add_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            with keep_from_forking():  # a child would inherit the telemetry's locks
                calls.worker_done(self)

    return _add_connection


def wrap_reset(calls: PoolCalls, original: Method) -> Method:
    """Wrap the work of a worker that resets a released connection."""

    @wraps(original)
    def _run(self: Any, pool: Any) -> Any:
        conn, from_getconn = private.returned(self)
        status = status_of(conn)
        try:
            return original(self, pool)
        finally:
            calls.reset_by_worker(pool, conn, status, from_getconn=from_getconn)

    return _run


def wrap_sweep(calls: PoolCalls, original: Method) -> Method:
    """Wrap a method that closes idle connections."""

    @wraps(original)
    def sweep(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls.sweeping(self, original.__name__):
            return original(self, *args, **kwargs)

    return sweep


def wrap_open(calls: PoolCalls, original: Method) -> Method:
    """Wrap the constructor or ``open``, so that a pool is reported before its first checkout."""

    @wraps(original)
    def opening(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        calls.opened(self)
        return result

    return opening


def wrap_wait_for_pool(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``wait``, which a forked child may call before its first checkout."""

    @wraps(original)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_here:
            renew()
        calls.opened(self)
        return original(self, *args, **kwargs)

    return wait


WRAPPERS = {
    "__init__": wrap_open,
    "open": wrap_open,
    "wait": wrap_wait_for_pool,
    "getconn": wrap_getconn,
    "putconn": wrap_putconn,
    "_check_connection": wrap_check,
    "_connect": wrap_connect,
    "_add_connection": wrap_add_connection,
    **dict.fromkeys(private.SWEEPS, wrap_sweep),
}
"""The wrapper of each method of a pool."""

OF_WAITING = {"wait": wrap_wait, "set": wrap_set}
"""The wrapper of each method of a place in the queue."""

OF_RETURNING = {"_run": wrap_reset}
"""The wrapper of the work of a worker that resets a connection."""
