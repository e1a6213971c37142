"""The release of a connection: end the transaction, reset the session, then keep the connection or discard it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_pgpool.driver import session
from otel_pgpool.driver.deadline import shutdown_socket
from otel_pgpool.driver.error_text import describe, without_traceback
from otel_pgpool.driver.evict_rule import EvictRule
from otel_pgpool.driver.trace_name import restore
from otel_pgpool.errors import error_type
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.core import NOT_HELD
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_external
from otel_pgpool.runtime.gc_state import is_collecting_here
from otel_pgpool.runtime.wakeup import Deferred
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.discard import Discarder
    from otel_pgpool.types import OutcomeName

COMMITTED: OutcomeName = Outcome.COMMITTED.value
ROLLED_BACK: OutcomeName = Outcome.ROLLED_BACK.value
RELEASED: OutcomeName = Outcome.RELEASED.value
DISCARDED: OutcomeName = Outcome.DISCARDED.value


class Releaser(Part):
    """Releases connections."""

    def __init__(self, common: Common, discarder: Discarder) -> None:
        super().__init__(common)
        self._reset = common.config.reset
        self._evict_rule = EvictRule(common.config.evict_on)
        self._discarder = discarder
        # Releases left to the maintenance thread, because the garbage collector was running in their thread, or the
        # interpreter was finalizing. The third value is True if the connection has to be closed.
        self._deferred: Deferred[tuple[Checkout, connection, bool]] = Deferred(self._maintenance_thread.wakeup)

    def end_block(self, checkout: Checkout, conn: connection, exc: BaseException | None) -> None:
        """End a ``with`` block: commit or roll back, and release the connection.

        Raises:
            BaseException: the commit failed, after a clean exit of the block.
        """
        if not self._core.holds(checkout):
            self._abandon(checkout)
            return
        checkout.outcome = ROLLED_BACK
        if exc is not None and is_collecting_here():
            self._deferred.append((checkout, conn, False))
            return
        try:
            if exc is None and session.commit(conn):
                checkout.outcome = COMMITTED
        except BaseException as failure:
            checkout.fail(error_type(failure), describe(self._target, failure))
            self.reset_and_release(checkout, conn, failure)
            raise
        if exc is None and self._reset is None and session.is_clean(conn, checkout.slot.baseline):
            self._release(checkout, conn)
        else:
            self.reset_and_release(checkout, conn, exc)

    def release_by_hand(self, checkout: Checkout, conn: connection, *, close: bool) -> None:
        """Release the connection of a ``putconn``, or close it."""
        try:
            checkout.outcome = RELEASED
            if is_collecting_here():
                self._deferred.append((checkout, conn, close))
            elif not close and self._reset is None and session.is_clean(conn, checkout.slot.baseline):
                self._release(checkout, conn)
            else:
                self.reset_and_release(checkout, conn, None, close=close)
        except BaseException:
            self.finish_interrupted(checkout, conn, close=close)
            raise

    def finish_interrupted(self, checkout: Checkout, conn: connection, *, close: bool = False) -> None:
        """Complete a release that an interrupt cut short; do nothing if only the commit failed."""
        if checkout.is_held:
            if not checkout.has_outcome:
                checkout.outcome = ROLLED_BACK
            self.reset_and_release(checkout, conn, None, close=close)
        elif self._notifier.observer is not None and not checkout.is_reported:
            checkout.released = monotonic()
            self._notifier.notify(self._notifier.observer.released, checkout)

    def reset_and_release(
        self, checkout: Checkout, conn: connection, error: BaseException | None, *, close: bool = False
    ) -> None:
        """Reset the session and release the connection, or discard it if it cannot be used again.

        The only exceptions that pass through are raised into this thread from outside: by an interrupt or a signal
        handler. While the interpreter is finalizing, the connection is not released, because no thread can be started
        to bound the calls to the server.
        """
        if sys.is_finalizing():
            self._deferred.append((checkout, conn, close))
            return
        reason: DiscardReason | None = DiscardReason.RESET_FAILED
        cause: BaseException | None = None
        try:
            reason, cause = (
                (DiscardReason.RETURNED_CLOSED, None) if close else self._reset_or_reason(checkout, conn, error)
            )
        finally:
            is_closed = reason is DiscardReason.RETURNED_CLOSED
            if is_closed or (reason is not None and checkout.outcome != COMMITTED):
                checkout.outcome = DISCARDED
                if cause is not None and cause is not error and checkout.error_type is None:
                    checkout.fail(error_type(cause), describe(self._target, cause))
            self._release(checkout, conn, reason, cause)

    def _reset_or_reason(
        self, checkout: Checkout, conn: connection, error: BaseException | None
    ) -> tuple[DiscardReason | None, BaseException | None]:
        """Reset a connection; return why it cannot be used again, or None, and the error that revealed the reason."""
        closed: int = conn.closed  # 2 if libpq closed it; the type stubs say bool
        if closed:
            is_broken = closed == session.BROKEN
            return (DiscardReason.BROKEN if is_broken else DiscardReason.RETURNED_CLOSED), error
        status = conn.get_transaction_status()
        # Another thread uses the connection. Between two statements it would look idle, so its socket is shut down now.
        if status == session.ACTIVE:
            shutdown_socket(conn)
        if status in session.UNUSABLE or session.ended_session(error):
            return DiscardReason.BROKEN, error
        if error is not None and self._evict_rule.applies_to(error, conn):
            return DiscardReason.EVICT_ON, error
        refused = checkout.block and session.refused_writing(error, conn)
        slot = checkout.slot
        try:
            slot.baseline = restore(conn, slot.baseline, slot.origin, self._reset, self._config.configure)
            if refused and session.is_read_only_server(conn):
                evicted = self._core.drain(DiscardReason.READ_ONLY)
                self._discarder.discard(evicted, DiscardReason.READ_ONLY, error, checkout)
        except BaseException as failure:
            if is_external(failure):
                raise
            return (DiscardReason.BROKEN if conn.closed else DiscardReason.RESET_FAILED), without_traceback(failure)
        return None, None

    def _release(
        self, checkout: Checkout, conn: connection, reason: str | None = None, cause: BaseException | None = None
    ) -> None:
        now = monotonic()
        verdict = self._core.release(checkout, conn, now, reason)
        self.complete(checkout, conn, now, verdict, cause)

    def complete(
        self, checkout: Checkout, conn: connection, now: float, verdict: str | None, cause: BaseException | None = None
    ) -> None:
        """Act on the result of `Core.release`, and notify the observer."""
        if verdict is not None:
            if verdict is NOT_HELD:
                self._abandon(checkout)
                return
            checkout.slot.conn = conn
            self._discarder.discard([checkout.slot], verdict, cause, checkout)
        observer = self._notifier.observer
        if observer is not None:
            checkout.released = now
            try:
                observer.released(checkout)
            except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                self._notifier.log_error(error)
            checkout.end_reported = True

    def _abandon(self, checkout: Checkout) -> None:
        """Notify the observer of a checkout whose connection was released before, or belongs to a parent process."""
        if self._notifier.observer is not None:
            self._notifier.notify(self._notifier.observer.abandoned, checkout)
        checkout.end_reported = True

    def complete_deferred(self) -> None:
        """Complete the releases that began inside the garbage collector. Called by the maintenance thread."""
        for checkout, conn, close in self._deferred.drain():
            self.reset_and_release(checkout, conn, None, close=close)
