"""The context manager of ``with pool.connection() as conn``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_pgpool.driver.session import IDLE, settings
from otel_pgpool.errors import PoolError
from otel_pgpool.pool.acquire import fail
from otel_pgpool.pool.checkout import Checkout
from otel_pgpool.pool.release import finish, rescue
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg2.extensions import connection

    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.connection_pool import ConnectionPool


class Block:
    """One checkout for a ``with`` block: commit on a clean exit, roll back on an exception, return the connection.

    A block can be entered again after it was left, but not while it is entered. It is on the hot path: it has no
    ``__init__``, and repeats the few lines of `begin` and `is_clean`, because each call costs 3 % of a checkout.
    """

    __slots__ = ("_checkout", "_conn", "_pool", "_stack", "_timeout")

    _pool: ConnectionPool
    _timeout: float | None
    _stack: Stack
    _checkout: Checkout | None
    _conn: connection | None

    def __enter__(self) -> connection:
        if not is_here:
            renew()
        pool = self._pool
        checkout = Checkout()
        if self._checkout is not None:
            raise PoolError(
                f"pool {pool.name!r}: this connection() is in use: call pool.connection() again for a second connection"
            )
        self._checkout = checkout  # no call between the test and this line, so that no other thread runs in between
        checkout.stack = self._stack
        checkout.thread = thread_cache.here.thread
        checkout.path = None
        checkout.started = monotonic()
        conn = None
        try:
            conn = pool._core.take(checkout) if pool._observer is None else None
            if checkout.path is None:
                conn = pool._check_out(checkout, self._timeout, conn)
            self._conn = conn
            return conn  # noqa: TRY300 - an interrupt may hit at this line too
        except BaseException as error:
            self._conn = self._checkout = None
            fail(pool, checkout, conn, error)
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            conn, checkout, pool = self._conn, self._checkout, self._pool
            if conn is None or checkout is None:
                raise PoolError(f"pool {pool.name!r}: this connection() is not in use")  # noqa: TRY301 - no line may stand before the `try`
            if not is_here:
                renew()
            if (
                exc is None
                and pool._reset is None
                and conn.get_transaction_status() == IDLE
                and settings(conn) == checkout.slot.baseline
            ):
                checkout.outcome = "committed"
                now = monotonic()
                verdict = pool._core.release(checkout, conn, now)
                if verdict is not None or pool._observer is not None:
                    pool._given_back(checkout, conn, now, verdict)
            else:
                finish(pool, checkout, conn, exc)
        except BaseException:
            if self._conn is not None and self._checkout is not None:
                rescue(self._pool, self._checkout, self._conn)
            raise
        finally:
            if self._conn is not None:
                self._conn = self._checkout = None


class LongBlock(Block):
    """A block with a hold threshold of its own, in place of the pool's ``long_hold``."""

    __slots__ = ("_expected_hold",)

    _expected_hold: float

    def __enter__(self) -> connection:
        conn = super().__enter__()
        try:
            if self._checkout is not None:
                self._pool._expect(self._checkout, self._expected_hold)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return conn
