"""The wrappers of ``getconn`` and ``putconn`` of psycopg2's two classes, for ordinary checkouts of their own objects.

The benchmark ``hooked`` measures them. Each is a plain function, because wrapt's are slower, and calls no helper,
because a call would cost 4 %. There are two pairs. The light pair, for ``spans="off"``, creates no record of a
checkout as long as nothing is reported. All other calls take the slow path of `PoolCalls`.
"""

from __future__ import annotations

from functools import wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from psycopg2.pool import SimpleConnectionPool

from otel_pgpool.instrumentation.adapters.psycopg2.driver import closed_of
from otel_pgpool.instrumentation.adapters.psycopg2.failures import (
    handle_failed_getconn,
    handle_failed_putconn,
    record_discard,
    record_failure,
    release_unused,
    still_checked_out,
)
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.pool.call_site import call_sites_fast, caller_call_sites
from otel_pgpool.pool.checkout import ManualCheckout
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.psycopg2.wrappers import PoolCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]


def wrap_getconn(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``getconn``."""
    slow_path, unobserved = calls.check_out, calls.unobserved

    @wraps(original)
    def getconn(self: Any, key: Any = None) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or key is not None or tracker.fast_path_owner is not calls:
            if tracker is unobserved:
                return original(self, key)
            return slow_path(self, original, key, _getframe())
        checkout = conn = None
        try:
            try:
                frame = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                frame = _getframe()
            checkout = ManualCheckout()
            tracker.start_with(checkout, call_sites_fast(frame))
            conn = original(self, None)
            tracker.acquired(checkout, conn)
        except BaseException as error:
            handle_failed_getconn(tracker, self, checkout, conn, error)
            raise
        return conn

    return getconn


def wrap_putconn(calls: PoolCalls, owner: type, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``putconn``."""
    slow_path, unobserved, inherited = calls.release, calls.unobserved, calls.inherited

    @wraps(original)
    def putconn(self: Any, conn: Any = None, key: Any = None, close: Any = False) -> None:  # noqa: FBT002 - its signature
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        slot = None
        if tracker is not None and key is None and tracker.fast_path_owner is calls:
            slot = tracker.slots.get(id(conn))
        checkout: Any = None if slot is None else slot.checkout
        if tracker is None or slot is None or checkout is None:
            if tracker is unobserved and not inherited:
                original(self, conn, key, close)
                return
            slow_path(self, original, (conn, key, close), {})
            return
        try:
            was_closed = conn.closed
        except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
            raise_if_external(error)
            was_closed = 0
        try:
            original(self, conn, None, close)
            if closed_of(conn):
                record_discard(tracker, slot, was_closed, close=close, checkout=checkout)
            else:
                tracker.released(checkout)
        except BaseException as error:
            handle_failed_putconn(tracker, self, conn, checkout, error)
            raise

    return with_defaults_of(owner, putconn)


def wrap_getconn_lightly(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``getconn`` for ``spans="off"``."""
    slow_path, watch, unobserved = calls.check_out, calls.watch, calls.unobserved

    @wraps(original)
    def getconn(self: Any, key: Any = None) -> Any:  # noqa: C901, PLR0912 - in one piece, because a call would cost 4 %
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if (
            tracker is None
            or key is not None
            or tracker.fast_path_owner is not calls
            or tracker.gate._real_instrument is not None  # noqa: SLF001 - the attribute is the gate: see `RecordingGate`
        ):
            if tracker is unobserved:
                return original(self, key)
            return slow_path(self, original, key, _getframe())
        conn: Any = None
        started = monotonic()
        try:
            conn = original(self, None)  # passing None explicitly is faster than the default
            if tracker.pending and tracker.report_connects():
                started = monotonic()
                tracker.new_checkouts += 1
            else:
                tracker.idle_checkouts += 1
            try:
                first = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                first = _getframe()
            if (second := first.f_back) is None:
                second = first
            if (third := second.f_back) is None:
                third = second
            connection_key = id(conn)
            if connection_key not in tracker.slots:
                tracker.register(conn)
            tracker.light[connection_key] = (
                started,
                thread_cache.here.thread,
                first.f_code,
                first.f_lasti,
                second.f_code,
                second.f_lasti,
                third.f_code,
                third.f_lasti,
            )
            if watch.parked:
                watch.wake()
        except BaseException as error:
            _handle_failed_light_getconn(tracker, self, conn, started, error)
            raise
        return conn

    return getconn


def wrap_putconn_lightly(calls: PoolCalls, owner: type, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``putconn`` for ``spans="off"``."""
    slow_path, unobserved, inherited = calls.release, calls.unobserved, calls.inherited

    @wraps(original)
    def putconn(self: Any, conn: Any = None, key: Any = None, close: Any = False) -> None:  # noqa: FBT002, C901 - its signature; in one piece, likewise
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or key is not None or (light := tracker.light.pop(id(conn), None)) is None:
            if tracker is unobserved and not inherited:
                original(self, conn, key, close)
                return
            slow_path(self, original, (conn, key, close), {})
            return
        try:
            was_closed = conn.closed
        except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
            raise_if_external(error)
            was_closed = 0
        try:
            original(self, conn, None, close)
        except BaseException as error:
            if not closed_of(self):
                tracker.light[id(conn)] = light
                is_over = not still_checked_out(self, conn, error)
                if is_over and (checkout := tracker.promote_checkout_of(conn)) is not None:
                    tracker.released(checkout, Outcome.DISCARDED, error)
            raise
        try:
            is_closed = conn.closed
        except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
            raise_if_external(error)
            return
        if is_closed:
            record_discard(tracker, tracker.slot_of(conn), was_closed, close=close)

    return with_defaults_of(owner, putconn)


def _handle_failed_light_getconn(
    tracker: PoolTracker, pool: Any, conn: Any, started: float, error: BaseException
) -> None:
    """Record a failed checkout, or release a connection that did not reach the caller."""
    if conn is None:
        checkout = tracker.start(caller_call_sites(_getframe(1)))
        checkout.started = started
        record_failure(tracker, pool, checkout, error)
    else:
        release_unused(pool, conn)


def with_defaults_of(owner: type, putconn: Method) -> Method:
    """Give a wrapper of ``putconn`` the defaults of its class: in one of the two, ``conn`` is required."""
    if owner is SimpleConnectionPool:
        function: Any = putconn
        function.__defaults__ = (None, False)
    return putconn
