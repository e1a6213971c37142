"""The pool's mechanics: slots, queue, limits and totals behind one lock. Without I/O, psycopg2 and OpenTelemetry."""

from __future__ import annotations

import enum
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.errors import LONGEST_HOLDERS, PoolClosed, TooManyRequests
from otel_pgpool.pool.checkout import Attempt, Blocker, Checkout
from otel_pgpool.pool.slot import AT_ONCE, NEVER, Slot
from otel_pgpool.pool.slots import FRESH, Members
from otel_pgpool.pool.waiters import Queue, Sleeper, Waiter

if TYPE_CHECKING:
    from psycopg2.extensions import connection

GONE = "gone"
"""The answer of `Core.release` if the checkout does not hold the connection any more."""


class State(enum.Enum):
    """The state of a pool."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Outage(NamedTuple):
    """A period in which no connection can be opened. Times are readings of ``time.monotonic`` in seconds."""

    since: float
    attempts: int
    error: BaseException
    message: str
    """Text of the error, free of secrets."""
    next_attempt: float
    is_refusal: bool = False
    """Whether the server was reached and refused the last attempt."""


class Core(Members):
    """The mechanics of a pool: which caller gets which slot, and in which order.

    This class decides and marks the decision, under the lock. The caller then does what takes time, such as connecting
    and closing, without the lock. The rules of the lock are written beside it in `Members`.
    """

    __slots__ = (  # CPython stores so many attributes outside the object otherwise, which makes access slower
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
        self.name = name  # for error messages
        self.state = State.NEW
        self.max_waiting = max_waiting
        self.max_retries = max_retries

        self.queue = Queue()  # empty while a slot is idle
        self.fillers: list[Sleeper] = []  # callers that wait for minconn connections
        self.grow = False  # a caller with timeout 0 has asked for one more connection
        self.outage: Outage | None = None
        self.prober: object = None  # the only connector that connects during an outage

        self.queued = self.timeouts = self.errors = self.retries = 0
        self.wait_seconds = 0.0

    # Checkout

    def take(self, checkout: Checkout, again: bool = False) -> connection | None:  # noqa: FBT001, FBT002 - a keyword-only argument makes every call slower
        """Take the idle connection that was used last, unless a caller is waiting in the queue.

        ``checkout.path`` stays None if the connection has to be checked before use: it was last known alive more than
        `FRESH` seconds ago, the maintenance thread is parked (the caller wakes it), or this is a repeated attempt
        (``again``), whose clock reading is out of date. The caller then calls `confirm` or `withdraw`.
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
        if conn is not None and started - seen < FRESH and not self.parked and not again:  # None: taken by `recover`
            slot.idle_checkouts += 1
            checkout.path = "idle"
        return conn

    def confirm(self, checkout: Checkout, now: float) -> None:
        """Hand over a taken connection that has proved to be alive."""
        with self.lock:
            slot = checkout.slot
            if slot.seen >= checkout.started and not slot.idle_checkouts and not slot.hold_seconds:
                checkout.path = "new"  # opened during this checkout, to replace a dead one
            else:
                checkout.path = "idle" if checkout.queued is None else "queued"
            checkout.acquired = slot.seen = now
            self._count(checkout, now)

    def withdraw(self, checkout: Checkout, attempt: Attempt | None = None, error: BaseException | None = None) -> None:
        """Set aside, for closing, a taken connection that is too old or dead; count a dead one as a failed attempt."""
        with self.lock:
            del checkout.lent
            checkout.slot.checkout = None
            self.closing.add(checkout.slot)
            if attempt is not None:
                checkout.retried(attempt, error)
                self.retries += 1

    def join(self, checkout: Checkout, now: float) -> Waiter:
        """Put a checkout into the queue; the returned waiter may have been served already.

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
        """Serve waiters from the idle connections.

        A connection that was last known alive more than `FRESH` seconds ago has to be checked by the waiter, as in
        `take`.
        """
        while self.idle and (waiter := self.queue.first()) is not None:
            try:
                slot = self.idle.pop()
            except IndexError:  # another thread has taken it
                return
            conn, slot.conn = slot.conn, None
            if conn is not None:
                self._serve(waiter, slot, conn, now, "queued" if now - slot.seen < FRESH else None)

    def leave(self, checkout: Checkout, waiter: Waiter | None) -> connection | None:
        """Remove a checkout from the queue; return the connection if one was handed over before.

        The waiter is looked up by its checkout, because an interrupt may have hit before the caller got the waiter.
        """
        with self.lock:
            self.queue.leave(checkout)
            return None if waiter is None else waiter.conn

    def ask_to_grow(self, checkout: Checkout) -> None:
        """Request one more connection on behalf of a caller that does not wait for it."""
        with self.lock:
            self.grow = self.remaining < self.maxconn
            if self.grow or self.opening:
                checkout.waits_for = "new"

    def count_failure(self, waited: float, *, timed_out: bool) -> None:
        """Count a checkout that ended without a hold after ``waited`` seconds."""
        with self.lock:
            self.wait_seconds += waited
            if timed_out:
                self.timeouts += 1
            else:
                self.errors += 1

    def _offer(self, slot: Slot, conn: connection, now: float, path: str | None) -> None:
        """Hand a connection to the first waiter, or keep it idle if nobody waits."""
        waiter = self.queue.first()
        if waiter is not None:
            self._serve(waiter, slot, conn, now, path)
        else:
            slot.conn = conn
            self.idle.append(slot)

    def _serve(self, waiter: Waiter, slot: Slot, conn: connection, now: float, path: str | None) -> None:
        """Hand a connection to the first waiter, and wake the waiter under the lock.

        The waiter is removed from the queue last, so that an exception raised in between does not leave it unserved.
        """
        checkout = waiter.checkout
        checkout.slot = slot
        queued = checkout.started if checkout.queued is None else checkout.queued
        checkout.acquired = now = max(now, queued)  # the waiter may have queued after the return began
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
        """Return whether a checkout still holds its connection."""
        return hasattr(checkout, "lent") and checkout.slot in self.members

    def release(self, checkout: Checkout, conn: connection, now: float, reason: str | None = None) -> str | None:
        """Take back a connection.

        Args:
            checkout: the checkout that held the connection.
            conn: the connection, with no transaction in progress.
            now: reading of the clock in seconds.
            reason: why the connection cannot be kept, if the caller knows of a reason.

        Returns:
            None if the connection is kept, otherwise the reason for which the caller has to close it; `GONE` if the
            checkout does not hold the connection any more.
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
            if slot.ref() is None:  # the garbage collector cleared the weak reference, but the connection survived
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
        """Take back a connection that was handed over but neither used nor checked; otherwise like `release`."""
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
        """Recheck a slot that has become idle while a caller queued, or while the slot was marked for eviction."""
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
        """Return whether another connection should be opened now."""
        if self.state is not State.OPEN or len(self.members) >= self.maxconn:
            return False
        if self.outage is not None and not self.opening:  # one attempt stays in progress until the server is reached
            return True
        return len(self.opening) < max(len(self.queue), self.grow) or self.remaining < self.minconn

    def park(self) -> bool:
        """Park the maintenance thread, as `Members.park` does, unless a caller waits or a connection is wanted.

        The maintenance thread has to retry connectors whose thread could not be started or has died.
        """
        with self.lock:
            return not self.queue and not self._wanted() and super().park()

    def _claim(self) -> Slot | None:
        """Reserve a slot for a new connection if one is still wanted."""
        if not self._wanted():
            return None
        unserved = len(self.opening)
        slot = Slot(next(islice(self.queue, unserved, None), None))
        self.grow = False
        self.opening.add(slot)
        self._enter(slot)
        return slot

    def deliver(self, slot: Slot, conn: connection, now: float) -> tuple[str | None, Outage | None]:
        """Hand a newly opened connection to a waiter, or keep it idle.

        Returns:
            The reason why the caller has to close the connection, or None; and the outage that this connection ends, or
            None.
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
        """Count a failed connect, for the pool and for each waiter.

        Args:
            slot: the slot reserved for the connection.
            attempt: the failed attempt.
            error: the error that it raised.
            began: when the attempt began, as a reading of the clock.
            is_refusal: whether the server was reached and refused.

        Returns:
            Whether an outage starts; and the outage that ends, because the server was reached again and refused.
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
        """Return whether a checkout has reached ``max_retries``."""
        return self.max_retries is not None and checkout.retries >= max(1, self.max_retries)

    # Waiting for the whole pool

    def fill(self) -> Sleeper | None:
        """Register the caller to be woken at ``minconn`` connections or a failed connect; None if they are open."""
        with self.lock:
            if len(self.idle) + self.used >= self.minconn:
                return None
            sleeper = Sleeper()
            self.fillers.append(sleeper)
            return sleeper

    def stop_filling(self, sleeper: Sleeper) -> None:
        """Remove a caller that does not wait for ``minconn`` connections any more."""
        with self.lock, suppress(ValueError):  # removed already, as it was woken
            self.fillers.remove(sleeper)

    def _notify_if_filled(self) -> None:
        if len(self.idle) + self.used >= self.minconn:
            self._notify_fillers()

    def _notify_fillers(self, error: BaseException | None = None) -> None:
        while self.fillers:
            self.fillers.pop().wake(error)

    # The whole pool

    def open(self) -> None:
        """Open the pool for checkouts.

        Raises:
            PoolClosed: the pool is closed.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
            self.state = State.OPEN

    def unopen(self) -> list[Slot]:
        """Undo `open` after a failure; return the idle slots, which the caller has to close."""
        with self.lock:
            if self.state is State.OPEN and not self.queue:  # a pool with waiters stays open for them
                self.state = State.NEW
                self.outage = None
            return self._condemn("closed")

    def close(self) -> list[Slot]:
        """Refuse new checkouts and fail the waiters; return the idle slots, which the caller has to close.

        The other slots are closed when their connections are returned.
        """
        with self.lock:
            self.state = State.CLOSED
            for waiter in list(self.queue.values()):
                self.queue.fail(waiter, PoolClosed(f"pool {self.name!r}: connection pool was closed while waiting"))
            self._notify_fillers(PoolClosed(f"pool {self.name!r}: connection pool was closed"))
            return self._condemn("closed")

    def drain(self, reason: str) -> list[Slot]:
        """Mark every connection for eviction; return the idle slots, which the caller has to close.

        The other slots are closed when their connections are returned.
        """
        with self.lock:
            return self._condemn(reason)

    def _condemn(self, reason: str) -> list[Slot]:
        for slot in self.members:
            slot.condemn(reason)
        return self._shed(len(self.idle))

    def resize(self, minconn: int, maxconn: int) -> list[Slot]:
        """Change the limits; return surplus idle slots, which the caller has to close.

        Surplus used slots are closed when their connections are returned.
        """
        with self.lock:
            self.minconn, self.maxconn = minconn, maxconn
            if self.remaining > maxconn:  # before the idle slots are removed, so that a return in between sees it
                for slot in self.members:
                    slot.review_at = AT_ONCE
            shed = self._shed(self.remaining - maxconn)
            if len(self.members) >= maxconn:  # no further connect is attempted, which could end the outage
                self.outage = None
            self._notify_if_filled()
            return shed

    # Checking idle connections

    def restore(self, slot: Slot, now: float) -> str | None:
        """Make a checked connection available again; return the reason if the caller has to close it instead."""
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
