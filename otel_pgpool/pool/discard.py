"""The last step in the life of a connection: it is closed, and its slot is removed."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from otel_pgpool.driver.session import close
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_pgpool.pool.checkout import Checkout, Slot


class Discarder(Part):
    """Closes the connections that the core has set aside for closing."""

    def __init__(self, common: Common) -> None:
        super().__init__(common)
        self._refill: Callable[[], Callable[[], None] | None] = lambda: None

    def refill_by(self, start_if_needed: Callable[[], None]) -> None:
        """Set the method that opens new connections, to call after connections were closed.

        The reference is weak: a strong one would complete a reference cycle, and an unclosed pool that the program
        drops would keep its connections until the next run of the garbage collector.
        """
        self._refill = weakref.WeakMethod(start_if_needed)

    def discard(
        self, slots: Sequence[Slot], reason: str, error: BaseException | None = None, checkout: Checkout | None = None
    ) -> None:
        """Close connections, remove their slots, and notify the observer.

        Args:
            slots: slots that the core has set aside for closing.
            reason: a `DiscardReason`.
            error: the error that revealed the reason, if there was one.
            checkout: the checkout that held one of the connections or found one of them dead, if there was one.
        """
        if not slots:
            return
        try:
            for number, slot in enumerate(slots):
                conn, slot.conn = slot.conn, None
                if conn is not None:
                    self._core.keep_aside(slots[number:], monotonic())
                    close(conn)
        finally:
            closed = self._core.remove_closed(slots, reason)
        refill = self._refill()
        if refill is not None:
            refill()
        observer = self._notifier.observer
        if closed and observer is not None:
            self._notifier.notify(observer.discarded, closed, reason, error, checkout)
