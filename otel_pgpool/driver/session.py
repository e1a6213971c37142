"""Operations on psycopg2 connections: check them, end their transactions, restore their settings, close them."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from otel_pgpool.driver.deadline import IO_DEADLINE, Deadline, NoAnswer, shutdown_socket
from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.refusal_texts import refuses
from otel_pgpool.errors import PoolError, sqlstate
from otel_pgpool.runtime.failures import is_external

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

PING_AFTER = 30.0
"""Seconds of idleness after which a connection is checked by a query, as a silent socket may be cut or frozen."""

READY = extensions.STATUS_READY
IDLE = extensions.TRANSACTION_STATUS_IDLE
ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE
IN_ERROR = extensions.TRANSACTION_STATUS_INERROR
UNKNOWN = extensions.TRANSACTION_STATUS_UNKNOWN
UNUSABLE = (ACTIVE, UNKNOWN)
"""States in which no transaction can be ended: another thread or a COPY uses the connection, or the session is gone."""
BROKEN = 2
"""Value of ``connection.closed`` if libpq, and not the application, has closed the connection."""

READ_ONLY_SQLSTATE = "25006"
SESSION_ENDED = ("57P01", "57P02", "57P03")
CONNECTION_EXCEPTION = "08"


LEVELS = ("isolation_level", "readonly", "deferrable")
settings = attrgetter("status", "autocommit", *LEVELS)
"""The session settings of psycopg2 that a holder may change, and whether a transaction was begun."""


def is_clean(conn: connection, baseline: tuple[Any, ...]) -> bool:
    """Return whether the connection is open, in no transaction, and has the settings of its hand-over."""
    return conn.get_transaction_status() == IDLE and settings(conn) == baseline


# Liveness


def is_readable(conn: connection) -> bool:
    """Return whether the server has sent something, an end or a notice, to an idle connection. Takes 1 us.

    The result is also True if that cannot be determined: for a closed connection, or on a platform without ``poll``.
    Each call creates a poll object, because two threads must not use the same one.
    """
    try:
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (psycopg2.Error, AttributeError, OSError, ValueError):
        return True


def ping(conn: connection, check: Callable[[connection], object] | None, seconds: float = IO_DEADLINE) -> None:
    """Check a connection by a query, for at most ``seconds``.

    Args:
        conn: an idle connection.
        check: the application's own check, which raises for a bad connection; None for ``SELECT 1``.
        seconds: time limit of the check.

    Raises:
        NoAnswer: the server did not answer in time.
        Exception: the connection cannot be used; the error is psycopg2's or that of ``check``.
    """
    with Deadline(conn, seconds) as deadline:
        try:
            if check is not None:
                check(conn)
                roll_back(conn)
            else:
                execute_alone(conn, "SELECT 1")
        except Exception as failure:
            if not deadline.expired or is_external(failure):
                raise
    if deadline.expired:
        raise NoAnswer.within(seconds)
    if conn.closed:
        raise psycopg2.OperationalError("the connection was closed during its check")


def check(conn: connection) -> None:
    """Check a connection by a query; outside of a transaction, the query begins none.

    Raises:
        psycopg2.Error: the connection does not work.
    """
    if conn.status == READY:
        execute_alone(conn, "SELECT 1")
    else:
        execute(conn, "SELECT 1")


def execute(conn: connection, statement: str) -> Any:
    """Run one of the pool's own statements; return its first row, if there is one.

    psycopg2's plain cursor class is used, to bypass the application's cursor factory and instrumentation.
    """
    with extensions.cursor(unwrapped(conn)) as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def execute_alone(conn: connection, statement: str) -> None:
    """Run one of the pool's own statements on an idle connection, outside of any transaction."""
    if conn.autocommit:
        execute(conn, statement)
        return
    conn.autocommit = True  # local to psycopg2: saves the BEGIN and the ROLLBACK
    try:
        execute(conn, statement)
    finally:
        if not conn.closed:
            conn.autocommit = False


# Ending a transaction


