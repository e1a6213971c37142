"""The slow path of a checkout: check an idle connection, or wait in the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver.error_text import describe
from otel_pgpool.errors import LONGEST_HOLDERS, PoolClosed, PoolTimeout, TooManyRequests, error_type, timeout_error
from otel_pgpool.pool.core import GONE, State
from otel_pgpool.pool.health import LOOKING, is_alive
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import class_of, printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.connection_pool import ConnectionPool

REFUSALS = {PoolTimeout: "timeout", PoolClosed: "closed", TooManyRequests: "too_many_requests"}
"""Values of ``error.type`` for the pool's own errors."""


def obtain(pool: ConnectionPool, checkout: Checkout, conn: connection | None, timeout: float) -> connection:
    """Acquire a connection: check the idle one that was taken, or wait in the queue, until one is handed over.

    Raises:
        PoolTimeout: no connection became available in time, or ``max_retries`` is reached.
        TooManyRequests: the queue is full.
        PoolClosed: the pool is closed.
    """
    deadline = checkout.started + timeout
    limit = max(deadline, checkout.started + LOOKING)
    try:
        while True:
            if conn is None:
                conn = queue(pool, checkout, deadline)
            if checkout.path is not None or is_alive(pool, checkout, conn, limit):
                break
            conn = None
            if pool._core.exhausted(checkout):
                raise _gave_up(pool, checkout)  # noqa: TRY301 - the handler below raises it again
            if monotonic() < limit:
                conn = pool._core.take(checkout, again=True)
        if pool._core.parked:
            pool._wake_maintenance()
    except BaseException:
        if conn is not None and hasattr(checkout, "lent") and checkout.slot.holds(conn):
            return_unused(pool, checkout, conn)
        raise
    return conn


def queue(pool: ConnectionPool, checkout: Checkout, deadline: float) -> connection:
    """Wait in the queue until a connection is handed over.

    Raises:
        PoolTimeout: no connection became available in time, or ``max_retries`` is reached.
        TooManyRequests: the queue is full.
        PoolClosed: the pool is closed.
    """
    core = pool._core
    if core.state is State.NEW:
        pool._begin()
    now = monotonic()
    if now >= deadline and core.state is State.OPEN:
        core.ask_to_grow(checkout)
        pool._connectors.kick()
        raise _timeout(pool, checkout, "no connection is idle")
    waiter = None
    try:
        waiter = core.join(checkout, now)
        if core.parked:
            pool._wake_maintenance()  # it watches for long holds, which this checkout may be waiting for
        if core.remaining < core.maxconn:
            pool._connectors.kick()
        pool._connectors.wait_for(waiter.lock, deadline)
        conn = waiter.conn or core.leave(checkout, waiter)
    except BaseException:
        conn = core.leave(checkout, waiter)
        if conn is not None:
            return_unused(pool, checkout, conn)
        raise
    if conn is not None:
        return conn
    if isinstance(waiter.error, PoolClosed):
        raise waiter.error
    if waiter.error is not None:
        raise _gave_up(pool, checkout)
    raise _timeout(pool, checkout, f"no connection within {deadline - checkout.started:.3g} s")


def fail(pool: ConnectionPool, checkout: Checkout, conn: connection | None, error: BaseException) -> None:
    """Record a failed checkout, once; a further call completes what an interrupt cut short in the first."""
    if hasattr(checkout, "ended"):
        return
    if conn is not None:
        return_unused(pool, checkout, conn)
    core = pool._core
    if not hasattr(checkout, "outcome"):
        checkout.released = monotonic()
        gave_up = core.exhausted(checkout)
        timed_out = isinstance(error, PoolTimeout) and not gave_up
        if gave_up and checkout.error is not None:
            checkout.fail(error_type(checkout.error), checkout.attempts[-1].message)
        else:
            own = REFUSALS.get(type(error))
            text = describe(pool._target, error) if own is None else printable(str(error), keep="\n")
            checkout.fail(own or error_type(error), text)
        checkout.outcome = "timeout" if timed_out else "error"
        core.count_failure(checkout.released - checkout.started, timed_out=timed_out)
    if pool._observer is not None:
        pool._tell(pool._observer.failed, checkout, error)
    checkout.ended = True


def return_unused(pool: ConnectionPool, checkout: Checkout, conn: connection) -> None:
    """Release a connection that was handed over but did not reach the caller."""
    core, now = pool._core, monotonic()
    verdict = core.put_back(checkout, conn, now) if checkout.path is None else core.release(checkout, conn, now)
    if verdict is not None and verdict is not GONE:
        checkout.slot.conn = conn
        pool._discard([checkout.slot], verdict, None, checkout)


def last_failure(pool: ConnectionPool) -> tuple[BaseException | None, str]:
    """Return why no connection can be opened: the last error, and its text, free of secrets."""
    lack, outage = pool._connectors.lack, pool._core.outage
    if outage is not None:
        return outage.error, outage.message or class_of(outage.error)
    return (None, "") if lack is None else (lack, f"no thread can be started: {printable(str(lack))}")


def _gave_up(pool: ConnectionPool, checkout: Checkout) -> PoolTimeout:
    return _timeout(pool, checkout, f"gave up after {checkout.retries} failed attempts")


def _timeout(pool: ConnectionPool, checkout: Checkout, reason: str) -> PoolTimeout:
    now = monotonic()
    holds = pool._core.holds_now()
    failure, text = last_failure(pool)
    if checkout.error is not None:
        failure, text = checkout.error, checkout.attempts[-1].message or class_of(checkout.error)
    error = timeout_error(
        reason,
        pool.stats(),
        waited=now - checkout.started,
        retries=checkout.retries,
        holders=[hold.holder(now) for hold in holds[:LONGEST_HOLDERS]],
        own_holds=sum(hold.thread is checkout.thread for hold in holds),
        last_failure=text,
    )
    error.__cause__ = failure
    return error
