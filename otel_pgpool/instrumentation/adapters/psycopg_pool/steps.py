"""The steps that are recorded around a method of a pool, with and without asyncio.

A step gets the `PoolCalls`, and the object, the name and the arguments of the method. It returns a context manager for
the time of the call, or None if there is nothing to record. The context manager gives a function, which is called with
the method's result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.adapters.psycopg_pool.discards import pgconn_of
from otel_pgpool.runtime.fork import is_here, keep_from_forking, renew

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls

OnResult = Callable[[Any], object]
Recording = AbstractContextManager[OnResult]
Step = Callable[..., Recording | None]


def ignore_result(_result: object) -> None:
    """Do nothing with the result of a method."""


@contextmanager
def opening(calls: PoolCalls, pool: Any, _method: str, *_args: Any, **_kwargs: Any) -> Iterator[OnResult]:
    """Track a pool after its constructor or ``open``, so that the pool is reported before its first checkout."""
    calls.separate(pool)
    yield ignore_result
    calls.opened(pool)


def using_pool(calls: PoolCalls, pool: Any, _method: str, *_args: Any, **_kwargs: Any) -> None:
    """Track a pool at its ``wait`` or ``resize``, which a forked child may call before its first checkout."""
    if not is_here:
        renew()
    calls.opened(pool)


def checking(calls: PoolCalls, pool: Any, _method: str, conn: Any) -> Recording | None:
    """Record the check of a connection before it is handed out, if the application checks connections."""
    return _checking(calls, conn) if private.has_check(pool) else None


@contextmanager
def _checking(calls: PoolCalls, conn: Any) -> Iterator[OnResult]:
    try:
        yield ignore_result
    except BaseException as error:
        calls.check_failed(conn, error)
        raise


def connecting(calls: PoolCalls, pool: Any, _method: str, *_args: Any, **_kwargs: Any) -> Recording | None:
    """Record a connect."""
    tracker = calls.tracker_of(pool)
    return None if tracker is None else calls.connecting(tracker)


@contextmanager
def adding_connection(calls: PoolCalls, pool: Any, _method: str, *_args: Any, **_kwargs: Any) -> Iterator[OnResult]:
    """Record the work of a worker that connects."""
    try:
        yield ignore_result
    finally:
        with keep_from_forking():  # a child would inherit the telemetry's locks
            calls.worker_done(pool)


def closing_connection(calls: PoolCalls, pool: Any, _method: str, conn: Any) -> None:
    """Record the error for which a pool closes a connection that it was to reset."""
    error = sys.exc_info()[1]
    if error is not None and private.is_handled_by_reset(error):
        calls.reset_failed(pool, conn, error)


def handing_over(calls: PoolCalls, _client: Any, _method: str, conn: Any) -> Recording | None:
    """Record a worker's hand-over to a waiter. Called under the pool's lock."""
    worker, connects = calls.current_key(), calls.worker_connects
    is_new = connects.begin_hand_over(worker, conn)
    return nullcontext(partial(connects.end_hand_over, worker, conn)) if is_new else None


@contextmanager
def resetting(calls: PoolCalls, task: Any, _method: str, pool: Any) -> Iterator[OnResult]:
    """Record the work of a worker that resets a released connection."""
    conn, from_getconn = private.connection_to_reset(task)
    _pgconn, status = pgconn_of(conn)
    try:
        yield ignore_result
    finally:
        calls.reset_by_worker(pool, conn, status, from_getconn=from_getconn)


@contextmanager
def closing_idle(calls: PoolCalls, pool: Any, method: str, *_args: Any, **_kwargs: Any) -> Iterator[OnResult]:
    """Record a method that closes idle connections."""
    idle = calls.idle_before_closing(pool)
    try:
        yield ignore_result
    finally:
        calls.idle_closed(pool, method, idle)
