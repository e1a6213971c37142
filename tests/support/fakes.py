"""A core without a database: fake connections, a clock set by hand, and the steps that the pool does around a core."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from otel_pgpool.pool.checkout import NEVER, Attempt, Checkout, begin
from otel_pgpool.pool.core import NOT_HELD, Core
from otel_pgpool.pool.slots import CHECK_BYPASS_WINDOW

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable

    from otel_pgpool.pool.checkout import Slot
    from otel_pgpool.pool.waiters import Waiter

STALE = 2 * CHECK_BYPASS_WINDOW
"""Seconds after which an idle connection is lent only once somebody has looked at it."""


class FakeConnection:
    """Closed or not, and referred to weakly: all that the mechanics ask of a connection."""

    closed = 0

    def close(self) -> None:
        self.closed = 1


class IdleList(list["Slot"]):
    """The list of idle slots, between whose steps a test may put what another thread does there.

    What is put there runs once. Under the lock nothing comes between, so there it does not run.
    """

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self._meanwhile: tuple[str, Callable[[], object]] | None = None

    def interrupt(self, moment: str, action: Callable[[], object]) -> None:
        """Run ``action`` at the next ``before append``, ``after append``, ``before pop`` or ``after pop``."""
        self._meanwhile = moment, action

    def calm(self) -> bool:
        """Forget what was to run; True if it has run."""
        pending, self._meanwhile = self._meanwhile, None
        return pending is None

    def append(self, slot: Slot) -> None:
        self._reach("before append")
        super().append(slot)
        self._reach("after append")

    def pop(self, index: Any = -1) -> Slot:
        self._reach("before pop")
        slot = super().pop(index)
        self._reach("after pop")
        return slot

    def _reach(self, moment: str) -> None:
        if self._meanwhile is not None and self._meanwhile[0] == moment and not self._core.lock._is_owned():
            _moment, action = self._meanwhile
            self._meanwhile = None
            action()


class Desk:
    """Drives a core as the pool does, one step at a time."""

    def __init__(self, minconn: int = 0, maxconn: int = 2, **options: Any) -> None:
        self.core = Core(minconn, maxconn, **options)
        self.idle = self.core.idle = IdleList(self.core)
        self.now = 100.0
        self.dropped: list[weakref.ref[FakeConnection]] = []
        self.core.open()

    # Connecting

    def claim(self) -> Slot | None:
        with self.core.lock:
            return self.core.reserve_slot(self.now)

    def deliver(self, slot: Slot, *, lifetime: float = NEVER) -> str | None:
        """Let a connect succeed; return why its connection was closed at once, or None."""
        conn = FakeConnection()
        slot.key = id(conn)
        slot.on_collected = self.dropped.append
        slot.track(conn)
        slot.pid = 1000 + self.core.created
        slot.expires = self.now + lifetime
        slot.review_at = min(slot.review_at, slot.expires)
        reason, _change = self.core.connect_succeeded(slot, conn, self.now)
        if reason is not None:
            slot.conn = conn
            self.discard([slot], reason)
        return reason

    def miss(self, slot: Slot, error: BaseException | None = None, delay: float = 0.5) -> bool:
        """Let a connect fail; return whether an outage began."""
        error = error or OSError("no server")
        return self.core.connect_failed(slot, Attempt(self.now, type(error).__name__, delay), error).has_begun

    def connect(self, count: int = 1, *, lifetime: float = NEVER) -> None:
        """Make connections that are wanted."""
        for _ in range(count):
            slot = self.claim()
            assert slot is not None, "no connection is wanted"
            self.deliver(slot, lifetime=lifetime)

    # Checking out and in

    def ask(self) -> Checkout:
        """Start a checkout."""
        frame = sys._getframe(1)
        return begin(self.now, (frame.f_code, frame.f_lasti))

    def take(self, checkout: Checkout) -> FakeConnection | None:
        """Take an idle connection, and find it alive."""
        conn = self.core.try_acquire_idle(checkout)
        if conn is not None and checkout.path is None:
            self.core.accept(checkout, self.now)
        return conn

    def hold(self) -> tuple[Checkout, FakeConnection]:
        """Start a checkout that is served at once."""
        checkout = self.ask()
        conn = self.take(checkout)
        assert conn is not None, "nothing is idle"
        return checkout, conn

    def join(self, checkout: Checkout | None = None) -> Waiter:
        return self.core.join(checkout or self.ask(), self.now)

    def accept(self, waiter: Waiter) -> FakeConnection | None:
        """Return the connection that a waiter was handed, after a check if the core requires one."""
        if waiter.conn is not None and waiter.checkout.path is None:
            self.core.accept(waiter.checkout, self.now)
        return waiter.conn

    def give_back(self, checkout: Checkout, conn: FakeConnection, reason: str | None = None) -> str | None:
        """Return a connection; why it was closed, `NOT_HELD`, or None when it stays."""
        assert conn is not None, "it was dropped"
        verdict = self.core.release(checkout, conn, self.now, reason)
        if verdict is not None and verdict is not NOT_HELD:
            checkout.slot.conn = conn
            self.discard([checkout.slot], verdict)
        return verdict

    # Closing

    def discard(self, slots: Iterable[Slot], reason: str) -> None:
        slots = list(slots)
        for slot in slots:
            conn, slot.conn = slot.conn, None
            if conn is not None:
                conn.close()
        self.core.remove_closed(slots, reason)

    def reclaim(self) -> list[Checkout]:
        """Reclaim the connections dropped so far, as the maintenance thread does."""
        refs, self.dropped[:] = list(self.dropped), []
        return self.core.reclaim(refs, self.now)


def filled(minconn: int, maxconn: int = 2, **options: Any) -> Desk:
    """Return a desk whose minimum is connected and idle."""
    desk = Desk(minconn, maxconn, **options)
    desk.connect(minconn)
    return desk


def lent_out() -> tuple[Desk, Checkout, FakeConnection]:
    """Return a desk with one connection, which is checked out; the checkout and the connection."""
    desk = filled(1, 1)
    return desk, *desk.hold()


def served(waiter: Waiter) -> bool:
    """Whether a waiter was handed a connection."""
    return waiter.conn is not None


def awake(waiter: Any) -> bool:
    """Whether a sleeper's sleep was ended."""
    return not waiter.lock.locked()


def agree(core: Core) -> None:
    """Fail unless the sets, limits and counters of a core at rest fit together."""
    with core.lock:
        sets = [core.idle, core.opening, core.checking, core.closing]
        apart = [slot for where in sets for slot in where]
        assert len(apart) == len(set(apart)), "a slot is in two places"
        assert set(apart) <= core.members, "a slot that is no member is still somewhere"
        assert core.is_suspended or not (core.queue and core.idle), "somebody waits while something is idle"
        lent = [slot for slot in core.members if slot not in apart]
        assert core.used == len(lent)
        assert all(slot.checkout is not None and slot.conn is None for slot in lent)
        assert all(slot.conn is not None and slot.checkout is None for slot in core.idle)
        established = core.members - core.opening
        assert core.created - sum(core.discarded.values()) == len(established)
        assert set(core.slots.values()) == established
        assert all(core.holds(slot.checkout) for slot in lent)
