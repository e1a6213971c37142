"""The wrappers of the methods of pools without asyncio.

They are plain functions, because those of wrapt are slower. Those of ``getconn`` and ``putconn`` call few helpers: the
benchmark ``hooked-psycopg-pool`` measures them.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg.driver import BAD, NO_PGCONN
from otel_pgpool.instrumentation.adapters.psycopg_pool import private, steps
from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import SKIPPED_MODULES
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import UNKNOWN
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.pool.call_site import call_sites_fast_filtered, caller_of
from otel_pgpool.pool.checkout import ManualCheckout
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.adapters.psycopg_pool.steps import Step
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]


def wrap_getconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``getconn``."""
    connection_code, unobserved = calls.connection_code, calls.unobserved

    @wraps(original)
    def getconn(self: Any, timeout: float | None = None) -> Any:  # noqa: C901 - in one piece, because calls cost
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or tracker.fast_path_owner is not calls:
            tracker = None if tracker is unobserved else calls.tracker_for_use(self)
            if tracker is None:
                return original(self, timeout)
        checkout = conn = None
        try:
            try:
                frame = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                frame = _getframe()
            if frame.f_code is connection_code:  # called by contextlib, which the application calls
                frame = getattr(frame.f_back, "f_back", None) or frame
            checkout = ManualCheckout()
            tracker.start_with(checkout, call_sites_fast_filtered(frame, SKIPPED_MODULES))
            conn = original(self, timeout)
            if checkout.queued is None and not checkout.retries and not tracker.pending:
                tracker.acquired(checkout, conn)
            else:
                calls.acquired(tracker, checkout, conn)
        except BaseException as error:
            if conn is not None:  # due to an interrupt the caller will not get the connection
                with suppress(Exception):
                    self.putconn(conn)
            calls.failed(tracker, checkout, error)
            raise
        return conn

    calls.getconn_codes.add(getconn.__code__)  # type: ignore[attr-defined]  # the type of `wraps` has none
    return getconn


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``putconn``."""
    inherited, unobserved = calls.inherited.conns, calls.unobserved

    @wraps(original)
    def putconn(self: Any, conn: Any) -> Any:  # noqa: C901 - in one piece, because calls cost
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
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
            return original(self, conn)
        checkout: Any = slot.checkout
        try:
            pgconn = conn.pgconn
            status = pgconn.transaction_status
        except Exception as error:  # noqa: BLE001 - a connection of the application's own class
            raise_if_external(error)
            pgconn, status = NO_PGCONN, UNKNOWN
        try:
            result = original(self, conn)
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
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = None
        try:  # from the first line on: the pool has queued the caller, and notes no interrupt before its own ``wait``
            waiting = calls.enqueued(caller_of(_getframe()))
            return original(self, *args, **kwargs)
        except BaseException as error:
            private.leave_queue(self, error)
            raise
        finally:
            calls.wait_ended(waiting, self)

    return wait


def within(step: Step) -> Callable[[PoolCalls, Method], Method]:
    """Return a function that wraps a method in a step, which records what the method does."""

    def wrap(calls: PoolCalls, original: Method) -> Method:
        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            recording = step(calls, self, original.__name__, *args, **kwargs)
            if recording is None:
                return original(self, *args, **kwargs)
            with recording as on_result:
                result = original(self, *args, **kwargs)
                on_result(result)
            return result

        return method

    return wrap


POOL_WRAPPERS = {
    "__init__": within(steps.opening),
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
