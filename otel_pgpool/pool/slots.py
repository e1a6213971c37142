"""The sets between which a pool's slots move, and the totals kept about them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.pool.figures import ConnectionTotals, Counters
from otel_pgpool.pool.waiters import OneShotEvent
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Slot


CHECK_BYPASS_WINDOW = 0.05
"""A connection that was known to be alive within this number of seconds is handed out without a check."""


ORPHAN_AFTER = 1.0
"""Seconds after which a slot that no thread seems to own is considered an orphan."""

ORPHAN_AFTER_CHECK = 10.0
"""Seconds after which a slot set aside is considered an orphan: twice the maximum duration of a check or a close."""


def bypass_below(long_hold: float) -> float:
    """Return the seconds below which a hold is within the window, and not long, so that its release needs no lock."""
    return min(CHECK_BYPASS_WINDOW, long_hold)


def set_lifetime(slot: Slot, max_lifetime: float) -> None:
    """Set when the connection of a slot expires, for a maximum lifetime in seconds. The caller holds the lock."""
    slot.expires = slot.opened + max_lifetime * slot.lifetime_share


class Orphan(NamedTuple):
    """A slot that no thread seems to own, with the state that changes as soon as a thread touches the slot."""

    slot: Slot
    idle_since: float
    kept_at: float
    has_connection: bool  # False once a thread has begun to close it

    @classmethod
    def of(cls, slot: Slot) -> Orphan:
        """Record the present state of a slot."""
        return cls(slot, slot.idle_since, slot.kept_at, slot.conn is not None)


class SlotTable(Counters):
    """The slots of a pool, each in exactly one state.

    A slot is a member from the decision to connect until its connection is closed, and there are never more than
    ``maxconn`` members. A member that is not idle, opening, checking or closing is used.
    """

    __slots__ = (  # otherwise CPython would store so many attributes outside the object, where access is slower
        "__weakref__",
        "bypass_below",
        "checking",
        "closing",
        "connection_totals",
        "discarded",
        "idle",
        "idle_waiters",
        "keys",
        "lock",
        "long_hold",
        "maxconn",
        "members",
        "minconn",
        "opening",
        "orphans",
        "parked",
        "served",
        "slots",
        "totals_snapshot",
    )

    # Rules of the lock. It guards every attribute of this class and of `Core`. Code that holds the lock does no I/O,
    # logging or telemetry, calls no user code and does not wait. The garbage collector may run under the lock, so the
    # finalizers of this package never take it (`Deferred`), and the maintenance thread completes releases that
    # begin inside the garbage collector (`gc_state`). The lock is reentrant, because an application's finalizers and
    # signal handlers may call the pool while their thread holds it. A method whose name begins with an underscore
    # expects its caller to hold the lock.
    #
    # A checkout that finds an idle connection, and a release without waiters, do not take the lock. They rely on
    # atomic steps: list.pop gives a slot to one caller only, deleting `Checkout.held` succeeds once only, and only the
    # holder of a slot changes the slot's counters. Between these steps a slot is in no set, so it counts as used: it is
    # not handed out twice, and no limit is exceeded. Each side does its own step first and then looks for the other's:
    # a release appends to `idle` and then reads the queue, a waiter queues and then reads `idle`, so that at least one
    # of them sees the other. For this reason `idle` is never replaced, and levels can be read at any time.
    def __init__(self, minconn: int, maxconn: int, long_hold: float) -> None:
        self.reset_counters()
        self.lock = threading.RLock()
        self.minconn = minconn
        self.maxconn = maxconn
        self.long_hold = long_hold
        self.bypass_below = bypass_below(long_hold)

        self.connection_totals = ConnectionTotals()
        self.members: set[Slot] = set()
        # Totals of past members, and the present members: replaced together, so that no reader sees a total decrease.
        self.totals_snapshot: tuple[int, float, tuple[Slot, ...]] = (0, 0.0, ())
        self.idle: list[Slot] = []  # last in, first out
        self.opening: set[Slot] = set()
        self.checking: set[Slot] = set()
        self.closing: set[Slot] = set()
        self.slots: dict[int, Slot] = {}  # slots with an open connection, by id of the connection
        self.keys: dict[object, tuple[Slot, connection]] = {}  # of getconn(key); the key keeps its connection alive
        self.orphans: dict[Orphan, float] = {}  # when each was first seen in this state

        self.served: Counter[str] = Counter()  # checkouts by path; those of path "idle" are in `totals_snapshot`
        self.discarded: Counter[str] = Counter()  # connections by reason
        self.idle_waiters: list[OneShotEvent] = []  # callers that wait until no connection is checked out
        self.parked = False  # the maintenance thread sleeps until the next checkout

    @property
    def used(self) -> int:
        """Number of slots that are checked out."""
        return len(self.members) - len(self.idle) - len(self.opening) - len(self.checking) - len(self.closing)

    @property
    def remaining(self) -> int:
        """Number of slots that are not being closed."""
        return len(self.members) - len(self.closing)

    # Setting idle slots aside

    def _pop_idle_to_close(self, count: int) -> list[Slot]:
        """Set up to ``count`` idle slots aside for closing, the longest idle first."""
        surplus: list[Slot] = []
        while len(surplus) < count and self.idle:
            try:
                surplus.append(self.idle.pop(0))
            except IndexError:  # another thread has removed the last one
                break
        self.closing.update(surplus)
        return surplus

    def _move_from_idle(self, slot: Slot, where: set[Slot]) -> bool:
        """Move an idle slot to another set; return False if another thread has removed the slot."""
        try:
            self.idle.remove(slot)
        except ValueError:
            return False
        where.add(slot)
        return True

    def idle_slots(self) -> list[tuple[Slot, float]]:
        """Return the idle slots, each with the time since when it has been idle."""
        return [(slot, slot.idle_since) for slot in self.idle.copy()]

    def begin_check(self, suspects: Iterable[tuple[Slot, float]]) -> list[Slot]:
        """Set aside, for a check, those of the given slots that have been idle since the given times."""
        with self.lock:
            # No `if` in the comprehension: an interrupt at its jump would leave the lock held on Python 3.12 and 3.13,
            # whose compilers place that jump outside of the `with` (https://github.com/python/cpython/issues/130279).
            return [slot for slot, _since in filter(self._begin_check, suspects)]

    def _begin_check(self, suspect: tuple[Slot, float]) -> bool:
        slot, since = suspect
        is_moved = slot.idle_since == since and self._move_from_idle(slot, self.checking)
        if is_moved:
            slot.kept_at = monotonic()
        return is_moved

    def keep_aside(self, slots: Sequence[Slot], now: float) -> None:
        """Note that a thread still works on slots that were set aside, one after the other. Takes no lock."""
        for slot in slots:
            slot.kept_at = now

    def check_failed(self, slot: Slot) -> bool:
        """Move a slot whose check failed to those to be closed; return False if the slot was released before."""
        with self.lock:
            if slot in self.checking:
                self.closing.add(slot)
                self.checking.discard(slot)
                self.connection_totals.lost += 1
            return slot in self.closing

    def abandon_check(self, slot: Slot, reason: str) -> bool:
        """Mark a slot that is being checked for eviction, so that nobody gets it; return False if the check has ended.

        Afterwards its socket can be shut down, which ends the check.
        """
        with self.lock:
            is_checked = slot in self.checking
            if is_checked:
                slot.mark_for_eviction(reason)
            return is_checked

    def evict_expired(self, now: float, max_idle: float) -> dict[str, list[Slot]]:
        """Set aside, for closing, idle connections past their lifetime, and those above ``minconn`` idle too long."""
        with self.lock:
            aged = [slot for slot in self.idle if now >= slot.expires]
            expired = [slot for slot in aged if self._move_from_idle(slot, self.closing)]
            unused = [slot for slot in self.idle if now - slot.idle_since >= max_idle]
            spare = max(0, self.remaining - self.minconn)
            return {
                DiscardReason.EXPIRED: expired,
                DiscardReason.IDLE: [slot for slot in unused[:spare] if self._move_from_idle(slot, self.closing)],
            }

    def change_lifetimes(self, max_lifetime: float) -> None:
        """Change the lifetimes of all connections according to a new maximum in seconds."""
        with self.lock:
            for slot in self.members:
                set_lifetime(slot, max_lifetime)
                slot.review_at = min(slot.review_at, slot.expires)

    # Leaving

    def remove_closed(self, slots: Iterable[Slot], reason: str) -> list[Slot]:
        """Free the slots of closed connections; return those slots that no other thread has freed before."""
        with self.lock:
            closed = list(filter(self.closing.__contains__, slots))  # no `if` in a comprehension, as in `begin_check`
            for slot in closed:
                self._remove_discarded(slot, reason)
                self.closing.discard(slot)
            self._wake_idle_waiters()
            return closed

    def _add(self, slot: Slot) -> None:
        self.members.add(slot)
        idle, held, slots = self.totals_snapshot
        self.totals_snapshot = (idle, held, (*slots, slot))

    def _remove(self, slot: Slot) -> None:
        self._add_to_past(slot)
        # Last: if an interrupt comes first, the slot is still a member, which `collect_orphans` finds.
        self.members.discard(slot)

    def _remove_discarded(self, slot: Slot, reason: str) -> None:
        self._add_to_past(slot)
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        # Last, as in `_remove`. No call between the two lines, so that an interrupt comes before both or after both.
        self.discarded[reason] += 1
        self.members.discard(slot)

    def _add_to_past(self, slot: Slot) -> None:
        """Move a member's totals to those of past members, once."""
        idle, held, slots = self.totals_snapshot
        if slot in slots:
            rest = tuple(each for each in slots if each is not slot)
            self.totals_snapshot = (idle + slot.idle_checkouts, held + slot.hold_seconds, rest)

    def collect_orphans(self, now: float) -> list[Slot]:
        """Set aside, for closing, slots that an asynchronous exception has orphaned while a thread moved them.

        Such a slot has had no owner for `ORPHAN_AFTER` seconds, or has been set aside for `ORPHAN_AFTER_CHECK` seconds.
        Its connection is not handed out again: if the thread that moved the slot is only slow, that thread must find
        no connection rather than share one.
        """
        with self.lock:
            self.checking &= self.members  # an interrupt may have hit between leaving `members` and leaving these sets
            self.closing &= self.members
            elsewhere = {*self.idle, *self.opening}
            orphans = [Orphan.of(slot) for slot in self.members - elsewhere if not slot.is_held]
            self.orphans = {orphan: self.orphans.get(orphan, now) for orphan in orphans}
            lost = [
                orphan.slot for orphan, since in self.orphans.items() if now - since >= self._orphan_after(orphan.slot)
            ]
            self.checking.difference_update(lost)
            self.closing.update(lost)
            for slot in lost:
                self._forget_key(slot)
                slot.checkout = None
                slot.mark_for_eviction(DiscardReason.RECLAIMED)
            return lost

    def _orphan_after(self, slot: Slot) -> float:
        return ORPHAN_AFTER_CHECK if slot in self.checking or slot in self.closing else ORPHAN_AFTER

    def _forget_key(self, slot: Slot) -> None:
        for key, (keyed, _conn) in list(self.keys.items()):
            if keyed is slot:
                del self.keys[key]

    def _evict_reason(self, slot: Slot, now: float) -> str | None:
        """Return why a slot that no caller holds has to be closed, or None."""
        if slot.evict_reason is not None:
            return slot.evict_reason
        if now >= slot.expires:
            return DiscardReason.EXPIRED
        if self.remaining > self.maxconn:
            return DiscardReason.RESIZED
        slot.review_at = slot.expires
        return None

    def register_idle_waiter(self) -> OneShotEvent | None:
        """Register the caller to be woken when no connection is used or being opened; None if that is so now."""
        with self.lock:
            if not self.used and not self.opening:
                return None
            waiter = OneShotEvent()
            self.idle_waiters.append(waiter)
            return waiter

    def _wake_idle_waiters(self) -> None:
        while self.idle_waiters and not self.used and not self.opening:
            self.idle_waiters.pop().set()

    def park(self) -> bool:
        """Let the maintenance thread sleep until the next checkout, unless a slot is used, checked, closed or opened.

        This sets ``parked`` first and looks for such slots second; a checkout removes its slot from ``idle`` first and
        reads ``parked`` second. So at least one of them sees the other.
        """
        with self.lock:
            self.parked = True
            if self.used or self.checking or self.closing or self.opening:
                self.parked = False
            return self.parked
