"""The wrappers of the methods of pools for asyncio.

The wrapper of ``getconn`` reads the task at the call, not when the result is awaited: the holder is the calling task,
but ``asyncio.wait_for`` may await the result in another task. This wrapper is one of wrapt, so that
``inspect.iscoroutinefunction`` is true for it, as for the coroutine function inside.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial, wraps
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from wrapt import FunctionWrapper

from otel_pgpool.instrumentation.adapters.psycopg.driver import BAD
from otel_pgpool.instrumentation.adapters.psycopg_pool import blocking, private, steps
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import pgconn_of
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.instrumentation.open_checkouts import TaskCheckout
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.pool.call_site import caller_of
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.tasks import running_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.adapters.psycopg_pool.steps import Step
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


def wrap_getconn(calls: PoolCalls, original: Method) -> Any:  # noqa: C901 - the functions inside count
    """Wrap ``getconn``."""
    unobserved = calls.unobserved

    def getconn(wrapped: Method, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or tracker.fast_path_owner is not calls:
            tracker = None if tracker is unobserved else calls.tracker_of(pool)
            if tracker is None:
                return wrapped(*args, **kwargs)
        task = running_task()
        return check_out(pool, partial(wrapped, *args, **kwargs), tracker, task, calls.stack_of_task(_getframe(), task))

    @wraps(original)
    async def check_out(
        pool: Any, acquire: Method, tracker: PoolTracker, task: TaskReference | None, stack: Stack
    ) -> Any:
        if calls.inherited.any_unused:  # here, because a repair needs the running loop
            calls.tracker_for_use(pool)
        checkout = conn = None
        try:
            checkout = TaskCheckout()
            tracker.start_in_task_with(checkout, stack, task)
            conn = await acquire()
            if checkout.queued is None and not checkout.retries and not tracker.pending:
                tracker.acquired(checkout, conn)
            else:
                calls.acquired(tracker, checkout, conn)
        except BaseException as error:
            if conn is not None:  # due to an interrupt the caller will not get the connection
                with suppress(Exception):
                    await pool.putconn(conn)
            calls.failed(tracker, checkout, error)
            raise
        return conn

    calls.getconn_codes.add(check_out.__code__)  # type: ignore[attr-defined]  # the type of `wraps` has none
    return FunctionWrapper(original, getconn)


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``putconn``."""
    unobserved, inherited = calls.unobserved, calls.inherited.conns

    @wraps(original)
    async def putconn(self: Any, conn: Any) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = getattr(self, TRACKER_ATTR, None)
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or tracker.fast_path_owner is not calls:
            tracker = None if tracker is unobserved else calls.tracker_of(self)
        if inherited and id(conn) in inherited:
            return None
        # None for an unknown connection.
        slot = None if tracker is None else tracker.slots.get(id(conn)) or tracker.restore_cleared(conn)
        if tracker is None or slot is None:
            return await original(self, conn)
        checkout: Any = slot.checkout
        pgconn, status = pgconn_of(conn)
        try:
            result = await original(self, conn)
            if pgconn.status == BAD:
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
        waiting = None
        try:  # from the first line on: the pool has queued the caller, and notes no interrupt before its own ``wait``
            waiting = calls.enqueued(caller_of(_getframe()))
            return await original(self, *args, **kwargs)
        except BaseException as error:
            private.leave_queue_of_tasks(self, error)
            raise
        finally:
            calls.wait_ended(waiting, self)

    return wait


def within(step: Step) -> Callable[[PoolCalls, Method], Method]:
    """Return a function that wraps a method in a step, which records what the method does."""

    def wrap(calls: PoolCalls, original: Method) -> Method:
        @wraps(original)
        async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            recording = step(calls, self, original.__name__, *args, **kwargs)
            if recording is None:
                return await original(self, *args, **kwargs)
            with recording as on_result:
                result = await original(self, *args, **kwargs)
                on_result(result)
            return result

        return method

    return wrap


POOL_WRAPPERS = {
    "__init__": blocking.within(steps.opening),
    "open": within(steps.opening),
    "wait": within(steps.using_pool),
    "resize": within(steps.using_pool),
    "getconn": wrap_getconn,
    "putconn": wrap_putconn,
    "_connect": within(steps.connecting),
    "_add_connection": within(steps.adding_connection),
    "_close_connection": within(steps.closing_connection),
    **dict.fromkeys(private.IDLE_CLOSING_METHODS, within(steps.closing_idle)),
}
"""The wrapper of each method of a pool."""

CHECK_WRAPPER = within(steps.checking)
"""The wrapper of the call of the application's ``check``."""

WAITING_CLIENT_WRAPPERS = {"wait": wrap_wait, "set": within(steps.handing_over)}
"""The wrapper of each method of a place in the queue."""

RETURN_CONNECTION_WRAPPERS = {"_run": within(steps.resetting)}
"""The wrapper of the work of a worker that resets a connection."""
