"""Whether an idle connection still lives: the cheapest question first, and one dead one questions them all."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from otel_pgpool._checkout import Attempt
from otel_pgpool._connection import PING_AFTER, is_readable, ping, readable
from otel_pgpool._deadline import IO_DEADLINE
from otel_pgpool._settlement import bare, error_type

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool._checkout import Checkout
    from otel_pgpool._pool import ConnectionPool
    from otel_pgpool._slot import Slot

LEAST_CHECK = 0.1
"""Seconds that a check is given even when the caller's timeout leaves less."""


def is_alive(pool: ConnectionPool, checkout: Checkout, conn: connection, deadline: float) -> bool:
    """Look at a connection that lay idle: hand it over, or discard it and every other dead one."""
    core, slot, now = pool._core, checkout.slot, monotonic()
    if now >= slot.expires:
        core.withdraw(checkout)
        slot.conn = conn
        pool._discard([slot], "expired", None, checkout)
        return False
    try:
        _ask(pool, slot, conn, now, min(IO_DEADLINE, max(LEAST_CHECK, deadline - now)))
    except BaseException as failure:
        error = bare(failure)
        core.withdraw(checkout, Attempt(monotonic(), error_type(error), 0.0), error)
        slot.conn = conn
        reason = "broken" if pool._config.check == "auto" or conn.closed else "check_failed"
        dead = sweep(pool) if isinstance(error, Exception) else []
        pool._discard([slot, *dead], reason, error, checkout)
        if not isinstance(error, Exception):
            raise
        return False
    core.confirm(checkout, monotonic())
    return True


def _ask(pool: ConnectionPool, slot: Slot, conn: connection, now: float, bound: float) -> None:
    check = pool._config.check
    if check == "auto":
        if now - slot.seen > PING_AFTER or is_readable(slot):
            ping(conn, None, bound)
    elif check is not None:
        ping(conn, check, bound)


def sweep(pool: ConnectionPool) -> list[Slot]:
    """Set aside every idle connection that has died; those whose socket only carries a notice stay."""
    core = pool._core
    return _dead(pool, core.inspect(readable(core.idle_slots())))


def check_all(pool: ConnectionPool) -> None:
    """Ask the server through every idle connection, one after the other, and discard those that do not answer."""
    for suspect in pool._core.idle_slots():
        pool._discard(_dead(pool, pool._core.inspect([suspect])), "check_failed")


def _dead(pool: ConnectionPool, aside: list[Slot]) -> list[Slot]:
    """Of those set aside, the ones that do not answer, to be closed; the others are offered again."""
    dead = []
    try:
        while aside:
            slot = aside[-1]
            if not _answers(pool, slot):
                pool._core.reject(slot)
                dead.append(slot)
            elif (reason := pool._core.restore(slot, monotonic())) is not None:
                pool._discard([slot], reason)
            aside.pop()
    except BaseException:
        for slot in aside:
            pool._core.reject(slot)
        pool._discard([*aside, *dead], "broken")
        raise
    return dead


def _answers(pool: ConnectionPool, slot: Slot) -> bool:
    check = pool._config.check
    try:
        if slot.conn is None:
            return False
        ping(slot.conn, check if callable(check) else None)
    except Exception:  # noqa: BLE001 - whatever it is, the connection cannot be lent
        return False
    return True
