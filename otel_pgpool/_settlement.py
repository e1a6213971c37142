"""The slow half of a return: a transaction to end, settings to restore, a connection that cannot stay."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_pgpool import _connection, _deadline
from otel_pgpool._clock import monotonic
from otel_pgpool._collector import is_collecting_here
from otel_pgpool._description import describe, lean
from otel_pgpool._errors import error_type
from otel_pgpool._guard import is_asynchronous

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool._checkout import Checkout
    from otel_pgpool._pool import ConnectionPool


def finish(pool: ConnectionPool, checkout: Checkout, conn: connection, exc: BaseException | None) -> None:
    """End a block.

    Raises:
        BaseException: what the commit raised, on a clean exit only.
    """
    if not pool._core.holds(checkout):
        pool._abandon(checkout)
        checkout.ended = True
        return
    checkout.outcome = "rolled_back"
    if exc is not None and is_collecting_here():
        pool._defer(checkout, conn)
        return
    try:
        if exc is None and _connection.commit(conn):
            checkout.outcome = "committed"
    except BaseException as failure:
        checkout.fail(error_type(failure), describe(pool._target, failure))
        settle(pool, checkout, conn, failure)
        raise
    if exc is None and pool._reset is None and _connection.is_clean(conn, checkout.slot):
        pool._give_back(checkout, conn)
    else:
        settle(pool, checkout, conn, exc)


def rescue(pool: ConnectionPool, checkout: Checkout, conn: connection, *, close: bool = False) -> None:
    """Do what an interrupt has left undone of a return; nothing, where a failed commit was all."""
    if hasattr(checkout, "lent"):
        if not hasattr(checkout, "outcome"):
            checkout.outcome = "rolled_back"
        settle(pool, checkout, conn, None, close=close)
    elif pool._observer is not None and not hasattr(checkout, "ended"):
        checkout.released = monotonic()
        pool._tell(pool._observer.released, checkout)


def settle(
    pool: ConnectionPool, checkout: Checkout, conn: connection, error: BaseException | None, *, close: bool = False
) -> None:
    """Leave the connection fit to be lent again and give it back, or discard it.

    It raises nothing but what comes from outside meanwhile: an interrupt, or what a signal handler raised.
    At the interpreter's end no thread could bound what the server is asked: the connection goes with everything else.
    """
    if sys.is_finalizing():
        pool._defer(checkout, conn, close=close)
        return
    reason: str | None = "reset_failed"
    cause: BaseException | None = None
    try:
        reason, cause = ("returned_closed", None) if close else _fitness(pool, checkout, conn, error)
    finally:
        if reason == "returned_closed" or (reason is not None and checkout.outcome != "committed"):
            checkout.outcome = "discarded"
            if cause is not None and cause is not error and checkout.error_type is None:
                checkout.fail(error_type(cause), describe(pool._target, cause))
        pool._give_back(checkout, conn, reason, cause)


def _fitness(
    pool: ConnectionPool, checkout: Checkout, conn: connection, error: BaseException | None
) -> tuple[str | None, BaseException | None]:
    """Why a returned connection cannot be lent again, if so, and the error that says it."""
    closed: int = conn.closed  # 2 where libpq ended it, whatever the stubs say
    if closed:
        return ("broken" if closed == _connection.BROKEN else "returned_closed"), error
    status = conn.get_transaction_status()
    if status == _connection.ACTIVE:  # cut now: between two statements of the other thread it would not look busy
        _deadline.sever(conn)
    if status in _connection.UNUSABLE or _connection.ended_session(error):
        return "broken", error
    refused = checkout.block and _connection.refused_writing(error, conn)
    try:
        _connection.tidy(conn, checkout.slot, pool._reset, pool._config.configure)
        if refused and _connection.is_read_only_server(conn):
            pool._discard(pool._core.drain("read_only"), "read_only", error, checkout)
    except BaseException as failure:
        if is_asynchronous(failure):
            raise
        return ("broken" if conn.closed else "reset_failed"), lean(failure)
    return None, None
