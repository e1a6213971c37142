"""The mechanics of hand-overs: which caller gets which connection, and what a release does with a connection."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from otel_pgpool.errors import LONGEST_HOLDERS, PoolClosed, TooManyRequests
from otel_pgpool.pool.checkout import NEVER, Attempt, Blocker, Checkout, Slot
from otel_pgpool.pool.holds import HoldTable
from otel_pgpool.pool.slots import CHECK_BYPASS_WINDOW
from otel_pgpool.pool.waiters import Queue, Waiter
from otel_pgpool.types import CheckoutPath, DiscardReason

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.types import PathName

NOT_HELD = "not_held"
"""The result of `Handover.release` if the checkout does not hold the connection any more."""

IDLE: PathName = CheckoutPath.IDLE.value
QUEUED: PathName = CheckoutPath.QUEUED.value
NEW: PathName = CheckoutPath.NEW.value


class State(enum.Enum):
    """The state of a pool."""

    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class Handover(HoldTable):
    """The idle connections, the queue, and the steps of a checkout and of a release."""

    __slots__ = ("growth_requested", "max_waiting", "name", "queue", "state", "suspended_at")

    def __init__(
        self, minconn: int, maxconn: int, long_hold: float = NEVER, max_waiting: int = 0, name: str = ""
    ) -> None:
        super().__init__(minconn, maxconn, long_hold)
        self.name = name  # for error messages
        self.state = State.NEW
        self.max_waiting = max_waiting
        self.queue = Queue()  # empty while a slot is idle, unless the pool is suspended
        self.suspended_at: float | None = None  # when the pool was suspended, if it is
        self.growth_requested = False  # a caller with timeout 0 has asked for one more connection

    # Checkout

    def try_acquire_idle(self, checkout: Checkout, slow: bool = False) -> connection | None:  # noqa: FBT001, FBT002 - a keyword-only argument makes every call slower
        """Acquire the idle connection that was used last, unless a caller is waiting in the queue.

        ``checkout.path`` stays None if the connection has to be checked before use: it was last known alive more than
        `CHECK_BYPASS_WINDOW` seconds ago, the maintenance thread is parked (the caller wakes it), or the caller asks
        for that (``slow``): in a repeated attempt, whose clock reading is out of date, and to rename the session. The
        caller then calls `accept` or `set_aside_for_closing`.
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
        checkout.held = True
        slot.checkout = checkout
        conn = slot.conn
        slot.conn = None
        # None if `collect_orphans` has removed the connection.
        if conn is not None and started - seen < CHECK_BYPASS_WINDOW and not self.parked and not slow:
            slot.idle_checkouts += 1
            checkout.path = IDLE
        return conn

    def accept(self, checkout: Checkout, now: float) -> None:
        """Complete a checkout whose connection from `try_acquire_idle` has passed its check."""
        with self.lock:
            slot = checkout.slot
            if slot.seen >= checkout.started and not slot.idle_checkouts and not slot.hold_seconds:
                checkout.path = NEW  # opened during this checkout, to replace a dead one
            else:
                checkout.path = IDLE if checkout.queued is None else QUEUED
            checkout.acquired = slot.seen = now
            self._count(checkout, now)

    def set_aside_for_closing(
        self, checkout: Checkout, attempt: Attempt | None = None, error: BaseException | None = None
    ) -> None:
        """Set aside an old or a dead connection from `try_acquire_idle`; count a dead one as a failed attempt."""
        with self.lock:
            del checkout.held
            checkout.slot.checkout = None
            self.closing.add(checkout.slot)
            if attempt is not None:
                checkout.retried(attempt, error)
                self.retries += 1
                self.connection_totals.lost += 1

    def join(self, checkout: Checkout, now: float) -> Waiter:
        """Put a checkout into the queue; the returned waiter may have been served already.

        Raises:
            PoolClosed: the pool is closed.
            TooManyRequests: the queue is full.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
            self._serve_waiters(now)
            is_unserved = not self.idle or self.is_suspended
            if checkout.queued is None and 0 < self.max_waiting <= len(self.queue) and is_unserved:
                raise TooManyRequests(
                    f"pool {self.name!r}: the queue is full: {len(self.queue)} waiting "
                    f"(max_waiting={self.max_waiting}), {self.used} of {self.maxconn} connections in use"
                    + (", the pool is suspended" if self.is_suspended else "")
                )
            if checkout.queued is None:
                checkout.queued = now
                if checkout.observer_data is not None:
                    checkout.blockers = [Blocker.of(hold, now) for hold in self._longest_holds(LONGEST_HOLDERS)]
                self.queued += 1
            checkout.expected_path = NEW if self.opening or len(self.members) < self.maxconn else QUEUED
            waiter = self.queue.join(checkout)
            self._serve_waiters(now)
            return waiter

    def _serve_waiters(self, now: float) -> None:
        """Serve waiters from the idle connections.

        A connection that was last known alive more than `CHECK_BYPASS_WINDOW` seconds ago has to be checked by the
        waiter, as in `try_acquire_idle`.
        """
        while self.idle and (waiter := self.queue.first()) is not None:
            try:
                slot = self.idle.pop()
            except IndexError:  # another thread has acquired it
                return
            conn, slot.conn = slot.conn, None
            if conn is not None:
                self._hand_over(waiter, slot, conn, now, QUEUED if now - slot.seen < CHECK_BYPASS_WINDOW else None)

    def leave(self, checkout: Checkout, waiter: Waiter | None) -> connection | None:
        """Remove a checkout from the queue; return the connection if the checkout was served before.

        The waiter is looked up by its checkout, because an interrupt may have hit before the caller got the waiter.
        """
        with self.lock:
            self.queue.leave(checkout)
            return None if waiter is None else waiter.conn

    def renew_waits(self) -> None:
        """Wake the waiters, which then wait on with the pool's present timeout. Each keeps its place in the queue."""
        with self.lock:
            for waiter in self.queue.values():
                waiter.wake()

    def has_check_for_caller(self) -> bool:
        """Return whether a caller that queues now is the next for a connection that is being checked. Takes no lock."""
        waiting = len(self.queue)
        return waiting < len(self.checking) and not self.is_suspended and not 0 < self.max_waiting <= waiting

    def request_growth(self, checkout: Checkout) -> None:
        """Request one more connection on behalf of a caller that does not wait for it."""
        with self.lock:
            self.growth_requested = self.remaining < self.maxconn and not self.is_suspended
            if self.growth_requested or self.opening:
                checkout.expected_path = NEW

    def count_failure(self, waited: float, *, timed_out: bool) -> None:
        """Count a checkout that ended without a hold after ``waited`` seconds."""
        with self.lock:
            self.wait_seconds += waited
            if timed_out:
                self.timeouts += 1
            else:
                self.errors += 1

    def _keep_or_evict(
        self, slot: Slot, conn: connection, now: float, path: PathName | None, reason: str | None = None
    ) -> str | None:
        """Hand a connection over or keep it idle, unless it has to be closed; return the reason if it has to."""
        if reason is None and now >= slot.review_at:
            reason = self._evict_reason(slot, now)
        if reason is None:
            self._hand_over_or_keep(slot, conn, now, path)
        else:
            self.closing.add(slot)
        return reason

    def _hand_over_or_keep(self, slot: Slot, conn: connection, now: float, path: PathName | None) -> None:
        """Hand a connection to the first waiter, or keep it idle if there are no waiters."""
        waiter = self.queue.first()
        if waiter is not None:
            self._hand_over(waiter, slot, conn, now, path)
        else:
            slot.conn = conn
            self.idle.append(slot)

    def _hand_over(self, waiter: Waiter, slot: Slot, conn: connection, now: float, path: PathName | None) -> None:
        """Hand a connection to the first waiter, and wake the waiter under the lock.

        The waiter is removed from the queue last, so that an exception raised in between does not leave it unserved.
        """
        checkout = waiter.checkout
        checkout.slot = slot
        queued = checkout.started if checkout.queued is None else checkout.queued
        checkout.acquired = now = max(now, queued)  # the waiter may have queued after the release began
        if checkout.trace_name is not None:
            path = None  # as for a check: the waiter renames the session, and calls `accept`
        checkout.path = path
        if path is not None:
            self._count(checkout, now)
        # No call before the last of these lines, so that an interrupt comes before all of them or after all.
        checkout.held = True
        slot.checkout = checkout
        waiter.conn = conn
        try:  # noqa: SIM105 - without a call of `suppress`, see above
            waiter.lock.release()
        except RuntimeError:  # `renew_waits` has woken the waiter, which has not run since
            pass
        self.queue.leave(checkout)

    def _count(self, checkout: Checkout, now: float) -> None:
        self.wait_seconds += now - checkout.started
        if checkout.path == IDLE:
            checkout.slot.idle_checkouts += 1
        else:
            self.served[str(checkout.path)] += 1

    # Suspension

    @property
    def is_suspended(self) -> bool:
        """Whether checkouts wait until the pool is resumed."""
        return self.suspended_at is not None

    def suspend(self, now: float) -> None:
        """Let checkouts wait from now on, whether connections are idle or not."""
        with self.lock:
            if self.suspended_at is None:
                self.suspended_at = now
            self.queue.suspend()

    def resume(self, now: float) -> None:
        """Serve waiters again, from the idle connections at first."""
        with self.lock:
            self.suspended_at = None
            self.queue.resume()
            self._serve_waiters(now)

    # Release

    def holds(self, checkout: Checkout) -> bool:
        """Return whether a checkout still holds its connection."""
        return checkout.is_held and checkout.slot in self.members

    def release(self, checkout: Checkout, conn: connection, now: float, reason: str | None = None) -> str | None:
        """Release a connection.

        Args:
            checkout: the checkout that held the connection.
            conn: the connection, with no transaction in progress.
            now: reading of the clock in seconds.
            reason: why the connection cannot be kept, if the caller knows of a reason.

        Returns:
            None if the connection is kept, otherwise the reason for which the caller has to close it; `NOT_HELD` if the
            checkout does not hold the connection any more.
        """
        try:
            del checkout.held
        except AttributeError:
            return NOT_HELD
        slot = checkout.slot
        held = now - checkout.acquired
        if reason is not None or self.queue or now >= slot.review_at or held >= self.bypass_below:
            return self._release_locked(checkout, conn, now, reason)
        slot.hold_seconds += held
        slot.checkout = None
        slot.seen = now
        slot.conn = conn
        self.idle.append(slot)
        if self.queue or now >= slot.review_at:
            return self._recheck(slot, now)
        return None

    def _release_locked(self, checkout: Checkout, conn: connection, now: float, reason: str | None) -> str | None:
        slot = checkout.slot
        with self.lock:
            if slot not in self.members:  # a parent process's, or closed as an orphan while this thread was suspended
                return slot.evict_reason if slot.evict_reason == DiscardReason.RECLAIMED else NOT_HELD
            held = now - checkout.acquired
            if not checkout.flagged and now >= self.long_from(checkout):
                self.flag(checkout, now)
            slot.hold_seconds += held
            slot.checkout = None
            self._forget_key(slot)
            if slot.ref() is None:  # the garbage collector cleared the weak reference, but the connection survived
                slot.track(conn)
            slot.seen, slot.returned = checkout.acquired, now
            if reason is not None:
                self.connection_totals.bad_returns += 1
            return self._keep_or_evict(slot, conn, now, QUEUED if held < CHECK_BYPASS_WINDOW else None, reason)

    def release_unused(self, checkout: Checkout, conn: connection, now: float, reason: str | None = None) -> str | None:
        """Release, as `release` does, a connection that a waiter received but that was neither used nor checked."""
        with self.lock:
            if not self.holds(checkout):
                return NOT_HELD
            del checkout.held
            slot = checkout.slot
            slot.checkout = None
            return self._keep_or_evict(slot, conn, now, None, reason)

    def _recheck(self, slot: Slot, now: float) -> str | None:
        """Recheck a slot that has become idle while a caller queued, or while the slot was marked for eviction."""
        with self.lock:
            self._serve_waiters(now)
            if now < slot.review_at or not self._move_from_idle(slot, self.checking):
                return None
            reason = self._evict_reason(slot, now)
            self.checking.discard(slot)
            if reason is None:
                self.idle.append(slot)
                return None
            self.closing.add(slot)
            return reason
