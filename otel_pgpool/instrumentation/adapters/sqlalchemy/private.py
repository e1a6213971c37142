"""The private attributes of SQLAlchemy that have no public counterpart.

Checked on SQLAlchemy 1.4.54, 2.0.51 and 2.1.9. An application's own classes may lack any of them, so each function may
raise anything.
"""
# ruff: noqa: SLF001 - this file is the one place of these accesses

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from inspect import getclosurevars
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.engine.events import DialectEvents
from sqlalchemy.engine.interfaces import AdaptedConnection
from sqlalchemy.pool import SingletonThreadPool
from sqlalchemy.pool.base import _ConnectionRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.pool import QueuePool

    Record = Any
    """SQLAlchemy's ``_ConnectionRecord``: a slot in the pool that outlives the DBAPI connection in it."""

DIALECT_EVENTS = [name for name in dir(DialectEvents) if name.startswith(("do_", "handle_"))]


def current_greenlet() -> Any:
    """Return the greenlet in which SQLAlchemy runs the present call of an asynchronous engine."""
    return _getcurrent()()


@cache
def _getcurrent() -> Callable[[], Any]:
    from greenlet import getcurrent  # noqa: PLC0415 - SQLAlchemy imports it for asynchronous engines only

    return getcurrent  # type: ignore[no-any-return]  # the package is not typed


@contextmanager
def keep_has_events() -> Iterator[None]:
    """Restore ``_has_events``, the flag of engines whose statements have listeners.

    A listener for ``engine_disposed`` sets the flag, which slows down each statement. The listener works without it.
    """
    had_events = Engine._has_events
    yield
    Engine._has_events = had_events


def reset_has_events(dialect: Any) -> None:
    """Reset ``_has_events`` of a dialect from which the last listener was removed."""
    if not any(getattr(dialect.dispatch, name, ()) for name in DIALECT_EVENTS):
        dialect.__dict__.pop("_has_events", None)


def engine_behind(engine: Engine) -> Engine | None:
    """Return the engine from which ``execution_options`` has made this one; None if this one is an original."""
    return getattr(engine, "_proxied", None)


def creator_of(pool: Any) -> Any:
    """Return the function with which a pool connects, or None."""
    return getattr(pool, "_creator", None)


def open_connection(pool: Any, changes: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Open a DBAPI connection as a pool does, without the pool's knowledge.

    Args:
        pool: the pool.
        changes: return the arguments to change, given the keyword arguments. It is not called if a creator of the
            program connects, or if this release hides the arguments.
    """
    record, creator = _ConnectionRecord(pool, connect=False), pool._creator
    found = getclosurevars(creator).nonlocals if creator.__module__ == create_engine.__module__ else {}
    args, params = found.get("cargs_tup", found.get("cargs")), found.get("cparams")  # of 2 and of 1.4
    if args is None or params is None:
        return pool._invoke_creator(record)
    dialect, args, params = pool._dialect, [*args], {**params, **changes({**params})}
    for listener in dialect.dispatch.do_connect:
        conn = listener(dialect, record, args, params)
        if conn is not None:
            return conn
    return dialect.connect(*args, **params)


def greenlet_spawn(function: Callable[[], Any]) -> Any:
    """Return the coroutine that calls a function which awaits in SQLAlchemy's way."""
    from sqlalchemy.util.concurrency import greenlet_spawn  # noqa: PLC0415 - for asynchronous engines only

    return greenlet_spawn(function)


def dialect_of(pool: Any) -> Any:
    """Return the dialect of a pool."""
    return pool._dialect


def queue_state(pool: QueuePool) -> tuple[list[Record], int, int]:
    """Return the idle records of a pool, the maximum of its overflow (-1 for no limit), and its overflow.

    The public methods take the lock of the pool's queue, and count slots that have lost their connection as idle.
    """
    return _queued(pool._pool), pool._max_overflow, pool._overflow


def _queued(queue: Any) -> list[Record]:
    """Return the records in SQLAlchemy's own queue, or in its adapter of asyncio's, which creates that on first use."""
    if hasattr(queue, "queue"):
        return list(queue.queue)
    of_asyncio = vars(queue).get("_queue")
    return [] if of_asyncio is None else list(of_asyncio._queue)


def pool_records(pool: Any) -> list[Record]:
    """Return the records that a pool keeps: those in its queue, or its only one, or those of its threads."""
    own = vars(pool)
    if own.get("_pool") is not None:
        return _queued(own["_pool"])
    if isinstance(pool, SingletonThreadPool):
        return list(pool._all_conns)
    only = own.get("connection") or own.get("_conn")  # of a StaticPool, of an AssertionPool
    return [] if only is None else [only]


def driver_connection(conn: Any) -> Any:
    """Return the driver's connection behind SQLAlchemy's adapter of an asynchronous one."""
    return conn.driver_connection if isinstance(conn, AdaptedConnection) else conn


def record_of(fairy: Any) -> Record:
    """Return the record of a connection that is checked out."""
    return fairy._connection_record


def is_invalidated(record: Record) -> bool:
    """Return whether a record's connection was invalidated, or its whole pool since the connection was opened."""
    return bool(record._is_hard_or_soft_invalidated())
