"""Which slot is where: the sets that a pool's connections move between, and what is counted of them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool._queue import Sleeper
from otel_pgpool._slot import AT_ONCE, NEVER, Slot

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Sequence

    from psycopg2.extensions import connection

    from otel_pgpool._checkout import Checkout


FRESH = 0.05
"""Seconds for which a connection that was just seen alive is lent again without a look."""


STRAY_AFTER = 1.0
"""Seconds in nobody's hands after which a slot counts as lost."""

LEFT_AFTER = 10.0
"""Seconds after which whoever set a slot aside will not come back to it: twice what a look or a close may take."""


class Stray(NamedTuple):
    """A slot that seems to be in nobody's hands, and what shows that somebody has touched it."""

    slot: Slot
    idle_since: float
    has_connection: bool  # no more, once its closing has begun

    @classmethod
    def of(cls, slot: Slot) -> Stray:
        return cls(slot, slot.idle_since, slot.conn is not None)


class Members:
    """The slots of a pool.

    A slot is a member from the decision to connect until its connection is closed: never are there more than
    ``maxconn`` members. One that is not idle, opening, checked or closing is used.
    """

    __slots__ = (  # more attributes than CPython keeps at hand in a dictionary
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

    # The lock's law. It guards every attribute of this class and of `Core`. While it is held: no I/O, no log, no
    # telemetry, no call of user code, no wait. The garbage collector may run inside it, so this package's finalizers
    # never take it (`Dropped`), and what the collector returns is settled by the maintenance (`_collector`). It is
    # reentrant for what a program's own finalizers and signal handlers may call. Methods named with an underscore
    # expect their caller to hold it.
    #
    # A checkout that finds an idle connection, and a return that nobody waits for, do without it, by steps that are
    # atomic in themselves: list.pop gives a slot to one taker only, deleting `Checkout.lent` lets one return only, and
    # a slot's own counters belong to its borrower. In between a slot is in no set, hence used: nobody lends it twice,
    # and no limit is exceeded. Each side first does its own step and then looks for the other's: a return appends to
    # `idle` and then looks at the queue, a waiter queues and then looks at `idle`; so one of them sees both.
    # `idle` is therefore never replaced, and figures may be read at any time.
    def __init__(self, minconn: int, maxconn: int, long_hold: float) -> None:
        self.lock = threading.RLock()
        self.minconn = minconn
        self.maxconn = maxconn
        self.long_hold = long_hold
        self.brief = min(FRESH, long_hold)  # a shorter hold needs no second look when it ends

        self.members: set[Slot] = set()
        # Totals of past members, and the present ones: replaced as one, so that no reader sees a total go down.
        self.counted: tuple[int, float, tuple[Slot, ...]] = (0, 0.0, ())
        self.idle: list[Slot] = []  # last in, first out
        self.opening: set[Slot] = set()
        self.checking: set[Slot] = set()
        self.closing: set[Slot] = set()
        self.slots: dict[int, Slot] = {}  # the established ones, by id of the connection
        self.keys: dict[object, tuple[Slot, connection]] = {}  # of getconn(key); the key keeps its connection alive
        self.strays: dict[Stray, float] = {}  # since when seen so

        self.served: Counter[str] = Counter()  # checkouts by path; those of the idle are in `counted`
        self.discarded: Counter[str] = Counter()  # connections by reason
        self.closers: list[Sleeper] = []  # wait until nothing is out
        self.parked = False  # the maintenance sleeps until the next checkout
        self.created = self.long_holds = 0

    @property
    def used(self) -> int:
        """Slots that are lent."""
        return len(self.members) - len(self.idle) - len(self.opening) - len(self.checking) - len(self.closing)

    @property
    def remaining(self) -> int:
        """Slots that are not on their way out."""
        return len(self.members) - len(self.closing)

    # Setting idle slots aside

    def _shed(self, count: int) -> list[Slot]:
        """Set idle slots aside to be closed, the longest idle first."""
        shed: list[Slot] = []
        while len(shed) < count and self.idle:
            try:
                shed.append(self.idle.pop(0))
            except IndexError:  # taken meanwhile
                break
        self.closing.update(shed)
        return shed

    def _set_aside(self, slot: Slot, where: set[Slot]) -> bool:
        """Move an idle slot, unless it is taken meanwhile."""
        try:
            self.idle.remove(slot)
        except ValueError:
            return False
        where.add(slot)
        return True

    def idle_slots(self) -> list[tuple[Slot, float]]:
        """Those idle now, each with the moment since when."""
        return [(slot, slot.idle_since) for slot in self.idle.copy()]

    def inspect(self, suspects: Iterable[tuple[Slot, float]]) -> list[Slot]:
        """Set aside those that have not been lent meanwhile."""
        with self.lock:
            return [
                slot for slot, since in suspects if slot.idle_since == since and self._set_aside(slot, self.checking)
            ]

    def reject(self, slot: Slot) -> bool:
        """A connection set aside is dead: whether it is to be closed, and was not offered again before."""
        with self.lock:
            if slot in self.checking:
                self.closing.add(slot)
                self.checking.discard(slot)
            return slot in self.closing

    def retire(self, now: float, max_idle: float) -> dict[str, list[Slot]]:
        """Set aside, to be closed, idle connections past their lifetime, and those idle too long above the minimum."""
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
        """The connections are closed: their places are free. Those slots that nobody else has closed meanwhile."""
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
        self.members.discard(slot)  # last: who is interrupted before it leaves a member, which is found again

    def _drop(self, slot: Slot, reason: str) -> None:
        self._leave(slot)
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.discarded[reason] += 1

    def reclaim(self, refs: Sequence[weakref.ref[connection]], now: float) -> list[Checkout]:
        """Free the places of connections that their borrowers dropped."""
        with self.lock:
            lost = []
            for slot in self.members - self.closing - self.opening:
                checkout = slot.checkout
                if checkout is not None and any(slot.ref is ref for ref in refs):
                    try:
                        del checkout.lent
                    except AttributeError:  # it came back after all
                        continue
                    lost.append(checkout)
                    slot.hold_seconds += now - checkout.acquired
                    self._forget_key(slot)
                    self._drop(slot, "reclaimed")
            self._notify_closers()
            return lost

    def recover(self, now: float) -> list[Slot]:
        """Set slots aside to be closed that an asynchronous exception lost: on the way from `idle`, back, or out.

        They have been in nobody's hands for `STRAY_AFTER`, or set aside for `LEFT_AFTER`. They are not lent again:
        should their borrower be alive after all, and merely slow, it must find itself without a connection and not
        share one.
        """
        with self.lock:
            self.checking &= self.members  # an interrupt may come between the two
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
        """Why a member that is in nobody's hands must go, or None."""
        if slot.doom is not None:
            return slot.doom
        if now >= slot.expires:
            return "expired"
        if self.remaining > self.maxconn:
            return "resized"
        slot.review_at = slot.expires
        return None

    def quiet(self) -> Sleeper | None:
        """Wait until nothing is lent or being made; None when nothing is."""
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
        """The checkouts that hold a connection, the longest first."""
        with self.lock:
            return self._holds()

    def oldest_hold(self, now: float) -> float:
        """Age in s of the oldest hold that nobody said to be a long one, 0 if none. Takes no lock."""
        holds = [slot.checkout for slot in self.members.copy()]
        begun = [
            hold.acquired for hold in holds if hold is not None and hold.path is not None and hold.expected_hold is None
        ]
        oldest = min(begun, default=now)
        return max(0.0, now - oldest)

    def checkouts(self) -> dict[str, int]:
        """How many were served, by path. Takes no lock."""
        past, _held, slots = self.counted
        idle = past + sum(slot.idle_checkouts for slot in slots)
        return {"idle": idle, "queued": self.served["queued"], "new": self.served["new"]}

    def total_hold(self) -> float:
        """Seconds of all holds that have ended. Takes no lock."""
        _idle, past, slots = self.counted
        return past + sum(slot.hold_seconds for slot in slots)

    def by_key(self, key: object) -> tuple[Slot, connection] | tuple[None, None]:
        """What ``getconn(key)`` has lent."""
        with self.lock:
            return self.keys.get(key, (None, None))

    def slot_behind(self, conn: connection) -> Slot | None:
        """Find the slot of a connection that was lent as a proxy, and comes back without it, as from its cursor."""
        return next((slot for slot in list(self.slots.values()) if slot.ref() is conn), None)

    def enter_key(self, key: object, slot: Slot, conn: connection) -> connection:
        """Remember what a key has lent; the connection that it goes by, if another thread was faster."""
        with self.lock:
            slot.review_at = AT_ONCE  # so that the return forgets the key
            return self.keys.setdefault(key, (slot, conn))[1]

    def long_from(self, checkout: Checkout) -> float:
        """When a hold is long, as a reading of the clock."""
        expected = checkout.expected_hold
        return checkout.acquired + (self.long_hold if expected is None else expected)

    def _flag(self, checkout: Checkout, now: float) -> None:
        checkout.flagged = True
        checkout.flagged_at = now
        self.long_holds += 1

    def flag_long_holds(self, now: float) -> list[Checkout]:
        """Mark those that have passed the threshold since the last look."""
        with self.lock:
            overdue = [hold for hold in self._holds() if not hold.flagged and now >= self.long_from(hold)]
            for checkout in overdue:
                self._flag(checkout, now)
            return overdue

    def next_deadline(self, max_idle: float) -> float:
        """When the maintenance is next needed, as a reading of the clock."""
        with self.lock:
            holds = [self.long_from(hold) for hold in self._holds() if not hold.flagged]
            lifetimes = [slot.expires for slot in self.idle]
            unused = [slot.idle_since + max_idle for slot in self.idle] if self.remaining > self.minconn else []
            return min((*holds, *lifetimes, *unused), default=NEVER)

    def park(self) -> bool:
        """Let the maintenance sleep until the next checkout, if nothing is out, set aside or being opened.

        Parked first, and looked second: a checkout pops first, and looks whether it is parked second.
        """
        with self.lock:
            self.parked = True
            if self.used or self.checking or self.closing or self.opening:
                self.parked = False
            return self.parked


def _acquired(checkout: Checkout) -> float:
    return checkout.acquired