def commit(conn: connection) -> bool:
    """Commit a block's work, unless the connection is in autocommit or the application has closed it.

    Returns:
        False if the work is lost although nothing was raised: the transaction was in error, so that the server rolled
        it back, which psycopg2's ``commit`` does not report; or it was begun by a statement in autocommit and never
        committed.

    Raises:
        psycopg2.Error: the commit failed, or the connection was lost before.
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


def configure(conn: connection, prepare: Callable[[connection], object]) -> None:
    """Call the application's ``configure`` with a connection, and commit, so that a ``SET`` persists.

    Raises:
        Exception: ``prepare`` or the commit failed, or the server did not answer in time.
    """
    with Deadline(conn) as deadline:
        try:
            prepare(conn)
            _commit_work(conn, "configure")
        except psycopg2.Error:
            if not deadline.expired:
                raise
    if deadline.expired:
        raise psycopg2.OperationalError(f"configure was cut after {IO_DEADLINE:g} s without an answer")


def restore(
    conn: connection,
    baseline: tuple[Any, ...],
    origin: tuple[Any, ...],
    reset: Callable[[connection], object] | None,
    prepare: Callable[[connection], object] | None,
) -> tuple[Any, ...]:
    """Restore a released connection: end its transaction, restore the settings of ``configure``, call ``reset``.

    ``configure`` runs again after ``reset``, which may have undone its work, such as a role or a tenant.

    Args:
        conn: the connection.
        baseline: psycopg2's settings after ``configure``.
        origin: psycopg2's settings before ``configure``.
        reset: the application's ``reset``.
        prepare: the application's ``configure``.

    Returns:
        The settings after ``configure``, which the next release restores.

    Raises:
        NoAnswer: the server did not answer in time.
        Exception: the connection cannot be used again.
    """
    with Deadline(conn) as deadline:
        try:
            roll_back(conn)
            if settings(conn) != baseline:
                _restore_settings(conn, baseline)
            if reset is not None:
                reset(conn)
                _commit_work(conn, "reset")
                _restore_settings(conn, origin)
        except Exception as failure:
            if not deadline.expired or is_external(failure):
                raise
    if deadline.expired:
        raise NoAnswer.within(IO_DEADLINE)
    if reset is not None and prepare is not None:
        configure(conn, prepare)
        baseline = settings(conn)
    if not is_clean(conn, baseline):
        raise psycopg2.OperationalError("the connection could not be reset")
    return baseline


def _commit_work(conn: connection, option: str) -> None:
    """Commit the work of ``configure`` or ``reset``, because a rollback would undo a ``SET`` or ``RESET``."""
    if conn.get_transaction_status() == IN_ERROR:
        raise PoolError(f"{option} left a transaction in error, so its work cannot be committed")
    if conn.status != READY:
        conn.commit()
    if conn.get_transaction_status() != IDLE:  # begun by a statement that psycopg2 did not notice
        execute(conn, "COMMIT")


def roll_back(conn: connection) -> None:
    """Roll back any transaction.

    Raises:
        PoolError: a two-phase transaction is prepared, which only its coordinator may end.
        psycopg2.Error: the rollback failed.
    """
    if conn.status == extensions.STATUS_PREPARED:
        raise PoolError("a two-phase transaction was left prepared: it is kept, and its connection is closed")
    if conn.status != READY:
        try:
            conn.rollback()
        except psycopg2.ProgrammingError:  # the only sign of a two-phase transaction
            conn.tpc_rollback()
    if conn.get_transaction_status() != IDLE:  # begun by a statement that psycopg2 did not notice
        execute(conn, "ROLLBACK")


def _restore_settings(conn: connection, baseline: tuple[Any, ...]) -> None:
    """Restore the session settings; set as few as possible, because in autocommit psycopg2 sends one statement each."""
    _status, autocommit, *levels = baseline
    wanted: dict[str, Any] = {
        key: "default" if level is None else level
        for key, level in zip(LEVELS, levels, strict=True)
        if level is not None or getattr(conn, key) is not None
    }
    conn.set_session(**wanted, autocommit=autocommit)


# The meaning of errors for the connection and the server


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a psycopg2 error; an error of another driver says nothing about this connection."""
    return sqlstate(error) if isinstance(error, psycopg2.Error) else None


def is_refusal(error: BaseException | None) -> bool:
    """Return whether the server is up and refused this connection, as for a wrong password or an unknown database.

    An answer of a server that is starting, stopping or out of slots is not a refusal, because the server is not
    available.
    """
    return isinstance(error, psycopg2.Error) and refuses(error)


def ended_session(error: BaseException | None) -> bool:
    """Return whether the SQLSTATE means that the session has ended: class 08, or a shutdown of the server."""
    state = sqlstate_of(error) or ""
    return state.startswith(CONNECTION_EXCEPTION) or state in SESSION_ENDED


def refused_writing(error: BaseException | None, conn: connection) -> bool:
    """Return whether a write failed on a read-only transaction that was not requested through psycopg2."""
    return sqlstate_of(error) == READ_ONLY_SQLSTATE and not conn.closed and not conn.readonly


def is_read_only_server(conn: connection) -> bool:
    """Return whether transactions are read-only for a reason other than the session's settings: a demoted primary."""
    with Deadline(conn):
        row = execute(
            conn,
            "SELECT current_setting('transaction_read_only') = 'on' AND source <> 'session' "
            "FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'",
        )
        roll_back(conn)
    return bool(row and row[0])


# Closing


def close_inherited(conn: connection) -> None:
    """Close the socket of a connection that a parent process has opened, without a message to the server."""
    with suppress(psycopg2.Error, OSError):  # psycopg2 does not close a socket that another process opened
        os.close(conn.fileno())


def close(conn: connection) -> None:
    """Close a connection, even if it is in use, within the time limit."""
    with Deadline(conn):
        try:
            if conn.get_transaction_status() == ACTIVE:
                shutdown_socket(conn)
            conn.close()
        except Exception as failure:  # a subclass of the user's may raise anything
            if is_external(failure):
                raise
