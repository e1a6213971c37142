"""The ways in and out of a pool, one after the other, for whoever wants to disturb them."""


# which those who disturb would disturb too

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg2 import errors

from otel_pgpool import PoolError, PoolTimeout, TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool import ConnectionPool

BRIEFLY = 0.005
"""Seconds that a caller waits who will get nothing."""
PATIENCE = 2.0
"""Seconds within which what a way waits for has to come."""
TWINS = "create temp table twins (n int unique deferrable initially deferred); insert into twins values (1), (1)"
"""The second is refused at the commit, and the connection stays well."""


def use(conn: Any) -> None:
    """One statement."""
    with conn.cursor() as cursor:
        cursor.execute("select 1")


def block(pool: ConnectionPool) -> None:
    """Run a block that ends without an error."""
    with pool.connection() as conn:
        use(conn)


def failing_block(pool: ConnectionPool) -> None:
    """Run a block that raises."""
    with suppress(LookupError), pool.connection() as conn:
        use(conn)
        raise LookupError


def failing_commit(pool: ConnectionPool) -> None:
    """Run a block whose commit is refused."""
    with suppress(errors.UniqueViolation), pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute(TWINS)


def long_hold(pool: ConnectionPool) -> None:
    """Run a block that becomes a long hold."""
    with pool.connection():
        before = pool._parts.core.long_holds
        wait_until(lambda: pool._parts.core.long_holds > before)


def with_reset(pool: ConnectionPool) -> None:
    """Run a block, and a ``getconn``, in a pool with a ``reset``."""
    parts = pool._parts
    parts.reset = parts.releaser._reset = use
    try:
        block(pool)
        by_hand(pool)
    finally:
        parts.reset = parts.releaser._reset = None


def by_hand(pool: ConnectionPool) -> None:
    """Lent and given back by hand."""
    conn = pool.getconn()
    try:
        use(conn)
    finally:
        pool.putconn(conn)


def by_key(pool: ConnectionPool) -> None:
    """Lent twice and given back by a key, which keeps its connection: it is given back once more on an interrupt."""
    try:
        conn = pool.getconn("key")
        assert pool.getconn("key") is conn
        pool.putconn(key="key")
    except KeyboardInterrupt:
        with suppress(PoolError):
            pool.putconn(key="key")
        raise


def closing(pool: ConnectionPool) -> None:
    """Given back to be closed."""
    pool.putconn(pool.getconn(), close=True)


def queued(pool: ConnectionPool) -> None:
    """All connections are out, and come back while the caller waits."""
    with all_out(pool, until=lambda: len(pool._parts.core.queue) > 0):
        block(pool)


def timed_out(pool: ConnectionPool) -> None:
    """All connections are out, and the caller waits not at all, then not for long enough."""
    with all_out(pool):
        for timeout in (0.0, BRIEFLY):
            with suppress(PoolTimeout), pool.connection(timeout):
                pass


def refused(pool: ConnectionPool) -> None:
    """As many wait as may."""
    waiter = threading.Thread(target=block, args=(pool,))
    try:
        with all_out(pool):
            waiter.start()
            wait_until(lambda: len(pool._parts.core.queue) > 0)
            with suppress(TooManyRequests):
                block(pool)
    finally:
        waiter.join()


def after_deaths(pool: ConnectionPool) -> None:
    """All idle connections are dead, and have been idle for long enough to be looked at."""
    for slot in list(pool._parts.core.idle):
        if slot.conn is not None:
            with suppress(Exception), socket.socket(fileno=os.dup(slot.conn.fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)
    pass_time(pool)
    block(pool)


def after_a_lifetime(pool: ConnectionPool) -> None:
    """All idle connections are too old to be lent, then one to be kept."""
    for slot in list(pool._parts.core.idle):
        slot.expires = 0.0
    pass_time(pool)
    with pool.connection() as conn:
        slot = pool._parts.core.slots[id(conn)]
        slot.expires = slot.review_at = 0.0


def checking(pool: ConnectionPool) -> None:
    """Every idle connection is asked."""
    pool.check()


WAYS = (
    block,
    failing_block,
    failing_commit,
    long_hold,
    with_reset,
    by_hand,
    by_key,
    closing,
    queued,
    timed_out,
    refused,
    after_deaths,
    after_a_lifetime,
    checking,
)


def pass_time(pool: ConnectionPool) -> None:
    """Let all idle connections have been idle for a second."""
    for slot in list(pool._parts.core.idle):
        slot.seen -= 1
        slot.returned -= 1


def wait_until(come: Callable[[], bool]) -> None:
    """Wait for something, not for ever."""
    deadline = monotonic() + PATIENCE
    while not come() and monotonic() < deadline:
        time.sleep(0.001)


@contextmanager
def all_out(pool: ConnectionPool, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let another thread hold all connections until then, or until the block has ended, however it does."""
    out, gone = threading.Event(), threading.Event()

    def hold() -> None:
        lent = []
        try:
            lent += [pool.getconn() for _ in range(pool.maxconn)]
        finally:
            out.set()
            wait_until(lambda: until() or gone.is_set())
            while lent:
                pool.putconn(lent.pop())

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        out.wait()
        yield
    finally:
        gone.set()
        holder.join()
