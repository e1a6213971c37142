"""The holds of a pool: which checkout holds which connection, since when, and under which key."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from otel_pgpool.pool.checkout import ACQUIRED, AT_ONCE, NEVER, Checkout, Slot, release_once
from otel_pgpool.pool.slots import SlotTable, bypass_below
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    import weakref
    from collections.abc import Sequence

    from psycopg2.extensions import connection


class HoldTable(SlotTable):
    """The slots of a pool together with the checkouts that hold them."""

    __slots__ = ()

    def _holds(self) -> list[Checkout]:
        return sorted(self.present_holds(), key=ACQUIRED)

    def _longest_holds(self, count: int) -> list[Checkout]:
        return heapq.nsmallest(count, self.present_holds(), key=ACQUIRED)

    def present_holds(self) -> list[Checkout]:
        """Return the checkouts that hold a connection. Takes no lock."""
        held = [slot.checkout for slot in self.members.copy()]
        return [hold for hold in held if hold is not None and hold.path is not None]

    def holds_now(self) -> list[Checkout]:
        """Return the checkouts that hold a connection, the longest hold first."""
        with self.lock:
            return self._holds()

    def oldest_hold(self, now: float) -> float:
        """Return the age in seconds of the oldest hold without an ``expected_hold``, or 0. Takes no lock."""
        begun = [hold.acquired for hold in self.present_holds() if hold.expected_hold is None]
        return max(0.0, now - min(begun, default=now))

    def expected_holds(self) -> int:
        """Return the number of holds with an ``expected_hold``. Takes no lock."""
        return sum(hold.expected_hold is not None for hold in self.present_holds())

    def checkouts(self) -> dict[str, int]:
        """Return the number of checkouts that received a connection, by path. Takes no lock."""
        past, _held, slots = self.totals_snapshot
        idle = past + sum(slot.idle_checkouts for slot in slots)
        return {"idle": idle, "queued": self.served["queued"], "new": self.served["new"]}

    def total_hold(self) -> float:
        """Return the sum of all ended holds in seconds. Takes no lock."""
        _idle, past, slots = self.totals_snapshot
        return past + sum(slot.hold_seconds for slot in slots)

    def by_key(self, key: object) -> tuple[Slot, connection] | tuple[None, None]:
        """Return the slot and the connection checked out by ``getconn(key)``, or ``(None, None)``."""
        with self.lock:
            return self.keys.get(key, (None, None))

    def slot_behind(self, conn: connection) -> Slot | None:
        """Find the slot of a connection that was handed out in a proxy and is released without the proxy.

        ``cursor.connection``, for example, is the connection itself.
        """
        return next((slot for slot in list(self.slots.values()) if slot.ref() is conn), None)

    def enter_key(self, key: object, slot: Slot, conn: connection) -> connection:
        """Record the connection of a key; return the connection recorded first, which may be another thread's."""
        with self.lock:
            slot.review_at = AT_ONCE  # so that the release removes the key
            return self.keys.setdefault(key, (slot, conn))[1]

    def long_from(self, checkout: Checkout) -> float:
        """Return when a hold becomes long, as a reading of the clock in seconds."""
        expected = checkout.expected_hold
        return checkout.acquired + (self.long_hold if expected is None else expected)

    def change_long_hold(self, long_hold: float) -> None:
        """Change the threshold of long holds, in seconds."""
        with self.lock:
            self.long_hold, self.bypass_below = long_hold, bypass_below(long_hold)

    def flag_long_holds(self, now: float) -> list[Checkout]:
        """Mark the holds that have passed their threshold since the last call, and return their checkouts."""
        with self.lock:
            overdue = [hold for hold in self._holds() if not hold.flagged and now >= self.long_from(hold)]
            for checkout in overdue:
                self.flag(checkout, now)
            return overdue

    def next_deadline(self, max_idle: float) -> float:
        """Return when the maintenance thread is needed next, as a reading of the clock in seconds."""
        with self.lock:
            holds = [self.long_from(hold) for hold in self._holds() if not hold.flagged]
            lifetimes = [slot.expires for slot in self.idle]
            unused = [slot.idle_since + max_idle for slot in self.idle] if self.remaining > self.minconn else []
            return min((*holds, *lifetimes, *unused), default=NEVER)

    def reclaim(self, refs: Sequence[weakref.ref[connection]], now: float) -> list[Checkout]:
        """Free the slots of connections whose holders dropped them, given by weak reference; return their checkouts."""
        with self.lock:
            lost = []
            for slot in self.members - self.closing - self.opening:
                checkout = slot.checkout
                if checkout is not None and any(slot.ref is ref for ref in refs):
                    if not release_once(checkout):  # the connection was released after all
                        continue
                    lost.append(checkout)
                    slot.hold_seconds += now - checkout.acquired
                    self._forget_key(slot)
                    self._remove_discarded(slot, DiscardReason.RECLAIMED)
            self._wake_idle_waiters()
            return lost
