"""Liveness checks of idle connections: the cheapest check first; one dead connection triggers a check of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver.deadline import IO_DEADLINE, NoAnswer
from otel_pgpool.driver.error_text import describe, without_traceback
from otel_pgpool.driver.session import PING_AFTER, is_readable, ping
from otel_pgpool.driver.trace_name import Renamed
from otel_pgpool.errors import error_type
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.checkout import NEVER, Attempt, Checkout, Slot
from otel_pgpool.pool.slots import CHECK_BYPASS_WINDOW
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_external
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.discard import Discarder

CHECK_BUDGET = 0.1
"""Seconds that all checks within a checkout may take together, even if the checkout's timeout leaves less."""

MIN_CHECK = 0.02
"""Seconds that each check may take at least."""

MIN_FIRST_CHECK = 1.0
"""Seconds that a server behind a slow network may take to answer.

A check may take longer if a checkout has more time; half of the remaining time is kept for another connection.
"""


class LivenessCheck(Part):
    """The checks of one pool's idle connections."""

    def __init__(self, common: Common, discarder: Discarder) -> None:
        super().__init__(common)
        check = common.config.check
        self._is_auto = check == "auto"
        self._check = check if callable(check) else None
        self._discarder = discarder

    def is_alive(self, checkout: Checkout, conn: connection, limit: float) -> bool:
        """Check a connection that was idle: accept it, or discard it together with every other dead one.

        Args:
            checkout: the checkout that has the connection from `Core.try_acquire_idle`.
            conn: the connection.
            limit: when the check must end, as a reading of the clock in seconds.
        """
        core, slot, now = self._core, checkout.slot, monotonic()
        if now >= slot.expires:
            core.set_aside_for_closing(checkout)
            slot.conn = conn
            self._discarder.discard([slot], DiscardReason.EXPIRED, None, checkout)
            return False
        try:
            self._check_for_checkout(checkout, conn, now, limit)
        except BaseException as failure:
            asynchronous = is_external(failure)
            error = without_traceback(failure)
            is_shown = self._is_auto or isinstance(error, NoAnswer)  # otherwise the application's code raised the error
            message = describe(self._target, error) if is_shown else ""
            is_broken = self._is_auto or conn.closed
            reason = DiscardReason.BROKEN if is_broken else DiscardReason.CHECK_FAILED
            dead: list[Slot] = []
            try:
                core.set_aside_for_closing(checkout, Attempt(monotonic(), error_type(error), 0.0, message), error)
                slot.conn = conn
                if not asynchronous:
                    dead = self._sweep(limit, slot)
            finally:
                self._discarder.discard([slot, *dead], reason, error, checkout)
            if asynchronous:
                raise
            return False
        core.accept(checkout, monotonic())
        return True

    def _check_for_checkout(self, checkout: Checkout, conn: connection, now: float, limit: float) -> None:
        """Check the connection of a checkout, and rename its session if the checkout asks for that.

        By default the socket is polled, and the server is queried if the socket is readable or was not used for long.
        The statement that renames the session takes the place of that query.

        Raises:
            Exception: the connection must not be used.
        """
        slot, name = checkout.slot, checkout.trace_name
        unseen = now - max(slot.seen, slot.pinged)
        renamed = None
        if name is not None and limit - now > CHECK_BUDGET:  # with less time, a name could cost the connection
            renamed = Renamed.of(conn, slot.baseline, name)
        if self._check is not None:
            if name is None or unseen >= CHECK_BYPASS_WINDOW:
                ping(conn, self._check, check_seconds(limit, now))
                now = monotonic()
        elif self._is_auto and renamed is None and (unseen > PING_AFTER or is_readable(conn)):
            ping(conn, None, check_seconds(limit, now))
        if renamed is not None and limit - now > CHECK_BUDGET:
            slot.baseline = renamed  # first, so that after an interrupt the session is not taken for one without a name
            renamed.apply(conn, check_seconds(limit, now))

    def check_all(self) -> None:
        """Check every idle connection with a query, one after the other, and discard those that do not answer."""
        try:
            for suspect in self._core.idle_slots():
                dead = self._find_dead(self._core.begin_check([suspect]), NEVER, DiscardReason.CHECK_FAILED)
                self._discarder.discard(dead, DiscardReason.CHECK_FAILED)
        except BaseException:
            if self._core.parked:
                self._maintenance_thread.wake()  # to collect a slot that an interrupt has orphaned
            raise

    def _sweep(self, limit: float, found: Slot) -> list[Slot]:
        """Set aside every dead idle connection; keep those whose socket is readable only because of a notice.

        ``found`` is the slot of the dead connection that is the reason for the sweep.
        """
        suspects = [
            (slot, since)
            for slot, since in self._core.idle_slots()
            if (conn := slot.conn) is not None and is_readable(conn)
        ]
        return self._find_dead(self._core.begin_check(suspects), limit, DiscardReason.BROKEN, found)

    def _find_dead(self, aside: list[Slot], limit: float, reason: DiscardReason, *others: Slot) -> list[Slot]:
        """Check slots that were set aside; return those to be closed for ``reason``, and make the others available.

        ``others`` are slots set aside that are closed after the check.
        """
        dead: list[Slot] = []
        try:
            while aside:
                slot = aside[-1]
                now = monotonic()
                self._core.keep_aside([*aside, *dead, *others], now)
                if now > limit + CHECK_BUDGET or not self._responds(slot, _bound(limit, now)):
                    self._core.check_failed(slot)
                    dead.append(slot)
                elif (other := self._core.check_passed(slot, monotonic())) is not None:
                    self._discarder.discard([slot], other)
                aside.pop()
        except BaseException:
            dead += [slot for slot in aside if self._core.check_failed(slot) and slot not in dead]
            self._discarder.discard(dead, reason)
            raise
        return dead

    def _responds(self, slot: Slot, seconds: float) -> bool:
        try:
            if slot.conn is None:
                return False
            ping(slot.conn, self._check, seconds)
        except Exception as failure:  # whatever was raised, the connection must not be handed out
            if is_external(failure):
                raise
            return False
        return True


def check_seconds(limit: float, now: float) -> float:
    """Return how long the check of the first connection of a checkout may take."""
    return _bound(min(limit, max(now + MIN_FIRST_CHECK, (now + limit) / 2)), now)


def _bound(limit: float, now: float) -> float:
    return min(IO_DEADLINE, max(MIN_CHECK, limit - now))
