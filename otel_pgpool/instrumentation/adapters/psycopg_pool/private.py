"""The private parts of psycopg_pool, which offers no other way to observe a wait, a connect or a closed connection.

Checked on psycopg_pool 3.2.0 to 3.3.3. If one of those in `METHODS` and `ATTRIBUTES` is gone, nothing is wrapped: the
pools stay uninstrumented, with a log record. If one of the times is gone, a discard may have another reason. If one of
``_resolve_conninfo``, ``_resolve_kwargs``, ``_reset_connection`` and ``_close_connection`` is gone, an error is
reported without the callback that raised. A subclass may have replaced any of them, so the functions may raise anything
where they do not say otherwise.

| name | meaning |
| --- | --- |
| ``_pool`` of a pool | the deque of idle connections |
| ``_pool`` of a connection | the pool, while the connection is checked out, connects or is reset; otherwise None |
| ``_closed``, ``_opened`` | whether the pool is closed, or not open yet; whether it was opened |
| ``_drained_at``, ``_created_at``, ``_expire_at`` | times: of ``drain()`` (since 3.3), of a connect, of its expiry |
| ``_connect()`` | opens and configures a connection, in a worker or in a caller |
| ``_resolve_conninfo()``, ``_resolve_kwargs()`` | call the application's functions within ``_connect`` (since 3.3) |
| ``_reset_connection()`` | rolls back and calls the application's ``reset``, and handles their errors |
| ``_close_connection()`` | closes a connection (not in every 3.2) |
| ``_add_connection()`` | the work of a worker that connects |
| ``_check_connection()`` | calls the application's ``check`` before a connection is handed out |
| ``_shrink_pool()`` | closes one idle connection |
| ``WaitingClient`` | the place of a caller in the queue: ``wait()``, and ``set(conn)``, called under the pool's lock |
| ``error``, ``_cond`` of a place | the error that has ended the wait, so that ``set`` refuses; the lock of the place |
| ``ReturnConnection`` | the work of a worker that resets a released connection |
"""
# ruff: noqa: SLF001 - this file is the one place of these accesses

from __future__ import annotations

import inspect
import re
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool, pool, pool_async
from psycopg_pool.base import BasePool
from psycopg_pool.base_null_pool import _BaseNullConnectionPool

from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

GENERATED_NAME = re.compile("pool-[0-9]+")
"""The names that psycopg_pool generates for pools."""

IDLE_CLOSING_METHODS = ("close", "drain", "check", "_shrink_pool")
"""The methods that close idle connections; `drain` exists since 3.3."""

POOL_METHODS = (
    *("open", "wait", "connection", "getconn", "putconn", "close", "check", "resize"),
    *("_add_connection", "_check_connection", "_connect", "_shrink_pool"),
)
METHODS: dict[type, tuple[str, ...]] = {
    ConnectionPool: POOL_METHODS,
    AsyncConnectionPool: POOL_METHODS,
    pool.WaitingClient: ("conn", "error", "set", "wait", "_cond"),
    pool_async.WaitingClient: ("conn", "error", "set", "wait", "_cond"),
    pool.ReturnConnection: ("_run",),
    pool_async.ReturnConnection: ("_run",),
}
"""Needed names by class."""

ATTRIBUTES: dict[type, tuple[str, ...]] = {
    BasePool: ("_closed", "_opened", "_pool"),
    ConnectionPool: ("_check", "_reset"),
    AsyncConnectionPool: ("_check", "_reset"),
    pool.ReturnConnection: ("conn", "from_getconn"),
    pool_async.ReturnConnection: ("conn", "from_getconn"),
}
"""Needed names that a constructor sets, by class."""


def check_names() -> None:
    """Check that psycopg_pool has the needed names.

    Raises:
        AttributeError: one is gone.
    """
    for owner, names in METHODS.items():
        for name in names:
            getattr(owner, name)
    for owner, names in ATTRIBUTES.items():
        code = getattr(inspect.unwrap(vars(owner)["__init__"]), "__code__", None)
        for name in names:
            if code is not None and name not in code.co_names:
                raise AttributeError(f"{owner.__module__}.{owner.__qualname__} sets no attribute {name!r}")


def is_initialized(pool: Any) -> bool:
    """Return whether the constructor has created the pool's state."""
    return hasattr(pool, "_closed") and hasattr(pool, "_pool")


def was_opened(pool: Any) -> bool:
    """Return whether a pool is open, or was; one that is not open yet is also ``closed``."""
    return bool(not pool.closed or getattr(pool, "_opened", True))


def is_null(pool: Any) -> bool:
    """Return whether a pool keeps no idle connections."""
    return isinstance(pool, _BaseNullConnectionPool)


