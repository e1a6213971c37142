"""The wrappers of ``getconn`` and ``putconn`` for ``spans="off"``, which keep no record of an ordinary checkout.

The benchmark ``hooked-psycopg-pool`` measures them. Each is in one piece, because a call would cost 2 %. The wrappers
of `blocking` serve pools that connect or check connections in their callers, and all calls that are not ordinary.
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg.driver import BAD, NO_PGCONN
from otel_pgpool.instrumentation.adapters.psycopg_pool import blocking, private
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import UNKNOWN
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.pool.call_site import caller_of
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]


def is_light(pool: Any) -> bool:
    """Return whether the ordinary checkouts of a pool neither connect nor check a connection."""
    return not private.is_null(pool) and not private.has_check(pool)


def wrap_getconn(calls: PoolCalls, original: Method) -> Method:  # noqa: C901 - the function inside counts
    """Wrap ``getconn``."""
    light_waits, light_owner, connection_code = calls.light_waits, calls.light_owner, calls.connection_code
    watch, unobserved, slow_path = calls.watch, calls.unobserved, blocking.wrap_getconn(calls, original)

    @wraps(original)
    def getconn(self: Any, timeout: float | None = None) -> Any:  # noqa: C901, PLR0912 - in one piece
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
            tracker is None or tracker.fast_path_owner is not light_owner or tracker.gate._real_instrument is not None  # noqa: SLF001 - the attribute is the gate: see `RecordingGate`
        ):
            return original(self, timeout) if tracker is unobserved else slow_path(self, timeout)
        started = monotonic()
        try:
            conn = original(self, timeout)
        except BaseException as error:
            _, checkout = light_waits.pop(get_ident(), (None, None))
            if checkout is None:
                checkout = calls.start(tracker, caller_of(_getframe()))
                checkout.started = started
            calls.failed(tracker, checkout, error)
            raise
        try:
            if light_waits and (waited := light_waits.pop(get_ident(), None)) is not None:
                calls.acquired(*waited, conn)
                return conn
            tracker.idle_checkouts += 1
            try:
                first = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                first = _getframe()
            if first.f_code is connection_code:  # called by contextlib, which the application calls
                first = getattr(first.f_back, "f_back", None) or first
            if (second := first.f_back) is None:
                second = first
            if (third := second.f_back) is None:
                third = second
            key = id(conn)
            if key not in tracker.slots:
                tracker.register(conn)
            tracker.light[key] = (
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
        except BaseException:  # due to an interrupt the caller will not get the connection
            with suppress(Exception):
                self.putconn(conn)
            raise
        return conn

    return getconn


def wrap_putconn(calls: PoolCalls, original: Method) -> Method:
    """Wrap ``putconn``."""
    slow_path, unobserved, inherited = blocking.wrap_putconn(calls, original), calls.unobserved, calls.inherited.conns

    @wraps(original)
    def putconn(self: Any, conn: Any) -> Any:
        if not is_here:
            renew()
        try:
            tracker: PoolTracker | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            tracker = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            raise_if_external(error)
            tracker = None
        if tracker is None or (record := tracker.light.pop(id(conn), None)) is None:
            return original(self, conn) if tracker is unobserved and not inherited else slow_path(self, conn)
        try:
            pgconn = conn.pgconn
            status = pgconn.transaction_status
        except Exception as error:  # noqa: BLE001 - a connection of the application's own class
            raise_if_external(error)
            pgconn, status = NO_PGCONN, UNKNOWN
        try:
            result = original(self, conn)
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
"""The wrapper of each method of a pool, in place of those of `blocking`."""
