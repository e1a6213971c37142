"""Errors of checkouts and returns of a stock pool, and connections that the pool closes at a return."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.pool import PoolError

from otel_pgpool.driver.session import BROKEN
from otel_pgpool.instrumentation.driver import closed_of
from otel_pgpool.instrumentation.lenient import lenient
from otel_pgpool.instrumentation.psycopg2_arguments import is_out
from otel_pgpool.instrumentation.turns import is_exhausted
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.pool.checkout import Loan, Slot


def end_request(ledger: Ledger, pool: Any, loan: Loan | None, given: Any, error: BaseException) -> None:
    """Handle an exception during a checkout: record the failure, or return a connection that an interrupt kept back."""
    if given is not None:
        return_unused(pool, given)
    if loan is not None and hasattr(loan, "heard") and not hasattr(loan, "released"):
        if not hasattr(loan, "started"):
            loan.started = monotonic()
        refuse(ledger, pool, loan, error)


def end_return(ledger: Ledger, pool: Any, conn: Any, loan: Loan, error: BaseException) -> None:
    """Handle an exception during a return: the pool refused or failed, or an interrupt hit."""
    if isinstance(error, psycopg2.Error):
        ledger.give_back(loan, "discarded", error)
    elif not goes_on(pool, conn, error):
        ledger.give_back(loan, "discarded" if closed_of(conn) else "released")


def return_unused(pool: Any, conn: Any) -> None:
    """Return a connection that was handed over but, due to an interrupt, did not reach the caller."""
    with suppress(Exception):  # the caller has to get the interrupt, not this error
        (pool.putconn if hasattr(pool, "putconn") else pool._putconn)(conn)


def refuse(ledger: Ledger, pool: Any, loan: Loan, error: BaseException) -> None:
    """Record that the pool handed over no connection."""
    refusal = None
    if is_exhausted(error):
        refusal = "timeout"
    elif isinstance(error, PoolError):
        with lenient:  # a subclass may have no such attribute
            refusal = "closed" if pool.closed else None
    ledger.refuse(loan, error, refusal)


def goes_on(pool: Any, conn: Any, error: BaseException) -> bool:
    """Return whether the connection is still checked out after a failed return: refused, or interrupted early.

    If the pool's own work on the connection failed, such as its rollback, the hold is over, although the stock pool
    counts the connection as used until it is returned once more.
    """
    return isinstance(error, PoolError) or (is_out(pool, conn) and not isinstance(error, psycopg2.Error))


def discard(ledger: Ledger, slot: Slot, was_closed: int, *, close: bool, loan: Loan | None = None) -> None:
    """Record that the pool closed a connection at its return: as requested, as dead, or as one too many."""
    if was_closed:
        reason = "broken" if was_closed == BROKEN else "returned_closed"
    else:
        reason = "returned_closed" if close else "idle"
    if loan is not None:
        ledger.give_back(loan, "released" if reason == "idle" else "discarded")
    held_again = slot.checkout not in (None, loan) or slot.key in ledger.quiet  # and closed by its next holder
    if ledger.slots.get(slot.key) is slot and not held_again:
        ledger.discard(slot, reason, None, loan)
