"""The wrappers of the methods of pools for asyncio.

Those of ``getconn`` and ``connection`` are no coroutine functions: a program may give the result to
``asyncio.wait_for``, which may make another task, and the holder is the task that called.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from functools import wraps
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg.driver import is_closed
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.adapters.psycopg_pool.blocking import wrap_open
from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import BETWEEN
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import status_of
from otel_pgpool.pool.call_site import caller_of, task_call_sites
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.tasks import running_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.runtime.tasks import TaskReference

    Method = Callable[..., Coroutine[Any, Any, Any]]


def current_key() -> int:
    """Return the identity of the running task, or of the thread outside of tasks."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        task = None
    return get_ident() if task is None else id(task)


def wrap_getconn(calls: PoolCalls, original: Method) -> Any:
    """Wrap ``getconn``."""

    @wraps(original)
    def getconn(self: Any, timeout: float | None = None) -> Coroutine[Any, Any, Any]:
        if not is_here:
            renew()
        tracker = calls.first_use(self)
        if tracker is None:
            return original(self, timeout)
        task = running_task()
        return check_out(self, timeout, tracker, task, task_call_sites(caller_of(_getframe()), task, BETWEEN))

    @wraps(original)
    async def check_out(
        self: Any, timeout: float | None, tracker: PoolTracker, task: TaskReference | None, stack: Stack
    ) -> Any:
        me = calls.me()
        outer = calls.in_progress.get(me)  # for example a check that uses another pool
        checkout = conn = None
        try:
            checkout = tracker.start_in_task(stack, task)
            calls.in_progress[me] = tracker, checkout
            conn = await original(self, timeout)
            calls.acquired(tracker, checkout, conn)
        except BaseException as error:
            if conn is not None:  # due to an interrupt the caller will not get the connection
                with suppress(Exception):
                    await self.putconn(conn)
            calls.failed(tracker, checkout, error)
            raise
        finally:
            if outer is None:
                calls.in_progress.pop(me, None)
            else:
                calls.in_progress[me] = outer
        return conn

    return marked_as_coroutine_function(getconn)


def marked_as_coroutine_function(function: Any) -> Any:
    """Have a function that returns a coroutine counted as a coroutine function, as the original is."""
    if hasattr(inspect, "markcoroutinefunction"):  # since Python 3.12
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio's own way before
    return function


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``putconn``."""

    @wraps(original)
    async def putconn(self: Any, conn: Any) -> Any:
        if not is_here:
            renew()
        tracker = calls.tracker_of(self)
        if id(conn) in calls.inherited.conns:
            return None
        if (
            tracker is None or (slot := tracker.slots.get(id(conn)) or tracker.seen_again(conn)) is None
        ):  # an unknown connection
            return await original(self, conn)
        checkout: Any = slot.checkout
        status = status_of(conn)
        try:
            result = await original(self, conn)
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
    async def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = calls.enqueued(caller_of(_getframe()))
        try:
            return await original(self, *args, **kwargs)
        finally:
            calls.wait_ended(waiting, self)

    return wait


def wrap_set(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method by which a place in the queue receives a connection, under the pool's lock."""
    fresh = calls.fresh

    @wraps(original)
    async def set(self: Any, conn: Any) -> Any:  # noqa: A001 - the name of the method
        me = calls.me()
        if not fresh.offer(me, conn):
            return await original(self, conn)
        accepted = await original(self, conn)
        if accepted:
            fresh.accepted(me)
        else:
            fresh.refused(conn)
        return accepted

    return set


def wrap_check(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method that checks a connection before it is handed out."""

    @wraps(original)
    async def _check_connection(self: Any, conn: Any) -> Any:
        if not private.has_check(self):
            return await original(self, conn)
        try:
            return await original(self, conn)
        except BaseException as error:
            calls.check_failed(conn, error)
            raise

    return _check_connection


def wrap_connect(calls: PoolCalls, original: Method) -> Method:
    """Wrap the method that opens a connection."""

    @wraps(original)
    async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracker = calls.tracker_of(self)
        if tracker is None:
            return await original(self, *args, **kwargs)
        with calls.connecting(tracker) as connected:
            conn = await original(self, *args, **kwargs)
            connected(conn)
        return conn

    return _connect


def wrap_add_connection(calls: PoolCalls, original: Method) -> Method:
    """Wrap the work of a worker that connects."""

    @wraps(original)
    async def _add_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            calls.worker_done(self)

    return _add_connection


def wrap_reset(calls: PoolCalls, original: Method) -> Method:
    """Wrap the work of a worker that resets a released connection."""

    @wraps(original)
    async def _run(self: Any, pool: Any) -> Any:
        conn, from_getconn = private.returned(self)
        status = status_of(conn)
        try:
            return await original(self, pool)
        finally:
            calls.reset_by_worker(pool, conn, status, from_getconn=from_getconn)

    return _run


def wrap_sweep(calls: PoolCalls, original: Method) -> Method:
    """Wrap a method that closes idle connections."""

    @wraps(original)
    async def sweep(self: Any, *args: Any, **kwargs: Any) -> Any:
        with calls.sweeping(self, original.__name__):
            return await original(self, *args, **kwargs)

    return sweep


def wrap_open_later(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``open``, so that a pool is reported before its first checkout."""

    @wraps(original)
    async def opening(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        calls.opened(self)
        return result

    return opening


def wrap_wait_for_pool(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``wait``, which a forked child may call before its first checkout."""

    @wraps(original)
    async def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_here:
            renew()
        calls.opened(self)
        return await original(self, *args, **kwargs)

    return wait


WRAPPERS = {
    "__init__": wrap_open,
    "open": wrap_open_later,
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
