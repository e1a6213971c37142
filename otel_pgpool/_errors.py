"""What the pool raises. Each is a ``psycopg2.pool.PoolError``, so that existing ``except`` clauses hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

try:
    import psycopg2.pool
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "psycopg2":
        raise
    message = (
        "otel_pgpool needs psycopg2: install the extra 'binary' (pip install 'otel-pgpool[binary]'), "
        "or psycopg2 itself where you build it"
    )
    raise ModuleNotFoundError(message, name="psycopg2") from error

from otel_pgpool._texts import class_of, printable

if TYPE_CHECKING:
    from otel_pgpool._observer import Holder, PoolStats


_SQLSTATE = re.compile("[0-9A-Z]{5}")


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error of psycopg2's, None for any other."""
    state = error.pgcode if isinstance(error, psycopg2.Error) else None
    return state if state is not None and _SQLSTATE.fullmatch(state) else None  # a hostile server may send anything


def error_type(error: BaseException) -> str:
    """What telemetry calls an error: its SQLSTATE, or the name of its class."""
    return sqlstate(error) or class_of(error)


class PoolError(psycopg2.pool.PoolError):
    """The pool refused: a misuse, or one of the subclasses."""

    __module__ = "otel_pgpool"


class PoolClosed(PoolError):
    """The pool is closed, or was closed while the caller waited."""

    __module__ = "otel_pgpool"


class TooManyRequests(PoolError):
    """The queue already held ``max_waiting`` callers."""

    __module__ = "otel_pgpool"


class PoolTimeout(PoolError):
    """No connection could be had in time; the message says why.

    Attributes (times in seconds): ``waited``, ``retries``, ``holders`` (the longest first, as
    ``ConnectionPool.holders()`` gives them) and the levels of ``PoolStats`` at that moment: ``minconn``,
    ``maxconn``, ``size``, ``used``, ``idle``, ``connecting``, ``waiting``, ``utilization``, ``oldest_hold``.
    ``__cause__`` is the last error of a failed connect, where there was one.
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
    """Unpickle; psycopg2's own way drops the attributes."""
    return kind(message, **diagnosis)


LONGEST_HOLDERS = 5
"""How many holders a ``PoolTimeout`` and the links of a wait name."""


def timeout_error(
    reason: str,
    stats: PoolStats,
    *,
    waited: float,
    retries: int,
    holders: list[Holder],
    own_holds: int,
    last_failure: str = "",
) -> PoolTimeout:
    """Write the diagnosis of a checkout that failed: the pool's levels, and who holds the connections."""
    levels = f"{stats.used} of {stats.maxconn} in use, {stats.idle} idle, {stats.connecting} connecting"
    history = f"{stats.waiting} waiting; waited {waited:.3f} s, {retries} failed attempts"
    lines = [f"{reason} (pool {stats.name!r}: {levels}, {history})"]
    if last_failure:
        lines.append(f"the last attempt to connect failed: {last_failure}")
    if own_holds:
        lines.append(
            f"this thread itself holds {own_holds} of them: a nested checkout waits for its own caller to give back"
        )
    longest = tuple(holders[:LONGEST_HOLDERS])
    lines += [f"held {holder}" for holder in longest]
    text = "\n  ".join(map(printable, lines))
    return PoolTimeout(text, waited=waited, retries=retries, holders=longest, **stats.levels())
