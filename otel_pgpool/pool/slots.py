"""The sets between which a pool's slots move, and the totals kept about them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.pool.slot import AT_ONCE, NEVER, Slot
from otel_pgpool.pool.waiters import Sleeper

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Sequence

    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout


FRESH = 0.05
"""Seconds for which a connection that was known alive is handed over without a check."""


STRAY_AFTER = 1.0
"""Seconds after which a slot that no thread seems to own is considered lost."""

LEFT_AFTER = 10.0
"""Seconds after which a slot set aside is considered lost: twice the maximum duration of a check or a close."""


class Stray(NamedTuple):
    """A slot that no thread seems to own, with the state that changes as soon as a thread touches the slot."""

    slot: Slot
    idle_since: float
    has_connection: bool  # False once a thread has begun to close it

    @classmethod
    def of(cls, slot: Slot) -> Stray:
        return cls(slot, slot.idle_since, slot.conn is not None)


class Members:
    """The slots of a pool, each in exactly one state.

    A slot is a member from the decision to connect until its connection is closed, and there are never more than
    ``maxconn`` members. A member that is not idle, opening, checking or closing is used.
    """

    __slots__ = (  # CPython stores so many attributes outside the object otherwise, which makes access slower
        "brief",
        "checking",
        "closers",
        "closing",
        "counted",
        "created",
        "discarded",
        "idle",
        "keys",
        "lock",
        "long_hold",
        "long_holds",
        "maxconn",
        "members",
        "minconn",
        "opening",
        "parked",
        "served",
        "slots",
        "strays",
    )

    # Rules of the lock. It guards every attribute of this class and of `Core`. Code that holds the lock does no I/O,
    # logging or telemetry, calls no user code and does not wait. The garbage collector may run under the lock, so the
    # finalizers of this package never take it (`Dropped`), and the maintenance thread completes returns that happen
    # inside the garbage collector (`gc_state`). The lock is reentrant, because an application's finalizers and signal
    # handlers may call the pool while their thread holds it. A method whose name begins with an underscore expects its
    # caller to hold the lock.
    #
    # A checkout that finds an idle connection, and a return while nobody waits, do not take the lock. They rely on
    # atomic steps: list.pop gives a slot to one caller only, deleting `Checkout.lent` succeeds once only, and only the
    # holder of a slot changes the slot's counters. Between these steps a slot is in no set, so it counts as used: it is
    # not handed over twice, and no limit is exceeded. Each side does its own step first and then looks for the other's:
    # a return appends to `idle` and then reads the queue, a waiter queues and then reads `idle`, so that at least one
    # of them sees the other. For this reason `idle` is never replaced, and levels can be read at any time.
    def __init__(self, minconn: int, maxconn: int, long_hold: float) -> None:
        self.lock = threading.RLock()
        self.minconn = minconn
        self.maxconn = maxconn
        self.long_hold = long_hold
        self.brief = min(FRESH, long_hold)  # a shorter hold is fresh and not long, so its return needs no lock

        self.members: set[Slot] = set()
        # Totals of past members, and the present members: replaced together, so that no reader sees a total decrease.
        self.counted: tuple[int, float, tuple[Slot, ...]] = (0, 0.0, ())
        self.idle: list[Slot] = []  # last in, first out
        self.opening: set[Slot] = set()
        self.checking: set[Slot] = set()
        self.closing: set[Slot] = set()
        self.slots: dict[int, Slot] = {}  # slots with an open connection, by id of the connection
        self.keys: dict[object, tuple[Slot, connection]] = {}  # of getconn(key); the key keeps its connection alive
        self.strays: dict[Stray, float] = {}  # when each was first seen in this state

        self.served: Counter[str] = Counter()  # checkouts by path; those of path "idle" are in `counted`
        self.discarded: Counter[str] = Counter()  # connections by reason
        self.closers: list[Sleeper] = []  # callers that wait until no connection is checked out
        self.parked = False  # the maintenance thread sleeps until the next checkout
        self.created = self.long_holds = 0

    @property
    def used(self) -> int:
        """Number of slots that are checked out."""
        return len(self.members) - len(self.idle) - len(self.opening) - len(self.checking) - len(self.closing)

    @property
    def remaining(self) -> int:
        """Number of slots that are not being closed."""
        return len(self.members) - len(self.closing)

    # Setting idle slots aside

    def _shed(self, count: int) -> list[Slot]:
        """Set up to ``count`` idle slots aside for closing, the longest idle first."""
        shed: list[Slot] = []
        while len(shed) < count and self.idle:
            try:
                shed.append(self.idle.pop(0))
            except IndexError:  # another thread has taken the last one
                break
        self.closing.update(shed)
        return shed

    def _set_aside(self, slot: Slot, where: set[Slot]) -> bool:
        """Move an idle slot to another set; return False if another thread has taken the slot."""
        try:
            self.idle.remove(slot)
        except ValueError:
            return False
        where.add(slot)
        return True

    def idle_slots(self) -> list[tuple[Slot, float]]:
        """Return the idle slots, each with the time since when it has been idle."""
        return [(slot, slot.idle_since) for slot in self.idle.copy()]

    def inspect(self, suspects: Iterable[tuple[Slot, float]]) -> list[Slot]:
        """Set aside, for a check, those of the given idle slots that have not been used since."""
        with self.lock:
            return [
                slot for slot, since in suspects if slot.idle_since == since and self._set_aside(slot, self.checking)
            ]

    def reject(self, slot: Slot) -> bool:
        """Move a slot whose check failed to those to be closed; return False if the slot was released before."""
        with self.lock:
            if slot in self.checking:
                self.closing.add(slot)
                self.checking.discard(slot)
            return slot in self.closing

    def retire(self, now: float, max_idle: float) -> dict[str, list[Slot]]:
        """Set aside, for closing, idle connections past their lifetime, and those above ``minconn`` idle too long."""
        with self.lock:
            aged = [slot for slot in self.idle if now >= slot.expires]
            expired = [slot for slot in aged if self._set_aside(slot, self.closing)]
            unused = [slot for slot in self.idle if now - slot.idle_since >= max_idle]
            spare = max(0, self.remaining - self.minconn)
            return {
                "expired": expired,
                "idle": [slot for slot in unused[:spare] if self._set_aside(slot, self.closing)],
            }

    # Leaving

    def forget(self, slots: Iterable[Slot], reason: str) -> list[Slot]:
        """Free the slots of closed connections; return those slots that no other thread has freed before."""
        with self.lock:
            closed = [slot for slot in slots if slot in self.closing]
            for slot in closed:
                self._drop(slot, reason)
                self.closing.discard(slot)
            self._notify_closers()
            return closed

    def _enter(self, slot: Slot) -> None:
        self.members.add(slot)
        idle, held, slots = self.counted
        self.counted = (idle, held, (*slots, slot))

    def _leave(self, slot: Slot) -> None:
        idle, held, slots = self.counted
        if slot in slots:
            rest = tuple(each for each in slots if each is not slot)
            self.counted = (idle + slot.idle_checkouts, held + slot.hold_seconds, rest)
        self.members.discard(
            slot
        )  # last: if an interrupt comes first, the slot is still a member, which `recover` finds

    def _drop(self, slot: Slot, reason: str) -> None:
        self._leave(slot)
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.discarded[reason] += 1

    def reclaim(self, refs: Sequence[weakref.ref[connection]], now: float) -> list[Checkout]:
        """Free the slots of connections whose holders dropped them, given by weak reference; return their checkouts."""
        with self.lock:
            lost = []
            for slot in self.members - self.closing - self.opening:
                checkout = slot.checkout
                if checkout is not None and any(slot.ref is ref for ref in refs):
                    try:
                        del checkout.lent
                    except AttributeError:  # the connection was returned after all
                        continue
                    lost.append(checkout)
                    slot.hold_seconds += now - checkout.acquired
                    self._forget_key(slot)
                    self._drop(slot, "reclaimed")
            self._notify_closers()
            return lost

    def recover(self, now: float) -> list[Slot]:
        """Set aside, for closing, slots that an asynchronous exception has orphaned while a thread moved them.

        Such a slot has had no owner for `STRAY_AFTER` seconds, or has been set aside for `LEFT_AFTER` seconds. Its
        connection is not handed over again: if the thread that moved the slot is only slow, that thread must find no
        connection rather than share one.
        """
        with self.lock:
            self.checking &= self.members  # an interrupt may have hit between leaving `members` and leaving these sets
            self.closing &= self.members
            elsewhere = {*self.idle, *self.opening}
            strays = [Stray.of(slot) for slot in self.members - elsewhere if not slot.is_lent]
            self.strays = {stray: self.strays.get(stray, now) for stray in strays}
            lost = [stray.slot for stray, since in self.strays.items() if now - since >= self._patience(stray.slot)]
            self.checking.difference_update(lost)
            self.closing.update(lost)
            for slot in lost:
                self._forget_key(slot)
                slot.checkout = None
                slot.condemn("reclaimed")
            return lost

    def _patience(self, slot: Slot) -> float:
        return LEFT_AFTER if slot in self.checking or slot in self.closing else STRAY_AFTER

    def _forget_key(self, slot: Slot) -> None:
        for key, (keyed, _conn) in list(self.keys.items()):
            if keyed is slot:
                del self.keys[key]

    def _review(self, slot: Slot, now: float) -> str | None:
        """Return why a slot that no caller holds has to be closed, or None."""
        if slot.doom is not None:
            return slot.doom
        if now >= slot.expires:
            return "expired"
        if self.remaining > self.maxconn:
            return "resized"
        slot.review_at = slot.expires
        return None

    def quiet(self) -> Sleeper | None:
        """Register the caller to be woken when no connection is used or being opened; None if that is so now."""
        with self.lock:
            if not self.used and not self.opening:
                return None
            sleeper = Sleeper()
            self.closers.append(sleeper)
            return sleeper

    def _notify_closers(self) -> None:
        while self.closers and not self.used and not self.opening:
            self.closers.pop().wake()

    # Holds

    def _holds(self) -> list[Checkout]:
        lent = [slot.checkout for slot in self.members]
        return sorted((hold for hold in lent if hold is not None and hold.path is not None), key=_acquired)

    def holds_now(self) -> list[Checkout]:
        """Return the checkouts that hold a connection, the longest hold first."""
        with self.lock:
            return self._holds()

    def oldest_hold(self, now: float) -> float:
        """Return the age in seconds of the oldest hold without an ``expected_hold``, or 0. Takes no lock."""
        holds = [slot.checkout for slot in self.members.copy()]
        begun = [
            hold.acquired for hold in holds if hold is not None and hold.path is not None and hold.expected_hold is None
        ]
        oldest = min(begun, default=now)
        return max(0.0, now - oldest)

    def checkouts(self) -> dict[str, int]:
        """Return the number of checkouts that received a connection, by path. Takes no lock."""
        past, _held, slots = self.counted
        idle = past + sum(slot.idle_checkouts for slot in slots)
        return {"idle": idle, "queued": self.served["queued"], "new": self.served["new"]}

    def total_hold(self) -> float:
        """Return the sum of all ended holds in seconds. Takes no lock."""
        _idle, past, slots = self.counted
        return past + sum(slot.hold_seconds for slot in slots)

    def by_key(self, key: object) -> tuple[Slot, connection] | tuple[None, None]:
        """Return the slot and the connection checked out by ``getconn(key)``, or ``(None, None)``."""
        with self.lock:
            return self.keys.get(key, (None, None))

    def slot_behind(self, conn: connection) -> Slot | None:
        """Find the slot of a connection that was handed over in a proxy and is returned without the proxy.

        ``cursor.connection``, for example, is the connection itself.
        """
        return next((slot for slot in list(self.slots.values()) if slot.ref() is conn), None)

    def enter_key(self, key: object, slot: Slot, conn: connection) -> connection:
        """Record the connection of a key; return the connection recorded first, which may be another thread's."""
        with self.lock:
            slot.review_at = AT_ONCE  # so that the return forgets the key
            return self.keys.setdefault(key, (slot, conn))[1]

    def long_from(self, checkout: Checkout) -> float:
        """Return when a hold becomes long, as a reading of the clock in seconds."""
        expected = checkout.expected_hold
        return checkout.acquired + (self.long_hold if expected is None else expected)

    def _flag(self, checkout: Checkout, now: float) -> None:
        checkout.flagged = True
        checkout.flagged_at = now
        self.long_holds += 1

    def flag_long_holds(self, now: float) -> list[Checkout]:
        """Mark the holds that have passed their threshold since the last call, and return their checkouts."""
        with self.lock:
            overdue = [hold for hold in self._holds() if not hold.flagged and now >= self.long_from(hold)]
            for checkout in overdue:
                self._flag(checkout, now)
            return overdue

    def next_deadline(self, max_idle: float) -> float:
        """Return when the maintenance thread is needed next, as a reading of the clock in seconds."""
        with self.lock:
            holds = [self.long_from(hold) for hold in self._holds() if not hold.flagged]
            lifetimes = [slot.expires for slot in self.idle]
            unused = [slot.idle_since + max_idle for slot in self.idle] if self.remaining > self.minconn else []
            return min((*holds, *lifetimes, *unused), default=NEVER)

    def park(self) -> bool:
        """Let the maintenance thread sleep until the next checkout, unless a slot is used, checked, closed or opened.

        This sets ``parked`` first and looks for such slots second; a checkout takes a connection first and reads
        ``parked`` second. So at least one of them sees the other.
        """
        with self.lock:
            self.parked = True
            if self.used or self.checking or self.closing or self.opening:
                self.parked = False
            return self.parked


def _acquired(checkout: Checkout) -> float:
    return checkout.acquired
