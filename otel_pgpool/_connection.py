"""What the pool does with psycopg2 connections: look whether they live, settle their transactions, close them."""

from __future__ import annotations

import select
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from otel_pgpool._deadline import IO_DEADLINE, Deadline, sever
from otel_pgpool._errors import PoolError, sqlstate
from otel_pgpool._guard import is_asynchronous
from otel_pgpool._proxy import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg2.extensions import connection

    from otel_pgpool._slot import Slot

PING_AFTER = 30.0
"""Seconds of idleness after which a connection is asked, even if its socket is silent: it may be cut or frozen."""

READY = extensions.STATUS_READY
IDLE = extensions.TRANSACTION_STATUS_IDLE
ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE
IN_ERROR = extensions.TRANSACTION_STATUS_INERROR
UNKNOWN = extensions.TRANSACTION_STATUS_UNKNOWN
UNUSABLE = (ACTIVE, UNKNOWN)
"""States in which no transaction can be ended: another thread, or a COPY, is at work, or the session is gone."""
BROKEN = 2
"""``connection.closed`` of one that libpq, and not the program, ended."""

READ_ONLY_SQLSTATE = "25006"
SESSION_ENDED = ("57P01", "57P02", "57P03")
CONNECTION_EXCEPTION = "08"


LEVELS = ("isolation_level", "readonly", "deferrable")
settings = attrgetter("status", "autocommit", *LEVELS)
"""The session settings that psycopg2 keeps and a borrower may have changed, and whether it began a transaction."""


def is_clean(conn: connection, slot: Slot) -> bool:
    """Whether the connection is open, outside any transaction, and set as it was lent."""
    return conn.get_transaction_status() == IDLE and settings(conn) == slot.baseline


# Liveness


def is_readable(conn: connection) -> bool:
    """Whether the server has sent something to an idle connection: its end, or a notice. 1 us, no round trip.

    True also where that cannot be told: on a closed connection, or a platform without ``poll``. Each call has a poll
    object of its own, as one must not be used by two threads at once.
    """
    try:
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (psycopg2.Error, AttributeError, OSError, ValueError):
        return True


def readable(suspects: Iterable[tuple[Slot, float]]) -> list[tuple[Slot, float]]:
    """Those of the idle of which `is_readable` holds."""
    return [(slot, since) for slot, since in suspects if (conn := slot.conn) is not None and is_readable(conn)]


def ping(conn: connection, check: Callable[[connection], object] | None, seconds: float = IO_DEADLINE) -> None:
    """Ask the server, for at most ``seconds``.

    Args:
        conn: an idle connection.
        check: the user's own question, which raises on a bad connection; None for ``SELECT 1``.
        seconds: the bound.

    Raises:
        Exception: the connection is not usable; whatever psycopg2 or ``check`` raised.
    """
    with Deadline(conn, seconds) as deadline:
        if check is not None:
            check(conn)
            roll_back(conn)
        elif conn.autocommit:
            execute(conn, "SELECT 1")
        else:
            conn.autocommit = True  # local to psycopg2: saves the BEGIN and the ROLLBACK
            try:
                execute(conn, "SELECT 1")
            finally:
                if not conn.closed:
                    conn.autocommit = False
    if deadline.expired or conn.closed:
        raise psycopg2.OperationalError(f"the connection did not answer within {seconds:.3g} s")


def execute(conn: connection, statement: str) -> Any:
    """Run one statement of ours; its first row, if it gives one.

    The plain cursor class passes by the program's cursor factory and by whatever traces it.
    """
    with extensions.cursor(unwrapped(conn)) as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


# Settling a transaction


def commit(conn: connection) -> bool:
    """Commit what a block did, unless the connection is in autocommit or the program closed it.

    Returns:
        False if the work is lost all the same: the transaction was in error, so that the server rolled it back, as
        psycopg2's own ``commit`` lets it; or it was begun by hand in autocommit, and never committed.

    Raises:
        psycopg2.Error: the commit failed, or the connection died before it.
    """
    closed: int = conn.closed
    if closed and closed != BROKEN:
        return True
    status = conn.get_transaction_status()
    if conn.autocommit:
        return status in (IDLE, UNKNOWN)
    if conn.status != READY or status not in (IDLE, UNKNOWN):
        conn.commit()
    return status != IN_ERROR


