"""The context manager of ``with pool.connection() as conn``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic

from otel_pgpool.config import validate_expected_hold
from otel_pgpool.driver.session import IDLE, settings
from otel_pgpool.errors import PoolError
from otel_pgpool.pool.checkout import Checkout
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.types import Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg2.extensions import connection
    from typing_extensions import Self, TypeVar

    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.parts import Parts
    from otel_pgpool.types import OutcomeName

    ConnectionT_co = TypeVar("ConnectionT_co", bound=connection, default=connection, covariant=True)
else:
    from typing import TypeVar

    ConnectionT_co = TypeVar("ConnectionT_co", covariant=True)  # without the default, which Python 3.13 has first

COMMITTED: OutcomeName = Outcome.COMMITTED.value


def in_use(parts: Parts) -> PoolError:
    """Return the error of a context that is entered inside itself."""
    return PoolError(
        f"pool {parts.core.name!r}: this connection() is in use: call pool.connection() again for a second connection"
    )


class CheckoutContext(Generic[ConnectionT_co]):
    """One checkout for a ``with`` block: commit on a clean exit, roll back on an exception, release the connection.

    A context can be entered again after it was left, but not while it is entered. It is on the hot path: it has no
    ``__init__``, so that ``ConnectionPool.connection`` sets the attributes, and it repeats the few lines of `begin` and
    `is_clean`, because each call costs 3 % of a checkout.
    """

    __slots__ = ("checkout", "conn", "owner", "parts", "stack", "timeout")

    owner: object
    """The pool, which its contexts keep alive."""
    parts: Parts
    timeout: float | None
    stack: Stack
    checkout: Checkout | None
    conn: connection | None

    def __enter__(self) -> ConnectionT_co:
        if not is_here:
            renew()
        parts = self.parts
        checkout = Checkout()
        checkout.stack = self.stack
        checkout.thread = thread_cache.here.thread
        checkout.path = conn = None
        checkout.started = monotonic()
        if self.checkout is not None:
            raise in_use(parts)
        try:
            self.checkout = checkout  # no call between the test and this line, so that no other thread runs in between
            conn = parts.core.try_acquire_idle(checkout) if parts.observer is None else None
            if checkout.path is None:
                conn = parts.acquirer.acquire(checkout, self.timeout, conn)
            self.conn = conn
            return conn  # type: ignore[return-value]  # noqa: TRY300 - made by `connection_factory`; an interrupt may hit here
        except BaseException as error:
            self.conn = self.checkout = None
            parts.acquirer.record_failure(checkout, conn, error)
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            conn, checkout, parts = self.conn, self.checkout, self.parts
            if conn is None or checkout is None:
                raise PoolError(f"pool {parts.core.name!r}: this connection() is not in use")  # noqa: TRY301 - no line may stand before the `try`
            if not is_here:
                renew()
            if (
                exc is None
                and parts.reset is None
                and conn.get_transaction_status() == IDLE
                and settings(conn) == checkout.slot.baseline
            ):
                checkout.outcome = COMMITTED
                now = monotonic()
                verdict = parts.core.release(checkout, conn, now)
                if verdict is not None or parts.observer is not None:
                    parts.releaser.complete(checkout, conn, now, verdict)
            else:
                parts.releaser.end_block(checkout, conn, exc)
        except BaseException:
            if self.conn is not None and self.checkout is not None:
                self.parts.releaser.finish_interrupted(self.checkout, self.conn)
            raise
        finally:
            if self.conn is not None:
                self.conn = self.checkout = None


class LongCheckoutContext(CheckoutContext[ConnectionT_co]):
    """A context with a hold threshold of its own, in place of the pool's ``long_hold``."""

    __slots__ = ("expected_hold",)

    expected_hold: float

    @classmethod
    def expecting(cls, hold: object) -> Self:
        """Return a context whose hold may last ``hold`` seconds.

        Raises:
            ValueError: ``hold`` is neither a number above 0 nor None.
        """
        context = cls()
        context.expected_hold = validate_expected_hold(hold)
        return context

    def __enter__(self) -> ConnectionT_co:
        """Do as `CheckoutContext` does, with a record that has its threshold before the hand-over."""
        if not is_here:
            renew()
        parts = self.parts
        if self.checkout is not None:
            raise in_use(parts)
        checkout = Checkout()
        checkout.stack = self.stack
        checkout.thread = thread_cache.here.thread
        checkout.path = None
        checkout.expected_hold = self.expected_hold
        checkout.started = monotonic()
        try:
            self.checkout = checkout
            self.conn = parts.acquirer.acquire(checkout, self.timeout)
            parts.expect_hold(checkout)
            return self.conn  # type: ignore[return-value]  # noqa: TRY300 - as in `CheckoutContext.__enter__`
        except BaseException as error:
            if self.conn is None:
                self.checkout = None
                parts.acquirer.record_failure(checkout, None, error)
            else:
                self.__exit__(*sys.exc_info())
            raise
