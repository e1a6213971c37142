"""Health checks of idle connections: the cheapest check first; one dead connection triggers a check of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.driver.error_text import describe, lean
from otel_pgpool.driver.session import PING_AFTER, is_readable, ping, readable
from otel_pgpool.errors import error_type
from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.pool.slot import NEVER
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_asynchronous

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.connection_pool import ConnectionPool
    from otel_pgpool.pool.slot import Slot

LOOKING = 0.1
"""Seconds that all checks within a checkout may take together, even if the checkout's timeout leaves less."""

LEAST_LOOK = 0.02

PATIENCE = 1.0
"""Seconds that a server behind a slow network may take to answer.

A check may take longer if a checkout has more time; half of the remaining time is kept for another connection.
"""


def is_alive(pool: ConnectionPool, checkout: Checkout, conn: connection, limit: float) -> bool:
    """Check a connection that was idle: accept it, or discard it together with every other dead one.

    Args:
        pool: the pool.
        checkout: the checkout that has taken the connection.
        conn: the connection.
        limit: when the check must end, as a reading of the clock in seconds.
    """
    core, slot, now = pool._core, checkout.slot, monotonic()
    if now >= slot.expires:
        core.withdraw(checkout)
        slot.conn = conn
        pool._discard([slot], "expired", None, checkout)
        return False
    try:
        _ask(pool, slot, conn, now, _bound(_first_half(limit, now), now))
    except BaseException as failure:
        asynchronous = is_asynchronous(failure)
        error = lean(failure)
        told = describe(pool._target, error) if pool._config.check == "auto" else ""
        reason = "broken" if pool._config.check == "auto" or conn.closed else "check_failed"
        dead: list[Slot] = []
        try:
            core.withdraw(checkout, Attempt(monotonic(), error_type(error), 0.0, told), error)
            slot.conn = conn
            if not asynchronous:
                dead = sweep(pool, limit)
        finally:
            pool._discard([slot, *dead], reason, error, checkout)
        if asynchronous:
            raise
        return False
    core.confirm(checkout, monotonic())
    return True


def _first_half(limit: float, now: float) -> float:
    return min(limit, max(now + PATIENCE, (now + limit) / 2))


def _bound(limit: float, now: float) -> float:
    return min(IO_DEADLINE, max(LEAST_LOOK, limit - now))


def _ask(pool: ConnectionPool, slot: Slot, conn: connection, now: float, bound: float) -> None:
    check = pool._config.check
    if check == "auto":
        if now - slot.seen > PING_AFTER or is_readable(conn):
            ping(conn, None, bound)
    elif check is not None:
        ping(conn, check, bound)


def sweep(pool: ConnectionPool, limit: float) -> list[Slot]:
    """Set aside every dead idle connection; keep those whose socket is readable only because of a notice."""
    core = pool._core
    return _dead(pool, core.inspect(readable(core.idle_slots())), limit)


def check_all(pool: ConnectionPool) -> None:
    """Check every idle connection with a query, one after the other, and discard those that do not answer."""
    for suspect in pool._core.idle_slots():
        pool._discard(_dead(pool, pool._core.inspect([suspect]), NEVER), "check_failed")


def _dead(pool: ConnectionPool, aside: list[Slot], limit: float) -> list[Slot]:
    """Check slots that were set aside; return those to be closed, and make the others available again."""
    dead = []
    try:
        while aside:
            slot = aside[-1]
            now = monotonic()
            if now > limit + LOOKING or not _answers(pool, slot, _bound(limit, now)):
                pool._core.reject(slot)
                dead.append(slot)
            elif (reason := pool._core.restore(slot, monotonic())) is not None:
                pool._discard([slot], reason)
            aside.pop()
    except BaseException:
        dead += [slot for slot in aside if pool._core.reject(slot) and slot not in dead]
        pool._discard(dead, "broken")
        raise
    return dead


def _answers(pool: ConnectionPool, slot: Slot, bound: float) -> bool:
    check = pool._config.check
    try:
        if slot.conn is None:
            return False
        ping(slot.conn, check if callable(check) else None, bound)
    except Exception as failure:  # whatever was raised, the connection must not be handed over
        if is_asynchronous(failure):
            raise
        return False
    return True
