"""The pool's mechanics: slots, queue, limits and totals behind the only lock. No I/O, no psycopg2, no OpenTelemetry."""

from __future__ import annotations

import enum
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool._checkout import Attempt, Blocker, Checkout
from otel_pgpool._errors import LONGEST_HOLDERS, PoolClosed, TooManyRequests
from otel_pgpool._members import FRESH, Members
from otel_pgpool._queue import Queue, Sleeper, Waiter
from otel_pgpool._slot import AT_ONCE, NEVER, Slot

if TYPE_CHECKING:
    from psycopg2.extensions import connection

GONE = "gone"
"""What a return answers when the connection is not this checkout's any more."""


class State(enum.Enum):
    """A pool's life."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Outage(NamedTuple):
    """No connection can be made. Times are readings of ``time.monotonic`` in s."""

    since: float
    attempts: int
    error: BaseException
    message: str
    """What may be told of the error."""
    next_attempt: float
    is_refusal: bool = False
    """Whether the server was reached, and refused the last attempt."""


class Core(Members):
    """Who gets which slot, and who is next.

    Decisions are made and marked here, under the lock; whatever takes time is done by the caller after it. The lock's
    law stands in `Members`, on the lock.
    """

    __slots__ = (  # more attributes than CPython keeps at hand in a dictionary
        "errors",
        "fillers",
        "grow",
        "max_retries",
        "max_waiting",
        "name",
        "outage",
        "prober",
        "queue",
        "queued",
        "retries",
        "state",
        "timeouts",
        "wait_seconds",
    )

    def __init__(
        self,
        minconn: int,
        maxconn: int,
        *,
        max_waiting: int = 0,
        max_retries: int | None = None,
        long_hold: float = NEVER,
        name: str = "",
    ) -> None:
        super().__init__(minconn, maxconn, long_hold)
        self.name = name  # for its errors
        self.state = State.NEW
        self.max_waiting = max_waiting
        self.max_retries = max_retries

        self.queue = Queue()  # empty while a slot is idle
        self.fillers: list[Sleeper] = []  # wait for minconn connections
        self.grow = False  # a caller that would not wait asked for one more connection
        self.outage: Outage | None = None
        self.prober: object = None  # the one connector that tries during an outage

        self.queued = self.timeouts = self.errors = self.retries = 0
        self.wait_seconds = 0.0

    # Checkout

    def take(self, checkout: Checkout, again: bool = False) -> connection | None:  # noqa: FBT001, FBT002 - an argument by name alone makes every call of a function dearer
        """Lend the connection used last, if one is idle and nobody queues for it.

        ``checkout.path`` stays None for one that nobody has seen alive for `FRESH`: the borrower must look at it
        first, and `confirm` it or `withdraw` it. So it does while the maintenance is parked, which it then wakes, and
        when it asks ``again``, its own clock having gone on.
        """
        if self.queue:
            return None
        try:
            slot = self.idle.pop()
        except IndexError:
            return None
        checkout.slot = slot
        started, seen = checkout.started, slot.seen
        checkout.acquired = started if started > seen else seen  # noqa: FURB136 - a call of max costs 5 % of a checkout
        checkout.lent = True
        slot.checkout = checkout
        conn = slot.conn
        slot.conn = None
        if conn is not None and started - seen < FRESH and not self.parked and not again:  # None: `recover` was faster
            slot.idle_checkouts += 1
            checkout.path = "idle"
        return conn

    def confirm(self, checkout: Checkout, now: float) -> None:
        """The connection taken is alive: hand it over."""
        with self.lock:
            slot = checkout.slot
            if slot.seen >= checkout.started and not slot.idle_checkouts and not slot.hold_seconds:
                checkout.path = "new"  # made meanwhile, in the place of one that it found dead
            else:
                checkout.path = "idle" if checkout.queued is None else "queued"
            checkout.acquired = slot.seen = now
            self._count(checkout, now)

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
                raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
            self._match(now)
            if checkout.queued is None and 0 < self.max_waiting <= len(self.queue) and not self.idle:
                raise TooManyRequests(
                    f"pool {self.name!r}: the queue is full: {len(self.queue)} waiting "
                    f"(max_waiting={self.max_waiting}), {self.used} of {self.maxconn} connections in use"
                )
            if checkout.queued is None:
                checkout.queued = now
                if checkout.observed is not None:
                    checkout.blockers = [Blocker.of(hold, now) for hold in self._holds()[:LONGEST_HOLDERS]]
                self.queued += 1
            checkout.waits_for = "new" if self.opening or len(self.members) < self.maxconn else "queued"
            waiter = self.queue.join(checkout)
            self._match(now)
            return waiter

    def _match(self, now: float) -> None:
        """Serve the queue from what is idle; one not seen alive for long comes unproven, as from `take`."""
        while self.idle and (waiter := self.queue.first()) is not None:
            try:
                slot = self.idle.pop()
            except IndexError:  # taken meanwhile
                return
            conn, slot.conn = slot.conn, None
            if conn is not None:
                self._serve(waiter, slot, conn, now, "queued" if now - slot.seen < FRESH else None)

    def leave(self, checkout: Checkout, waiter: Waiter | None) -> connection | None:
        """Leave the queue; the connection, where a hand-over came first.

        An interrupt may have come before the caller knew its waiter, which is then found by its checkout.
        """
        with self.lock:
            self.queue.leave(checkout)
            return None if waiter is None else waiter.conn

    def ask_to_grow(self, checkout: Checkout) -> None:
        """Want one more connection on behalf of a caller that does not wait for it."""
        with self.lock:
            self.grow = self.remaining < self.maxconn
            if self.grow or self.opening:
                checkout.waits_for = "new"

    def count_failure(self, waited: float, *, timed_out: bool) -> None:
        """Count a checkout that ended without a hold, after so many seconds."""
        with self.lock:
            self.wait_seconds += waited
            if timed_out:
                self.timeouts += 1
            else:
                self.errors += 1

    def _offer(self, slot: Slot, conn: connection, now: float, path: str | None) -> None:
        """Give a connection to the first waiter, or keep it."""
        waiter = self.queue.first()
        if waiter is not None:
            self._serve(waiter, slot, conn, now, path)
        else:
            slot.conn = conn
            self.idle.append(slot)

    def _serve(self, waiter: Waiter, slot: Slot, conn: connection, now: float, path: str | None) -> None:
        """Give a connection to the first waiter, who wakes inside the lock.

        It leaves the queue only then, so that an exception that comes between costs it nothing.
        """
        checkout = waiter.checkout
        checkout.slot = slot
        queued = checkout.started if checkout.queued is None else checkout.queued
        checkout.acquired = now = max(now, queued)  # it may have come after the return had begun
        checkout.path = path
        checkout.lent = True
        slot.checkout = checkout
        if path is not None:
            self._count(checkout, now)
        waiter.serve(conn)
        self.queue.leave(checkout)

    def _count(self, checkout: Checkout, now: float) -> None:
        self.wait_seconds += now - checkout.started
        if checkout.path == "idle":
            checkout.slot.idle_checkouts += 1
        else:
            self.served[str(checkout.path)] += 1

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
        if reason is not None or self.queue or now >= slot.review_at or held >= self.brief:
            return self._release_with_care(checkout, conn, now, reason)
        slot.hold_seconds += held
        slot.checkout = None
        slot.seen = now
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
            if not checkout.flagged and now >= self.long_from(checkout):
                self._flag(checkout, now)
            slot.hold_seconds += held
            slot.checkout = None
            self._forget_key(slot)
            if slot.ref() is None:  # the collector has spoken too early
                slot.tie(conn)
            if reason is None and now >= slot.review_at:
                reason = self._review(slot, now)
            if reason is not None:
                self.closing.add(slot)
                return reason
            slot.seen, slot.returned = checkout.acquired, now
            self._offer(slot, conn, now, "queued" if held < FRESH else None)
            return None

    def put_back(self, checkout: Checkout, conn: connection, now: float) -> str | None:
        """Take back a connection that its borrower never saw, nor looked at; otherwise as `release`."""
        with self.lock:
            if not self.holds(checkout):
                return GONE
            del checkout.lent
            slot = checkout.slot
            slot.checkout = None
            reason = self._review(slot, now) if now >= slot.review_at else None
            if reason is not None:
                self.closing.add(slot)
            else:
                self._offer(slot, conn, now, None)
            return reason

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

    # Connecting

    def _wanted(self) -> bool:
        """Whether one more connection should be made now."""
        if self.state is not State.OPEN or len(self.members) >= self.maxconn:
            return False
        if self.outage is not None and not self.opening:  # until the server is reached once
            return True
        return len(self.opening) < max(len(self.queue), self.grow) or self.remaining < self.minconn

    def park(self) -> bool:
        """Likewise, if nobody waits and no connection is wanted: the thread that makes it may not start, or die."""
        with self.lock:
            return not self.queue and not self._wanted() and super().park()

    def _claim(self) -> Slot | None:
        """Take the place of a new connection, if one is still wanted."""
        if not self._wanted():
            return None
        unserved = len(self.opening)
        slot = Slot(next(islice(self.queue, unserved, None), None))
        self.grow = False
        self.opening.add(slot)
        self._enter(slot)
        return slot

    def deliver(self, slot: Slot, conn: connection, now: float) -> tuple[str | None, Outage | None]:
        """A connection was made: give it to a waiter or keep it.

        Returns:
            The reason why it is to be closed at once, or None; and what it ends, or None.
        """
        with self.lock:
            self.opening.discard(slot)
            slot.asked_by = None
            ended, self.outage = self.outage, None
            self.created += 1
            slot.serial = self.created
            self.slots[slot.key] = slot
            slot.seen = now
            slot.review_at = min(slot.review_at, slot.expires)
            reason = self._review(slot, now) if now >= slot.review_at else None
            if reason is not None:
                self.closing.add(slot)
            else:
                self._offer(slot, conn, now, "new")
            self._notify_if_filled()
            self._notify_closers()
            return reason, ended

    def miss(
        self,
        slot: Slot,
        attempt: Attempt,
        error: BaseException,
        *,
        began: float | None = None,
        is_refusal: bool = False,
    ) -> tuple[bool, Outage | None]:
        """Count a failed connect, which began then, for everyone who waits.

        Returns:
            Whether the server is out of reach from now on; and the outage that ends, as the server has refused it.
        """
        with self.lock:
            self.opening.discard(slot)
            self._leave(slot)
            slot.asked_by = None
            before = self.outage
            since, attempts = attempt.at if began is None else began, 0
            if before is not None and before.is_refusal == is_refusal:
                since, attempts = before.since, before.attempts
            was_reached = before is None or before.is_refusal
            self.outage = Outage(since, attempts + 1, error, attempt.message, attempt.at + attempt.delay, is_refusal)
            self.retries += len(self.queue)
            for waiter in list(self.queue.values()):
                waiter.checkout.retried(attempt, error)
                if self.exhausted(waiter.checkout):
                    self.queue.fail(waiter, error)
            self._notify_fillers(error)
            self._notify_closers()
            return was_reached and not is_refusal, None if was_reached or not is_refusal else before

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

    def stop_filling(self, sleeper: Sleeper) -> None:
        """It waits no longer."""
        with self.lock, suppress(ValueError):  # woken meanwhile
            self.fillers.remove(sleeper)

    def _notify_if_filled(self) -> None:
        if len(self.idle) + self.used >= self.minconn:
            self._notify_fillers()

    def _notify_fillers(self, error: BaseException | None = None) -> None:
        while self.fillers:
            self.fillers.pop().wake(error)

    # The whole pool

    def open(self) -> None:
        """Let it serve.

        Raises:
            PoolClosed: it was closed.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
            self.state = State.OPEN

    def unopen(self) -> list[Slot]:
        """Opening has failed: as before it. The idle are returned to be closed."""
        with self.lock:
            if self.state is State.OPEN and not self.queue:  # those who wait go on waiting
                self.state = State.NEW
                self.outage = None
            return self._condemn("closed")

    def close(self) -> list[Slot]:
        """Refuse new checkouts, fail the waiters; the idle are returned to be closed, the rest when they come back."""
        with self.lock:
            self.state = State.CLOSED
            for waiter in list(self.queue.values()):
                self.queue.fail(waiter, PoolClosed(f"pool {self.name!r}: connection pool was closed while waiting"))
            self._notify_fillers(PoolClosed(f"pool {self.name!r}: connection pool was closed"))
            return self._condemn("closed")

    def drain(self, reason: str) -> list[Slot]:
        """Let every connection go: the idle are returned to be closed, the rest when they come back."""
        with self.lock:
            return self._condemn(reason)

    def _condemn(self, reason: str) -> list[Slot]:
        for slot in self.members:
            slot.condemn(reason)
        return self._shed(len(self.idle))

    def resize(self, minconn: int, maxconn: int) -> list[Slot]:
        """Change the limits; the surplus idle are returned to be closed, surplus used ones go when they come back."""
        with self.lock:
            self.minconn, self.maxconn = minconn, maxconn
            if self.remaining > maxconn:  # before the idle are shed: a return in between must see it
                for slot in self.members:
                    slot.review_at = AT_ONCE
            shed = self._shed(self.remaining - maxconn)
            if len(self.members) >= maxconn:  # nobody will try the server again, and nobody needs to
                self.outage = None
            self._notify_if_filled()
            return shed

    # Looking at idle connections

    def restore(self, slot: Slot, now: float) -> str | None:
        """A connection set aside is well: offer it again; the reason why it is to be closed, or None."""
        with self.lock:
            if slot not in self.checking:
                return None
            reason = self._review(slot, now) if now >= slot.review_at else None
            if reason is not None:
                self.closing.add(slot)
            self.checking.discard(slot)
            if reason is None and slot.conn is not None:
                slot.seen = now
                conn, slot.conn = slot.conn, None
                self._offer(slot, conn, now, "queued")
                self._notify_if_filled()
            return reason
