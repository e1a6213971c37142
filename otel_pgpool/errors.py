"""Errors that the pool raises. Each is a ``psycopg2.pool.PoolError``, so existing ``except`` clauses still catch it.

This module also works without psycopg2, for the instrumentation of other drivers' pools.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.text import class_of

if TYPE_CHECKING:
    from psycopg2.pool import PoolError as DriverPoolError

    from otel_pgpool.stats import Holder
else:
    try:
        from psycopg2.pool import PoolError as DriverPoolError
    except ImportError:  # not installed: nobody can catch it
        DriverPoolError = Exception

_SQLSTATE = re.compile("[0-9A-Z]{5}")


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, or None if the error has none."""
    state: Any = None
    with suppress(Exception):  # an application's own class may raise anything
        state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)  # psycopg2; psycopg and asyncpg
        if state is None and type(error).__module__.startswith("pg8000."):
            state = error.args[0].get("C")  # type: ignore[union-attr]  # its errors hold the fields of the server's
    # A hostile server may send anything.
    return state if isinstance(state, str) and _SQLSTATE.fullmatch(state) else None


def error_type(error: BaseException) -> str:
    """Return the value of ``error.type`` in telemetry: the SQLSTATE of an error, or else the name of its class."""
    return sqlstate(error) or class_of(error)


class PoolError(DriverPoolError):
    """The base class of the pool's errors; raised itself when the pool is misused.

    Examples of a misuse: releasing a connection that is not checked out, or entering one ``connection()`` twice at a
    time. A subclass of ``psycopg2.pool.PoolError``, the error that psycopg2's own pools raise.
    """

    __module__ = "otel_pgpool"


class PoolClosed(PoolError):
    """Raised if the pool is closed, or was closed while the caller waited for a connection."""

    __module__ = "otel_pgpool"


class TooManyRequests(PoolError):
    """Raised if ``max_waiting`` callers already wait for a connection."""

    __module__ = "otel_pgpool"


class PoolTimeout(PoolError):
    """Raised if no connection became available in time; the message contains the pool's levels and its longest holds.

    The attributes are a snapshot of the pool at that moment. ``__cause__`` is the error of the last failed connect, or
    None. The error can be pickled, attributes included.

    Attributes:
        waited: seconds that the caller waited.
        retries: failed attempts during the wait: dead connections and failed connects.
        holders: up to five `Holder`, the longest hold first.
        minconn: the pool's ``minconn``.
        maxconn: the pool's ``maxconn``.
        size: connections that count against ``maxconn``, as in `PoolStats`.
        used: connections that are checked out.
        idle: connections that are idle.
        connecting: connections that are being opened.
        waiting: callers that wait for a connection.
        utilization: fraction of the connections that are in use, as in `PoolStats`.
        oldest_hold: age of the oldest hold in seconds, as in `PoolStats`.
    """

    __module__ = "otel_pgpool"

    waited: float
    retries: int
    holders: tuple[Holder, ...]
    minconn: int
    maxconn: int
    size: int
    used: int
    idle: int
    connecting: int
    waiting: int
    utilization: float
    oldest_hold: float

    def __init__(self, message: str = "", **diagnosis: Any) -> None:
        super().__init__(message)
        self.__dict__.update(diagnosis)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.__dict__)


def _rebuild(kind: type[PoolTimeout], message: str, diagnosis: dict[str, Any]) -> PoolTimeout:
    """Rebuild a pickled error with its attributes, which ``psycopg2.Error.__reduce__`` would lose."""
    return kind(message, **diagnosis)


class ConnectionFailed(PoolTimeout):
    """Raised if a checkout gave up after ``max_attempts`` failed attempts, before its timeout.

    ``__cause__`` is the error of the last failed attempt. A `PoolTimeout`, so that code that catches one catches both.
    """

    __module__ = "otel_pgpool"


LONGEST_HOLDERS = 5
"""Maximum number of holders in a ``PoolTimeout``, and of links from a queued checkout to the holds it waited for."""
