"""Savepoints: the work of a block inside another one, which uses the same connection."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import errors

from otel_pgpool.driver.deadline import Deadline
from otel_pgpool.driver.session import ACTIVE, IDLE, IN_ERROR, execute, roll_back

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def begin(conn: connection, name: str) -> str | None:
    """Set a savepoint; return its name, or None if none is needed, because no transaction is in progress.

    Raises:
        psycopg2.Error: the transaction is in error, or the connection is closed.
    """
    if conn.get_transaction_status() == IDLE:
        return None
    execute(conn, f"SAVEPOINT {name}")
    return name


def keep(conn: connection, savepoint: str | None) -> bool:
    """Keep the work since `begin`; undo it if it has left the transaction in error, as the end of any block does.

    Returns:
        False if the transaction that was in progress at `begin` is not any more.

    Raises:
        psycopg2.Error: the connection is lost.
    """
    if conn.closed:  # which the end of the outermost block finds too
        return True
    status = conn.get_transaction_status()
    if status == IN_ERROR:
        return _undo(conn, savepoint)
    if savepoint is None or status == IDLE:
        return savepoint is None
    return _execute(conn, f"RELEASE SAVEPOINT {savepoint}")


def undo(conn: connection, savepoint: str | None) -> bool:
    """Undo the work since `begin`. If that fails, the transaction is in error, or the connection is lost.

    Returns:
        False if the transaction that was in progress at `begin` is not any more.
    """
    if conn.closed or (status := conn.get_transaction_status()) == ACTIVE:  # then it is discarded at its release
        return True
    if status == IDLE:
        return savepoint is None
    with suppress(psycopg2.Error):
        return _undo(conn, savepoint)
    return True


def _undo(conn: connection, savepoint: str | None) -> bool:
    with Deadline(conn):
        if savepoint is not None:
            return _execute(conn, f"ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")
        roll_back(conn)
    return True


def _execute(conn: connection, statement: str) -> bool:
    """Run a statement; return False if there is no such savepoint, after which the transaction is in error."""
    try:
        execute(conn, statement)
    except errors.InvalidSavepointSpecification:
        return False
    return True