def configure(conn: connection, work: Callable[[connection], object]) -> None:
    """Let the user make a connection ready, and commit it, so that a ``SET`` holds.

    Raises:
        Exception: what ``work`` or the commit raised; the server did not answer in time.
    """
    with Deadline(conn) as deadline:
        try:
            work(conn)
            _commit_work(conn, "configure")
        except psycopg2.Error:
            if not deadline.expired:
                raise
    if deadline.expired:
        raise psycopg2.OperationalError(f"configure was cut after {IO_DEADLINE:g} s without an answer")


def tidy(
    conn: connection,
    slot: Slot,
    reset: Callable[[connection], object] | None,
    work: Callable[[connection], object] | None,
) -> None:
    """Leave a returned connection as it was lent: no transaction, the settings of ``configure``, the user's reset.

    ``configure`` runs again after a reset: whether that undid it, a role or a tenant perhaps, cannot be told.

    Raises:
        Exception: it cannot be used again.
    """
    with Deadline(conn) as deadline:
        roll_back(conn)
        if settings(conn) != slot.baseline:
            _restore(conn, slot.baseline)
        if reset is not None:
            reset(conn)
            _commit_work(conn, "reset")
            _restore(conn, slot.origin)
    if reset is not None and work is not None and not deadline.expired:
        configure(conn, work)
        slot.baseline = settings(conn)
    if deadline.expired or not is_clean(conn, slot):
        raise psycopg2.OperationalError("the connection could not be reset")


def _commit_work(conn: connection, option: str) -> None:
    """Commit what the user's ``configure`` or ``reset`` did: rolled back, a ``SET`` or ``RESET`` would be gone."""
    if conn.get_transaction_status() == IN_ERROR:
        raise PoolError(f"{option} left a transaction in error, so its work cannot be committed")
    if conn.status != READY:
        conn.commit()
    if conn.get_transaction_status() != IDLE:  # begun behind psycopg2's back
        execute(conn, "COMMIT")


def roll_back(conn: connection) -> None:
    """End any transaction without its work.

    Raises:
        PoolError: it is prepared for two-phase commit: only who coordinates it may end it.
        psycopg2.Error: the server did not do it.
    """
    if conn.status == extensions.STATUS_PREPARED:
        raise PoolError("a two-phase transaction was left prepared: it stays so, and its connection goes")
    if conn.status != READY:
        try:
            conn.rollback()
        except psycopg2.ProgrammingError:  # nothing else tells that it is one of two phases
            conn.tpc_rollback()
    if conn.get_transaction_status() != IDLE:  # begun behind psycopg2's back
        execute(conn, "ROLLBACK")


def _restore(conn: connection, baseline: tuple[Any, ...]) -> None:
    """Set the session as ``baseline`` says; in autocommit each level costs psycopg2 a statement, hence the fewest."""
    _status, autocommit, *levels = baseline
    wanted: dict[str, Any] = {
        key: "default" if level is None else level
        for key, level in zip(LEVELS, levels, strict=True)
        if level is not None or getattr(conn, key) is not None
    }
    conn.set_session(**wanted, autocommit=autocommit)


# What an error says about the connection and the server


def ended_session(error: BaseException | None) -> bool:
    """Whether the SQLSTATE says that the session is over: class 08, or a shutdown of the server."""
    state = sqlstate(error) or ""
    return state.startswith(CONNECTION_EXCEPTION) or state in SESSION_ENDED


def refused_writing(error: BaseException | None, conn: connection) -> bool:
    """Whether a write failed on a read-only transaction that the borrower had not asked for through psycopg2."""
    return sqlstate(error) == READ_ONLY_SQLSTATE and not conn.closed and not conn.readonly


def is_read_only_server(conn: connection) -> bool:
    """Whether transactions are read-only for another reason than this session's own settings: a demoted primary."""
    with Deadline(conn):
        row = execute(
            conn,
            "SELECT current_setting('transaction_read_only') = 'on' AND source <> 'session' "
            "FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'",
        )
        roll_back(conn)
    return bool(row and row[0])


# Closing


def close(conn: connection) -> None:
    """Close it, whatever it is doing, within the deadline."""
    if conn.get_transaction_status() == ACTIVE:
        sever(conn)
    with Deadline(conn):
        try:
            conn.close()
        except Exception as failure:  # a subclass of the user's may raise anything
            if is_asynchronous(failure):
                raise
