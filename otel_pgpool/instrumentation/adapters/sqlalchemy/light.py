"""The wrapper of ``Engine.raw_connection`` for ``spans="off"``, which makes no record of an ordinary checkout.

The benchmark ``hooked-sqlalchemy`` measures it. It is in one piece, because a call would cost 2 %. Calls of tasks, and
all calls that are not ordinary, are passed to the wrapper of `EngineCalls`. If a checkout waits, connects or has
anything else to report, it gets its record at that moment.
"""

from __future__ import annotations

from functools import wraps
from inspect import signature
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import ref

from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import record_of_call
from otel_pgpool.instrumentation.adapters.sqlalchemy.wrappers import SKIPPED_MODULES
from otel_pgpool.instrumentation.guards import raise_if_external
from otel_pgpool.pool.call_site import call_sites_fast_filtered
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from otel_pgpool.instrumentation.adapters.sqlalchemy.wrappers import EngineCalls
    from otel_pgpool.instrumentation.tracker import PoolTracker


def wrap_raw_connection(  # noqa: C901, PLR0915 - the function inside counts
    calls: EngineCalls, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap ``Engine.raw_connection``, if it has no parameters, as since SQLAlchemy 2.0: they would slow it down."""
    if len(signature(original).parameters) > 1:
        return calls.wrap_raw_connection(original)
    in_progress, held, watch = calls.table.in_progress, calls.table.held, calls.watch
    check_out = calls.check_out
    slow_path = calls.wrap_raw_connection(original, depth=2)

    @wraps(original)
    def raw_connection(engine: Engine) -> Any:  # noqa: C901, PLR0912 - in one piece
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
            return slow_path(engine)
        try:
            frame = _getframe(1)
        except ValueError:  # no Python caller, as for a greenlet's first function
            frame = _getframe()
        key = get_ident()
        if (
            tracker.gate._real_instrument is not None  # noqa: SLF001 - the attribute is the gate: see `RecordingGate`
            or key in in_progress
        ):
            return check_out(tracker, frame, original, engine)
        stack = call_sites_fast_filtered(frame, SKIPPED_MODULES)
        started = monotonic()
        call = in_progress[key] = tracker, stack, started
        checkout = hold = None
        try:
            fairy = original(engine)
            try:
                conn, fairy_ref = fairy.dbapi_connection, ref(fairy)
            except Exception as error:  # noqa: BLE001 - third-party code may return any object
                raise_if_external(error)
                conn = None
            connection_key = id(conn)
            latest = in_progress.pop(key, call)
            if latest is call and connection_key in tracker.slots and connection_key not in held:
                acquired = monotonic()
                hold = held[connection_key] = tracker, fairy_ref
                tracker.light[connection_key] = (acquired, thread_cache.here.thread) + stack  # noqa: RUF005 - a list in between costs more
                tracker.wait_seconds += acquired - started
                tracker.idle_checkouts += 1
                if watch.parked:
                    calls.wake_watch()
            else:
                checkout = record_of_call(latest)
                if conn is not None:
                    checkout.fairy = fairy_ref
                calls.record_hand_over(checkout, fairy, conn)
        except BaseException as error:
            if hold is None:
                calls.failed(checkout or record_of_call(in_progress.pop(key, call)), error)
            raise
        return fairy

    return raw_connection
