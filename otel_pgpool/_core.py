"""The pool's mechanics: slots, queue, limits and totals behind the only lock. No I/O, no psycopg2, no OpenTelemetry."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool._checkout import Attempt, Blocker, Checkout
from otel_pgpool._errors import LONGEST_HOLDERS, PoolClosed, TooManyRequests
from otel_pgpool._queue import Queue, Sleeper, Waiter
from otel_pgpool._slot import AT_ONCE, NEVER, Slot

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable, Sequence

    from psycopg2.extensions import connection

FRESH = 0.05
"""Seconds for which a connection just used is lent again without a look."""

GONE = "gone"
"""What a return answers when the connection is not this checkout's any more."""


class State(enum.Enum):
    """A pool's life."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Outage(NamedTuple):
    """The server cannot be reached. Times are readings of ``time.monotonic`` in s."""

    since: float
    attempts: int
    error: BaseException
    next_attempt: float


class Core:
    """Who has which slot, and who is next.

    Decisions are made and marked here, under the lock; whatever takes time is done by the caller after it. A slot is
    a member from the decision to connect until its connection is closed: never are there more than ``maxconn``
    members. One that is not idle, opening, checked or closing is used.
    """

    # The lock's law. It guards every attribute below. While it is held: no I/O, no log, no telemetry, no call of user
    # code, no wait. The garbage collector may run inside it, so this package's finalizers never take it (`Dropped`).
    # Methods named with an underscore expect their caller to hold it.
    #
    # A checkout that finds an idle connection, and a return that nobody waits for, do without it, by steps that are
    # atomic in themselves: list.pop gives a slot to one taker only, deleting `Checkout.lent` lets one return only, and
    # `Slot`'s own counters belong to its borrower. In between a slot is in no container, hence used: nobody lends it
    # twice, and no limit is exceeded. Each side first does its own step and then looks for the other's: a return
    # appends to `idle` and then looks at the queue, a waiter queues and then looks at `idle`; so one of them sees both.
    # `idle` is therefore never replaced, and `stats` may read at any time.
    def __init__(
        self,
        minconn: int,
        maxconn: int,
        *,
        max_waiting: int = 0,
        max_retries: int | None = None,
        long_hold: float = NEVER,
    ) -> None:
        self.lock = threading.Lock()
        self.state = State.NEW
        self.minconn = minconn
        self.maxconn = maxconn
        self.max_waiting = max_waiting
        self.max_retries = max_retries
        self.long_hold = long_hold

        self.members: set[Slot] = set()
        self.idle: list[Slot] = []  # last in, first out
        self.opening: set[Slot] = set()
        self.checking: set[Slot] = set()
        self.closing: set[Slot] = set()
        self.slots: dict[int, Slot] = {}  # the established ones, by id of the connection
        self.keys: dict[object, Slot] = {}  # of getconn(key)
        self.strays: set[tuple[Slot, float]] = set()  # in nobody's hands at the last look, and since when idle

        self.queue = Queue()  # empty while a slot is idle
        self.fillers: list[Sleeper] = []  # wait for minconn connections
        self.closers: list[Sleeper] = []  # wait until nothing is out
        self.grow = False  # a caller that would not wait asked for one more connection
        self.outage: Outage | None = None
        self.prober: object = None  # the one connector that tries during an outage
        self.parked = True  # the maintenance sleeps until the next checkout

        self.served: Counter[str] = Counter()  # checkouts by path; of the idle, those of past members
        self.queued = self.timeouts = self.errors = self.retries = self.long_holds = self.created = 0
        self.discarded: Counter[str] = Counter()
        self.wait_seconds = self.hold_seconds = 0.0

    @property
    def used(self) -> int:
        """Slots that are lent."""
        return len(self.members) - len(self.idle) - len(self.opening) - len(self.checking) - len(self.closing)

    @property
    def remaining(self) -> int:
        """Slots that are not on their way out."""
        return len(self.members) - len(self.closing)

    # Checkout

    def take(self, checkout: Checkout) -> connection | None:
        """Lend the connection used last, if one is idle and nobody queues for it.

        ``checkout.path`` stays None for one idle so long that the borrower must look at it first, and `confirm` it
        or `withdraw` it.
        """
        if not self.idle or self.queue:
            return None
        try:
            slot = self.idle.pop()
        except IndexError:  # another thread was faster
            return None
        checkout.slot = slot
        checkout.acquired = started = checkout.started
        checkout.lent = True
        slot.checkout = checkout
        conn = slot.conn
        slot.conn = None
        if conn is not None and started - slot.idle_since < FRESH:  # None: `recover` was faster
            slot.idle_checkouts += 1
            checkout.path = "idle"
        return conn

    def confirm(self, checkout: Checkout, now: float) -> None:
        """The connection taken is alive: hand it over."""
        with self.lock:
            checkout.slot.idle_checkouts += 1
            checkout.acquired = now
            checkout.path = "idle"
            self.wait_seconds += now - checkout.started

    def withdraw(self, checkout: Checkout, attempt: Attempt | None = None, error: BaseException | None = None) -> None:
        """The connection taken is too old, or dead, which is a failed attempt: it is to be closed."""
        with self.lock:
            del checkout.lent
            checkout.slot.checkout = None
            self.closing.add(checkout.slot)
            if attempt is not None:
                checkout.retried(attempt, error)
                self.retries += 1

    def join(self, checkout: Checkout, now: float) -> Waiter:
        """Queue; the waiter may be served on return.

        Raises:
            PoolClosed: the pool is closed.
            TooManyRequests: the queue is full.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed("connection pool is closed")
            self._match(now)
            if 0 < self.max_waiting <= len(self.queue) and not self.idle:
                raise TooManyRequests(
                    f"the queue is full: {len(self.queue)} waiting (max_waiting={self.max_waiting}), "
                    f"{self.used} of {self.maxconn} connections in use"
                )
            if checkout.queued is None:
                checkout.queued = now
                checkout.blockers = [
                    Blocker(hold, now - hold.acquired) for hold in self._holds()[:LONGEST_HOLDERS]
                ]
                self.queued += 1
            checkout.waits_for = "new" if self.opening or len(self.members) < self.maxconn else "queued"
            waiter = self.queue.join(checkout)
            self._match(now)
            return waiter

    def _match(self, now: float) -> None:
        """Serve the queue from what is idle."""
        while self.queue and self.idle:
            try:
                slot = self.idle.pop()
            except IndexError:  # taken meanwhile
                return
            conn, slot.conn = slot.conn, None
            if conn is not None:
                self._offer(slot, conn, now, "queued")

    def leave(self, waiter: Waiter) -> connection | None:
        """Leave the queue; the connection, where a hand-over came first."""
        with self.lock:
            self.queue.leave(waiter)
            return waiter.conn

    def ask_to_grow(self, checkout: Checkout) -> None:
        """Want one more connection on behalf of a caller that does not wait for it."""
        with self.lock:
            self.grow = self.remaining < self.maxconn
            checkout.waits_for = "new" if self.grow or self.opening else "queued"

    def _offer(self, slot: Slot, conn: connection, now: float, path: str) -> None:
        """Give a connection to the first waiter, or keep it. The waiter wakes inside the lock: nothing comes between."""
        if not self.queue:
            slot.conn = conn
            self.idle.append(slot)
            return
        waiter = self.queue.popleft()
        checkout = waiter.checkout
        slot.checkout = checkout
        checkout.slot = slot
        checkout.acquired = now
        checkout.path = path
        checkout.lent = True
        self.wait_seconds += now - checkout.started
        self.served[path] += 1
        waiter.serve(conn)

    # Return

    def holds(self, checkout: Checkout) -> bool:
        """Whether the connection is still this checkout's."""
        return hasattr(checkout, "lent") and checkout.slot in self.members

    def release(self, checkout: Checkout, conn: connection, now: float, reason: str | None = None) -> str | None:
        """Take a connection back.

        Args:
            checkout: whose it was.
            conn: the connection, settled.
            now: reading of the clock.
            reason: why it cannot stay, where the caller knows.

        Returns:
            None when it stays; the reason why it is to be closed; or `GONE`.
        """
        try:
            del checkout.lent
        except AttributeError:
            return GONE
        slot = checkout.slot
        held = now - checkout.acquired
        if reason is not None or self.queue or now >= slot.review_at or held >= self.long_hold or self.keys:
            return self._release_with_care(checkout, conn, now, reason)
        slot.hold_seconds += held
        slot.checkout = None
        slot.idle_since = now
        slot.conn = conn
        self.idle.append(slot)
        if self.queue or now >= slot.review_at:
            return self._reconsider(slot, now)
        return None

    def _release_with_care(self, checkout: Checkout, conn: connection, now: float, reason: str | None) -> str | None:
        slot = checkout.slot
        with self.lock:
            if slot not in self.members:
                return GONE
            held = now - checkout.acquired
            if held >= self.long_hold and not checkout.flagged:
                self._flag(checkout, now)
            slot.hold_seconds += held
            slot.checkout = None
            self._forget_key(slot)
            if reason is None and now >= slot.review_at:
                reason = self._review(slot, now)
            if reason is not None:
                self.closing.add(slot)
                return reason
            slot.idle_since = now
            self._offer(slot, conn, now, "queued")
            return None

    def _reconsider(self, slot: Slot, now: float) -> str | None:
        """Somebody has queued, or the slot was condemned, while it became idle."""
        with self.lock:
            self._match(now)
            if now < slot.review_at or not self._set_aside(slot, self.checking):
                return None
            reason = self._review(slot, now)
            self.checking.discard(slot)
            if reason is None:
                self.idle.append(slot)
                return None
            self.closing.add(slot)
            return reason

    def _flag(self, checkout: Checkout, now: float) -> None:
        checkout.flagged = True
        checkout.flagged_at = now
        self.long_holds += 1

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

    def _forget_key(self, slot: Slot) -> None:
        for key, keyed in list(self.keys.items()):
            if keyed is slot:
                del self.keys[key]

    def forget(self, slots: Iterable[Slot], reason: str) -> None:
        """The connections are closed: their places are free."""
        with self.lock:
            for slot in slots:
                self.closing.discard(slot)
                self._drop(slot, reason)
            self._notify_closers()

    def _drop(self, slot: Slot, reason: str) -> None:
        self.members.discard(slot)
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.served["idle"] += slot.idle_checkouts
        self.hold_seconds += slot.hold_seconds
        self.discarded[reason] += 1

    def reclaim(self, refs: Sequence[weakref.ref[connection]]) -> list[Checkout]:
        """Free the places of connections that their borrowers dropped."""
        with self.lock:
            lost = [
                (slot, slot.checkout)
                for slot in self.members - self.closing
                if slot.checkout is not None and any(slot.ref is ref for ref in refs)
            ]
            for slot, _checkout in lost:
                self._forget_key(slot)
                self._drop(slot, "reclaimed")
            self._notify_closers()
            return [checkout for _slot, checkout in lost]

    def recover(self) -> list[Slot]:
        """Set slots aside to be closed that an asynchronous exception lost between `idle` and a borrower.

        They have been in nobody's hands, unused, for two looks running. They are not lent again: should their borrower
        be alive after all, and merely slow, it must find itself without a connection and not share one.
        """
        with self.lock:
            elsewhere = {*self.idle, *self.opening, *self.checking, *self.closing}
            strays = {(slot, slot.idle_since) for slot in self.members - elsewhere if slot.checkout is None}
            lost = [slot for slot, _since in strays & self.strays]
            self.strays = strays
            self.closing.update(lost)
            return lost

    # Connecting

    def _wanted(self) -> bool:
        """Whether one more connection should be made now."""
        if self.state is not State.OPEN or len(self.members) >= self.maxconn:
            return False
        return len(self.opening) < max(len(self.queue), self.grow) or self.remaining < self.minconn

    def _claim(self) -> Slot | None:
        """Take the place of a new connection, if one is still wanted."""
        if not self._wanted():
            return None
        unserved = len(self.opening)
        slot = Slot(self.queue[unserved].checkout if unserved < len(self.queue) else None)
        self.grow = False
        self.opening.add(slot)
        self.members.add(slot)
        return slot

    def deliver(self, slot: Slot, conn: connection, now: float) -> tuple[str | None, Outage | None]:
        """A connection was made: give it to a waiter or keep it.

        Returns:
            The reason why it is to be closed at once, or None; and the outage that it ends, or None.
        """
        with self.lock:
            self.opening.discard(slot)
            slot.asked_by = None
            ended, self.outage = self.outage, None
            self.created += 1
            slot.serial = self.created
            self.slots[slot.key] = slot
            slot.idle_since = now
            reason = self._review(slot, now) if now >= slot.review_at else None
            if reason is not None:
                self.closing.add(slot)
            else:
                self._offer(slot, conn, now, "new")
            if len(self.idle) + self.used >= self.minconn:
                self._notify_fillers()
            self._notify_closers()
            return reason, ended

    def miss(self, slot: Slot, attempt: Attempt, error: BaseException) -> bool:
        """A connect failed: everyone who waits lived through it. True when this begins an outage."""
        with self.lock:
            self.opening.discard(slot)
            self.members.discard(slot)
            slot.asked_by = None
            began = self.outage is None
            since, attempts = (attempt.at, 0) if self.outage is None else self.outage[:2]
            self.outage = Outage(since, attempts + 1, error, attempt.at + attempt.delay)
            self.retries += len(self.queue)
            for waiter in list(self.queue):
                waiter.checkout.retried(attempt, error)
                if self.exhausted(waiter.checkout):
                    self.queue.fail(waiter, error)
            self._notify_fillers(error)
            self._notify_closers()
            return began

    def exhausted(self, checkout: Checkout) -> bool:
        """Whether the checkout has failed as often as it may."""
        return self.max_retries is not None and checkout.retries >= max(1, self.max_retries)

    # Waiting for the whole pool

    def fill(self) -> Sleeper | None:
        """Wait for ``minconn`` connections, or the first error of a connect; None when they are there."""
        with self.lock:
            if len(self.idle) + self.used >= self.minconn:
                return None
            sleeper = Sleeper()
            self.fillers.append(sleeper)
            return sleeper

    def quiet(self) -> Sleeper | None:
        """Wait until nothing is lent or being made; None when nothing is."""
        with self.lock:
            if not self.used and not self.opening:
                return None
            sleeper = Sleeper()
            self.closers.append(sleeper)
            return sleeper

    def _notify_fillers(self, error: BaseException | None = None) -> None:
        while self.fillers:
            self.fillers.pop().wake(error)

    def _notify_closers(self) -> None:
        while self.closers and not self.used and not self.opening:
            self.closers.pop().wake()

    # The whole pool

    def open(self) -> None:
        """Let it serve.

        Raises:
            PoolClosed: it was closed.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed("connection pool is closed")
            self.state = State.OPEN

    def unopen(self) -> list[Slot]:
        """Opening has failed: as before it. The idle are returned to be closed."""
        with self.lock:
            if self.state is State.OPEN:
                self.state = State.NEW
            self.outage = None
            return self._condemn("closed")

    def close(self) -> list[Slot]:
        """Refuse new checkouts, fail the waiters; the idle are returned to be closed, the rest when they come back."""
        with self.lock:
            self.state = State.CLOSED
            for waiter in list(self.queue):
                self.queue.fail(waiter, PoolClosed("connection pool was closed while waiting"))
            self._notify_fillers(PoolClosed("connection pool was closed"))
            return self._condemn("closed")

    def drain(self, reason: str) -> list[Slot]:
        """Let every connection go: the idle are returned to be closed, the rest when they come back."""
        with self.lock:
            return self._condemn(reason)

    def _condemn(self, reason: str) -> list[Slot]:
        for slot in self.members:
            slot.condemn(reason)
        return self._shed(len(self.idle))

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

    def resize(self, minconn: int, maxconn: int) -> list[Slot]:
        """Change the limits; the surplus idle are returned to be closed, surplus used ones go when they come back."""
        with self.lock:
            self.minconn, self.maxconn = minconn, maxconn
            shed = self._shed(self.remaining - maxconn)
            if self.remaining > maxconn:
                for slot in self.members:
                    slot.review_at = AT_ONCE
            return shed

    # Looking at idle connections

    def idle_slots(self) -> list[tuple[Slot, float]]:
        """Those idle now, each with the moment since when."""
        return [(slot, slot.idle_since) for slot in self.idle.copy()]

    def inspect(self, suspects: Iterable[tuple[Slot, float]]) -> list[Slot]:
        """Set aside those that have not been lent meanwhile."""
        with self.lock:
            return [
                slot for slot, since in suspects if slot.idle_since == since and self._set_aside(slot, self.checking)
            ]

    def restore(self, slot: Slot, now: float) -> str | None:
        """A connection set aside is well: offer it again; the reason why it is to be closed, or None."""
        with self.lock:
            self.checking.discard(slot)
            reason = self._review(slot, now) if now >= slot.review_at else None
            if reason is not None:
                self.closing.add(slot)
            elif slot.conn is not None:
                conn, slot.conn = slot.conn, None
                self._offer(slot, conn, now, "queued")
            return reason

    def reject(self, slot: Slot) -> None:
        """A connection set aside is dead: it is to be closed."""
        with self.lock:
            self.checking.discard(slot)
            self.closing.add(slot)

    # Background

    def retire(self, now: float, max_idle: float) -> dict[str, list[Slot]]:
        """Set idle connections aside to be closed, by reason: past their lifetime, or idle too long above the minimum."""
        with self.lock:
            aged = [slot for slot in self.idle if now >= slot.expires]
            expired = [slot for slot in aged if self._set_aside(slot, self.closing)]
            unused = [slot for slot in self.idle if now - slot.idle_since >= max_idle]
            spare = max(0, self.remaining - self.minconn)
            return {
                "expired": expired,
                "idle": [slot for slot in unused[:spare] if self._set_aside(slot, self.closing)],
            }

    def flag_long_holds(self, now: float) -> list[Checkout]:
        """Mark those that have passed the threshold since the last look."""
        with self.lock:
            overdue = [
                hold for hold in self._holds() if not hold.flagged and now - hold.acquired >= self.long_hold
            ]
            for checkout in overdue:
                self._flag(checkout, now)
            return overdue

    def next_deadline(self, max_idle: float) -> float:
        """When the maintenance is next needed, as a reading of the clock."""
        with self.lock:
            holds = [hold.acquired + self.long_hold for hold in self._holds() if not hold.flagged]
            lifetimes = [slot.expires for slot in self.idle]
            unused = [slot.idle_since + max_idle for slot in self.idle] if self.remaining > self.minconn else []
            return min((*holds, *lifetimes, *unused), default=NEVER)

    def park(self) -> bool:
        """Let the maintenance sleep until the next checkout, if nothing is out."""
        with self.lock:
            self.parked = not self.used
            return self.parked

    # Who holds what

    def _holds(self) -> list[Checkout]:
        holds = [
            slot.checkout for slot in self.members if slot.checkout is not None and slot.checkout.path is not None
        ]
        holds.sort(key=_acquired)
        return holds

    def holds_now(self) -> list[Checkout]:
        """The checkouts that hold a connection, the longest first."""
        with self.lock:
            return self._holds()

    def oldest_hold(self, now: float) -> float:
        """Age in s of the oldest hold still out, 0 if none. Takes no lock."""
        holds = [slot.checkout for slot in self.members.copy()]
        oldest = min((hold.acquired for hold in holds if hold is not None and hold.path is not None), default=now)
        return max(0.0, now - oldest)

    def checkouts(self) -> dict[str, int]:
        """How many were served, by path. Takes no lock."""
        idle = sum(slot.idle_checkouts for slot in self.members.copy())
        return {"idle": self.served["idle"] + idle, "queued": self.served["queued"], "new": self.served["new"]}

    def total_hold(self) -> float:
        """Seconds of all holds that have ended. Takes no lock."""
        return self.hold_seconds + sum(slot.hold_seconds for slot in self.members.copy())

    def by_key(self, key: object) -> Slot | None:
        """The slot lent by ``getconn(key)``."""
        with self.lock:
            return self.keys.get(key)


def _acquired(checkout: Checkout) -> float:
    return checkout.acquired
