"""The pool's mechanics: slots, queue, limits and totals behind one lock, without I/O, psycopg2 or OpenTelemetry.

The mechanics are one object, because one lock guards them, and four classes, each built on the one before: `SlotTable`
(the sets between which slots move, and the rules of the lock), `HoldTable` (which checkout holds which connection),
`Handover` (idle connections, queue, checkout and release) and `Core` (opening connections, and the whole pool).
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from otel_pgpool.errors import PoolClosed
from otel_pgpool.pool.checkout import AT_ONCE, NEVER, Attempt, Checkout, Slot
from otel_pgpool.pool.figures import COUNTERS, make_stats
from otel_pgpool.pool.handover import NEW, NOT_HELD, QUEUED, Handover, State
from otel_pgpool.pool.outage import Outage, OutageChange, after_failure, is_unreachable
from otel_pgpool.pool.waiters import OneShotEvent
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason, PoolStatus

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.stats import PoolStats

__all__ = ["NOT_HELD", "Core", "State"]

STATUSES = {State.NEW: PoolStatus.NEW, State.CLOSED: PoolStatus.CLOSED}
"""The status of a pool that is not open, by its state."""


class Core(Handover):
    """The mechanics of a pool: which caller gets which slot, in which order, and when a connection is opened.

    Under the lock, the methods of this class only decide, and record the decision. Their caller then does without the
    lock what takes time, such as connecting and closing. The rules of the lock are written beside it in `SlotTable`.
    """

    __slots__ = ("closed_at", "fill_waiters", "max_attempts", "outage", "retry_thread", "stays_open")

    def __init__(
        self,
        minconn: int,
        maxconn: int,
        *,
        max_waiting: int = 0,
        max_attempts: int | None = None,
        long_hold: float = NEVER,
        name: str = "",
    ) -> None:
        super().__init__(minconn, maxconn, long_hold, max_waiting, name)
        self.max_attempts = max_attempts
        self.fill_waiters: list[OneShotEvent] = []  # callers that wait for minconn connections
        self.outage: Outage | None = None
        self.stays_open = False  # opened in the background: a failed wait of another caller does not undo that
        self.closed_at = NEVER  # when the pool was closed
        self.retry_thread: object = None  # the only connector that connects during an outage

    def stats(self) -> PoolStats:
        """Return the levels and totals of the pool. Takes no lock."""
        return make_stats(
            name=self.name,
            status=self._status(),
            minconn=self.minconn,
            maxconn=self.maxconn,
            size=len(self.members),
            used=max(0, self.used),
            idle=len(self.idle),
            connecting=len(self.opening),
            waiting=len(self.queue),
            oldest_hold=self.oldest_hold(monotonic()),
            expected=self.expected_holds(),
            checkouts=self.checkouts(),
            discarded={str(reason): count for reason, count in self.discarded.copy().items()},
            hold_seconds=self.total_hold(),
            **{counter: getattr(self, counter) for counter in COUNTERS},
        )

    def _status(self) -> PoolStatus | None:
        """Return the status of the pool; None if its utilization decides."""
        if self.is_suspended and self.state is not State.CLOSED:
            return PoolStatus.SUSPENDED
        return STATUSES.get(self.state) or (PoolStatus.UNREACHABLE if is_unreachable(self.outage) else None)

    # Connecting

    def is_connection_wanted(self) -> bool:
        """Return whether another connection should be opened now."""
        if self.state is not State.OPEN or self.is_suspended or len(self.members) >= self.maxconn:
            return False
        if self.outage is not None and not self.opening:  # one attempt stays in progress until the server is reached
            return True
        return len(self.opening) < max(len(self.queue), self.growth_requested) or self.remaining < self.minconn

    def park(self) -> bool:
        """Park the maintenance thread, as `SlotTable.park` does, unless a caller waits or a connection is wanted.

        The maintenance thread has to start connectors again that could not be started or have died.
        """
        with self.lock:
            return self.queue.first() is None and not self.is_connection_wanted() and super().park()

    def reserve_slot(self, now: float) -> Slot | None:
        """Reserve a slot for a new connection if one is still wanted."""
        if not self.is_connection_wanted():
            return None
        unserved = len(self.opening)
        slot = Slot(next(islice(self.queue, unserved, None), None))
        slot.kept_at = now
        self.growth_requested = False
        self.opening.add(slot)
        self._add(slot)
        return slot

    def connect_succeeded(
        self, slot: Slot, conn: connection, now: float, *, began: float | None = None
    ) -> tuple[str | None, OutageChange]:
        """Hand a newly opened connection to a waiter, or keep it idle.

        Args:
            slot: the slot reserved for the connection.
            conn: the connection.
            now: when the connect ended, as a reading of the clock.
            began: when the connect began, as a reading of the clock.

        Returns:
            The reason why the caller has to close the connection, or None; and the outage before and after.
        """
        with self.lock:
            self.opening.discard(slot)
            slot.asked_by = None
            change, self.outage = OutageChange(self.outage, None), None
            self.created += 1
            self.connection_totals.connect_seconds += 0.0 if began is None else now - began
            slot.serial = self.created
            self.slots[slot.key] = slot
            slot.seen = now
            slot.review_at = min(slot.review_at, slot.expires)
            reason = self._keep_or_evict(slot, conn, now, NEW)
            self._wake_fill_waiters()
            self._wake_idle_waiters()
            return reason, change

    def connect_failed(
        self,
        slot: Slot,
        attempt: Attempt,
        error: BaseException,
        *,
        began: float | None = None,
        is_refusal: bool = False,
    ) -> OutageChange:
        """Count a failed connect, for the pool and for each waiter.

        Args:
            slot: the slot reserved for the connection.
            attempt: the failed attempt.
            error: the error that it raised.
            began: when the attempt began, as a reading of the clock.
            is_refusal: whether the server was reached and refused.

        Returns:
            The outage before and after.
        """
        with self.lock:
            self.opening.discard(slot)
            self._remove(slot)
            slot.asked_by = None
            began = attempt.at if began is None else began
            failed = Outage(began, 1, error, attempt.message, attempt.at + attempt.delay, is_refusal)
            change = OutageChange(self.outage, after_failure(self.outage, failed))
            self.outage = change.after
            self.connection_totals.connect_failures += 1
            self.retries += len(self.queue)
            for waiter in list(self.queue.values()):
                waiter.checkout.retried(attempt, error)
                if self.has_exhausted_attempts(waiter.checkout):
                    self.queue.fail(waiter, error)
            self._wake_fill_waiters(error)
            self._wake_idle_waiters()
            return change

    def has_exhausted_attempts(self, checkout: Checkout) -> bool:
        """Return whether a checkout has reached ``max_attempts``."""
        return self.max_attempts is not None and checkout.retries >= self.max_attempts

    # Waiting for the whole pool

    def register_fill_waiter(self) -> OneShotEvent | None:
        """Register the caller to be woken by ``minconn`` connections or a failed connect; None if they are open."""
        with self.lock:
            if self._is_filled:
                return None
            waiter = OneShotEvent()
            self.fill_waiters.append(waiter)
            return waiter

    def remove_fill_waiter(self, waiter: OneShotEvent) -> None:
        """Remove a caller that does not wait for ``minconn`` connections any more."""
        with self.lock, suppress(ValueError):  # removed already, as it was woken
            self.fill_waiters.remove(waiter)

    @property
    def _is_filled(self) -> bool:
        return len(self.idle) + self.used >= self.minconn

    def _wake_fill_waiters(self, error: BaseException | None = None) -> None:
        """Wake the callers that wait for ``minconn`` connections, if these are open, or with an error."""
        while self.fill_waiters and (error is not None or self._is_filled):
            self.fill_waiters.pop().set(error)

    # The whole pool

    def open(self, *, stays: bool = False) -> None:
        """Open the pool for checkouts; it stays open after a failure if one caller has asked for that.

        Raises:
            PoolClosed: the pool is closed.
        """
        with self.lock:
            if self.state is State.CLOSED:
                raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
            self.state = State.OPEN
            self.stays_open |= stays

    def rollback_open(self) -> list[Slot]:
        """Undo `open` after a failure, unless the pool stays open; return the idle slots, which the caller closes."""
        with self.lock:
            if self.stays_open:
                return []
            if self.state is State.OPEN and len(self.queue) == 0:  # a pool with waiters stays open for them
                self.state = State.NEW
                self.outage = None
            return self._mark_all_for_eviction(DiscardReason.CLOSED)

    def close(self) -> list[Slot]:
        """Refuse new checkouts and fail the waiters; return the idle slots, which the caller has to close.

        The other slots are closed when their connections are released.
        """
        with self.lock:
            self.state = State.CLOSED
            self.closed_at = min(self.closed_at, monotonic())
            for waiter in list(self.queue.values()):
                self.queue.fail(waiter, PoolClosed(f"pool {self.name!r}: connection pool was closed while waiting"))
            self._wake_fill_waiters(PoolClosed(f"pool {self.name!r}: connection pool was closed"))
            return self._mark_all_for_eviction(DiscardReason.CLOSED)

    def drain(self, reason: str) -> list[Slot]:
        """Mark every connection for eviction; return the idle slots, which the caller has to close.

        The other slots are closed when their connections are released.
        """
        with self.lock:
            return self._mark_all_for_eviction(reason)

    def _mark_all_for_eviction(self, reason: str) -> list[Slot]:
        for slot in self.members:
            slot.mark_for_eviction(reason)
        return self._pop_idle_to_close(len(self.idle))

    def resize(self, minconn: int, maxconn: int) -> list[Slot]:
        """Change the limits; return surplus idle slots, which the caller has to close.

        Surplus used slots are closed when their connections are released.
        """
        with self.lock:
            self.minconn, self.maxconn = minconn, maxconn
            if self.remaining > maxconn:  # before idle slots are removed, so that a release in between sees it
                for slot in self.members:
                    slot.review_at = AT_ONCE
            surplus = self._pop_idle_to_close(self.remaining - maxconn)
            if len(self.members) >= maxconn:  # no further connect, which could end the outage, is attempted
                self.outage = None
            self._wake_fill_waiters()
            return surplus

    # Checking idle connections

    def check_passed(self, slot: Slot, now: float) -> str | None:
        """Make a checked connection available again; return the reason if the caller has to close it instead."""
        with self.lock:
            if slot not in self.checking:
                return None
            reason = self._end_check(slot, now)
            if reason is None and slot.conn is not None:
                slot.seen = now
                conn, slot.conn = slot.conn, None
                self._hand_over_or_keep(slot, conn, now, QUEUED)
                self._wake_fill_waiters()
            return reason

    def _end_check(self, slot: Slot, now: float) -> str | None:
        """Remove a slot from those being checked; return the reason if it has to be closed."""
        reason = self._evict_reason(slot, now) if now >= slot.review_at else None
        if reason is not None:
            self.closing.add(slot)
        self.checking.discard(slot)
        return reason

    # Pinging idle connections

    def next_ping(self) -> float:
        """Return when an idle connection is to be pinged next, as a reading of the clock in seconds. Takes no lock."""
        return min((slot.ping_due for slot in self.idle.copy()), default=NEVER)

    def begin_ping(self, now: float) -> Slot | None:
        """Set the longest idle of the connections aside that are to be pinged; None if there is none, or a waiter."""
        with self.lock:
            due = (slot for slot in self.idle.copy() if now >= slot.ping_due)
            moved = (slot for slot in due if self._move_from_idle(slot, self.checking))
            slot = next(moved, None) if self.queue.first() is None else None
            if slot is not None:
                slot.kept_at = now
            return slot

    def ping_passed(self, slot: Slot, now: float) -> str | None:
        """Put a pinged connection back in its place among the idle ones; return the reason if it has to be closed.

        It still counts as idle since its last use. A caller that has queued during the ping may get the connection.
        """
        with self.lock:
            if slot not in self.checking:
                return None
            slot.pinged = now
            place = sum(other.idle_since <= slot.idle_since for other in self.idle.copy())
            reason = self._end_check(slot, now)
            if reason is None:
                self.idle.insert(place, slot)
                self._serve_waiters(now)
                self._wake_fill_waiters()
            return reason