def connects_in_callers(pool: Any) -> bool:
    """Return whether the threads of callers open a pool's connections, so that a forked child needs no worker."""
    return is_null(pool) and isinstance(pool, ConnectionPool)


def idle_connections(pool: Any) -> Sequence[Any]:
    """Return the idle connections of a pool."""
    return tuple(pool._pool.copy())


def idle_count(pool: Any) -> int:
    """Return the number of idle connections."""
    return len(pool._pool)


def is_checked_out(pool: Any, conn: Any) -> bool:
    """Return whether a connection is checked out of a pool; False if that cannot be read."""
    with ignore_errors:
        return getattr(conn, "_pool", None) is pool
    return False


def is_drained(pool: Any, conn: Any) -> bool:
    """Return whether ``drain()`` was called since a connection was made; False if that cannot be read."""
    with ignore_errors:
        return bool(conn._created_at <= pool._drained_at)
    return False


def is_expired(conn: Any) -> bool:
    """Return whether a connection is older than ``max_lifetime``; False if that cannot be read."""
    with ignore_errors:
        return bool(conn._expire_at <= monotonic())
    return False


def has_check(pool: Any) -> bool:
    """Return whether the application checks connections; False if that cannot be read."""
    return getattr(pool, "_check", None) is not None


def has_reset(pool: Any) -> bool:
    """Return whether the application resets connections, which a worker then does; False if that cannot be read."""
    return getattr(pool, "_reset", None) is not None


def failed_callback(error: BaseException) -> tuple[str, Any]:
    """Return the name of the callback that has made a connect fail, and the connection that the callback got.

    The name is empty if no callback has failed, or if that cannot be read. The connection is None if there was none.
    """
    with ignore_errors:
        for frame, _line in walk_tb(error.__traceback__):
            if _is_own(frame, "_connect"):
                conn = frame.f_locals.get("conn")
                if conn is not None:
                    return "configure", conn
            elif _is_own(frame, "_resolve_conninfo"):
                return "conninfo", None
            elif _is_own(frame, "_resolve_kwargs"):
                return "kwargs", None
    return "", None


def is_handled_by_reset(error: BaseException) -> bool:
    """Return whether the pool handles an error of a rollback or of ``reset``; False if that cannot be read."""
    with ignore_errors:
        traceback = error.__traceback__
        return traceback is not None and _is_own(traceback.tb_frame, "_reset_connection")
    return False


def _is_own(frame: FrameType, function: str) -> bool:
    """Return whether a frame is that of a function of psycopg_pool."""
    return frame.f_code.co_name == function and str(frame.f_globals.get("__name__")).startswith("psycopg_pool.")


def waiting_pool(frame: FrameType) -> Any:
    """Return the pool in whose method a caller waits: the ``self`` of the method's frame; None if there is none."""
    return frame.f_locals.get("self")


def received_connection(client: Any) -> Any:
    """Return the connection that a waiter has received; None if there is none."""
    return getattr(client, "conn", None)


def leave_queue(client: Any, error: BaseException) -> None:
    """Have a waiter receive no connection from now on, because an error has ended its wait."""
    with client._cond:
        leave_queue_of_tasks(client, error)


def leave_queue_of_tasks(client: Any, error: BaseException) -> None:
    """Do as `leave_queue` for a task, which needs no lock: a connection is received between two switches of tasks."""
    client.error = client.error or error


def connection_to_reset(task: Any) -> tuple[Any, bool]:
    """Return the connection that a worker resets, and whether ``getconn`` has released it, after a failed check."""
    return task.conn, bool(task.from_getconn)


# In a forked child

STATE = (
    *("_lock", "_sched", "_tasks", "_waiting", "_pool", "_stats", "_workers", "_sched_runner", "_pool_full_event"),
    *("_growing", "_nconns", "_nconns_min", "_min_size", "_start_workers", "_start_initial_tasks"),
)
"""The parts of an open pool that begin anew, or are needed for that."""


def missing_parts(pool: Any) -> tuple[str, ...]:
    """Return the parts of an open pool that this release does not have."""
    return tuple(name for name in STATE if not hasattr(pool, name))


def begin_anew(pool: Any) -> None:
    """Give a pool the state of one that was just opened, and has not started its work.

    The parent may have held any lock, and changed any of these, at the moment of the fork.
    """
    for name in ("_lock", "_sched", "_tasks", "_waiting", "_pool", "_stats"):
        setattr(pool, name, type(getattr(pool, name))())
    pool._workers = []
    pool._sched_runner = pool._pool_full_event = None
    pool._growing = False
    pool._nconns = pool._nconns_min = pool._min_size


def start_work(pool: Any) -> None:
    """Start the threads or tasks of a pool, which then opens its connections."""
    pool._start_workers()
    pool._start_initial_tasks()
