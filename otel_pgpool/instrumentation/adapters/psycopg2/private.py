"""The private attributes of psycopg2's pools, which offer no other way to read or to replace their state.

Checked on psycopg2 2.9.9 to 2.9.13: ``_pool`` is the list of idle connections, ``_used`` the dictionary of checked-out
connections by key, ``_rused`` the dictionary of their keys by id, ``_lock`` the lock of a `ThreadedConnectionPool`,
``_args`` and ``_kwargs`` the arguments of ``psycopg2.connect``. A subclass may have replaced any of them, so the
functions may raise anything where they do not say otherwise. The methods ``_connect``, ``_getconn``, ``_putconn`` and
``_closeall`` are named in `install`, because a subclass of ``AbstractConnectionPool`` calls and overrides them.
"""
# ruff: noqa: SLF001 - this file is the one place of these accesses

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_initialized(pool: Any) -> bool:
    """Return whether the constructor of a pool has set the arguments of its connects."""
    return hasattr(pool, "_kwargs")


def connect_arguments(pool: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of a pool's connects."""
    return pool._args, pool._kwargs


def idle_connections(pool: Any) -> Iterable[Any]:
    """Return the idle connections of a pool; the list is the pool's own."""
    idle: Iterable[Any] = pool._pool
    return idle


def counts(pool: Any) -> tuple[int, int]:
    """Return the numbers of checked-out and of idle connections."""
    return len(pool._used), len(pool._pool)


def connection_by_key(pool: Any, key: Any) -> Any:
    """Return the connection that is checked out by a key, or None."""
    return pool._used.get(key)


def is_checked_out(pool: Any, conn: Any) -> bool:
    """Return whether a pool counts a connection as checked out; False if that cannot be read."""
    with ignore_errors:
        return id(conn) in pool._rused
    return False


def release(pool: Any, conn: Any) -> None:
    """Release a connection by the pool's ``putconn``, or by ``_putconn`` where a subclass has no other."""
    (pool.putconn if hasattr(pool, "putconn") else pool._putconn)(conn)


def remove_all(pool: Any) -> tuple[list[Any], list[Any]]:
    """Empty a pool and renew its lock, in a forked child; return the former idle and checked-out connections."""
    idle, used = list(pool._pool), list(pool._used.values())
    pool._pool.clear()
    pool._used.clear()
    pool._rused.clear()
    for kind in (threading.Lock, threading.RLock):  # another thread of the parent may have held the lock
        if type(getattr(pool, "_lock", None)) is type(kind()):
            pool._lock = kind()
    return idle, used
