"""The slow path of a return: end the transaction, restore the settings, or discard the connection."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_pgpool.driver import deadline as _deadline
from otel_pgpool.driver import session as _connection
from otel_pgpool.driver.error_text import describe, lean
from otel_pgpool.errors import error_type
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_asynchronous
from otel_pgpool.runtime.gc_state import is_collecting_here

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.connection_pool import ConnectionPool


def finish(pool: ConnectionPool, checkout: Checkout, conn: connection, exc: BaseException | None) -> None:
    """End a ``with`` block: commit or roll back, and release the connection.

    Raises:
        BaseException: the commit failed, after a clean exit of the block.
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
    """Complete a return that an interrupt cut short; do nothing if only the commit failed."""
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
    """Reset the connection and release it, or discard it if it cannot be used again.

    Only exceptions that are raised into this thread from outside pass through: an interrupt, or what a signal handler
    raised. While the interpreter is finalizing no thread can be started to bound the calls to the server, so that the
    connection is not returned.
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
    """Reset a returned connection; return why it cannot be used again, or None, and the error that shows it."""
    closed: int = conn.closed  # 2 if libpq closed it; the type stubs say bool
    if closed:
        return ("broken" if closed == _connection.BROKEN else "returned_closed"), error
    status = conn.get_transaction_status()
    if (
        status == _connection.ACTIVE
    ):  # another thread uses it; cut it now, since between two statements it would look idle
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
