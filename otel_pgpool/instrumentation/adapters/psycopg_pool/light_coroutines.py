"""The wrappers of ``getconn`` and ``putconn`` of pools for asyncio, for ``spans="off"``: see `light`.

The benchmark ``hooked-psycopg-async`` measures them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial, wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from wrapt import FunctionWrapper

from otel_pgpool.instrumentation.adapters.psycopg.driver import BAD
from otel_pgpool.instrumentation.adapters.psycopg_pool import coroutines, private
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import pgconn_of
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.tasks import running_task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.runtime.tasks import TaskReference

    Method = Callable[..., Coroutine[Any, Any, Any]]


def wrap_getconn(calls: PoolCalls, original: Method) -> Any:  # noqa: C901 - the functions inside count
    """Wrap ``getconn``."""
    light_waits, light_owner, watch, current_key = calls.light_waits, calls.light_owner, calls.watch, calls.current_key
    slow_path = coroutines.wrap_getconn(calls, original)._self_wrapper  # noqa: SLF001 - wrapt's name of the function

    def getconn(wrapped: Method, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if (
            tracker is None or tracker.fast_path_owner is not light_owner or tracker.gate._real_instrument is not None  # noqa: SLF001 - the attribute is the gate: see `RecordingGate`
        ):
            return slow_path(wrapped, pool, args, kwargs)
        task = running_task()
        stack = calls.stack_of_task(_getframe(), task)
        return check_out(pool, partial(wrapped, *args, **kwargs), tracker, (thread_cache.here.thread, task), stack)

    @wraps(original)
    async def check_out(
        pool: Any, acquire: Method, tracker: PoolTracker, holder: tuple[Any, TaskReference | None], stack: Stack
    ) -> Any:
        started = monotonic()
        try:
            conn = await acquire()
        except BaseException as error:
            _, checkout = light_waits.pop(current_key(), (None, None))
            if checkout is None:
                checkout = tracker.start_in_task(stack, holder[1])
                checkout.started = started
            calls.failed(tracker, checkout, error)
            raise
        try:
            if light_waits and (waited := light_waits.pop(current_key(), None)) is not None:
                calls.acquired(*waited, conn)
                return conn
            tracker.idle_checkouts += 1
            key = id(conn)
            if key not in tracker.slots:
                tracker.register(conn)
            tracker.light[key] = (started, holder, *stack)
            if watch.parked:
                watch.wake()
        except BaseException:  # due to an interrupt the caller will not get the connection
            with suppress(Exception):
                await pool.putconn(conn)
            raise
        return conn

    calls.light_getconn_code = check_out.__code__  # type: ignore[attr-defined]  # the type of `wraps` has none
    return FunctionWrapper(original, getconn)


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``putconn``."""
    slow_path, unobserved, inherited = coroutines.wrap_putconn(calls, original), calls.unobserved, calls.inherited.conns

    @wraps(original)
    async def putconn(self: Any, conn: Any) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = getattr(self, TRACKER_ATTR, None)
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or (record := tracker.light.pop(id(conn), None)) is None:
            return await (original if tracker is unobserved and not inherited else slow_path)(self, conn)
        pgconn, status = pgconn_of(conn)
        try:
            result = await original(self, conn)
        except BaseException:
            tracker.light[id(conn)] = record
            checkout = None if private.is_checked_out(self, conn) else tracker.promote_checkout_of(conn)
            if checkout is not None:
                calls.release_failed(self, conn, checkout, tracker)
            raise
        if pgconn.status == BAD:
            calls.closed_at_release(tracker, self, conn, status)
        return result

    return putconn


POOL_WRAPPERS = {"getconn": wrap_getconn, "putconn": wrap_putconn}
"""The wrapper of each method of a pool, in place of those of `coroutines`."""
