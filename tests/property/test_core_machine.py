"""Any order of checkouts, returns, timeouts, deaths, drains and suspensions, against a model too simple to be wrong."""

from __future__ import annotations

import os
from bisect import insort
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from otel_pgpool import PoolClosed
from otel_pgpool.pool.checkout import NEVER, Attempt
from otel_pgpool.pool.core import NOT_HELD, State
from tests.support.fakes import STALE, Desk, agree

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.pool.checkout import Checkout, Slot
    from otel_pgpool.pool.waiters import Waiter
    from tests.support.fakes import FakeConnection

EXAMPLES = os.environ.get("PROPERTY_EXAMPLES")
"""How many random runs to make; without it, the same 500 each time."""

MAX_ATTEMPTS = 3
A_MOMENT, LONG = 0.01, 1.0
MAX_IDLE = LONG
LIFETIMES = st.sampled_from([100.0, 2 * LONG, A_MOMENT * 2])
WHICH = st.integers(0, 5)
PAUSES = st.sampled_from([A_MOMENT, STALE, LONG])
EVENTS = st.sampled_from(
    [
        "nothing",
        "ask",
        "ask",
        "ask",
        "drain",
        "grow",
        "shrink",
        "usual",
        "retire",
        "time passes",
        "look for strays",
        "suspend",
        "resume",
        "resume",
    ]
)


class Model:
    """Who holds what, who is next, what lies idle, and what must go: slots and checkouts in lists."""

    def __init__(self) -> None:
        self.idle: list[Slot] = []
        self.held: dict[Checkout, Slot] = {}
        self.queue: list[Checkout] = []
        self.alive: set[Slot] = set()  # not on their way out
        self.doomed: dict[Slot, str] = {}
        self.suspended = False

    def ask(self, checkout: Checkout) -> None:
        if self.idle and not self.suspended:
            self.held[checkout] = self.idle.pop()
        else:
            insort(self.queue, checkout, key=lambda waiting: waiting.started)

    def offer(self, slot: Slot) -> None:
        if self.queue and not self.suspended:
            self.held[self.queue.pop(0)] = slot
        else:
            self.idle.append(slot)

    def resume(self) -> None:
        self.suspended = False
        while self.queue and self.idle:
            self.offer(self.idle.pop())

    def judge(self, slot: Slot, now: float, maxconn: int) -> str | None:
        """Offer a connection that was made or has come back, or let it go; why."""
        reason = self.doomed.get(slot)
        reason = reason or ("expired" if now >= slot.expires else "resized" if len(self.alive) > maxconn else None)
        if reason is None:
            self.offer(slot)
        else:
            self.alive.discard(slot)
        return reason

    def shed(self, count: int) -> list[Slot]:
        gone, self.idle = self.idle[: max(0, count)], self.idle[max(0, count) :]
        self.alive -= set(gone)
        return gone

    def mark_for_eviction(self, reason: str) -> list[Slot]:
        self.doomed |= dict.fromkeys(self.alive, reason)
        return self.shed(len(self.idle))


class CoreMachine(RuleBasedStateMachine):
    """Does the same to a core and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(1, 3, max_attempts=MAX_ATTEMPTS)
        self.core, self.model = self.desk.core, Model()
        self.hands: dict[Checkout, FakeConnection] = {}  # what each borrower has
        self.waiters: dict[Checkout, Waiter] = {}
        self.opening: list[Slot] = []
        self.leaving: list[tuple[Slot, str]] = []  # to be closed
        self.past: list[tuple[Checkout, FakeConnection]] = []  # given back
        self.asked = self.timeouts = self.created = self.retries = self.failed = 0
        self.discarded: dict[str, int] = {}

    @initialize(lifetimes=st.lists(LIFETIMES, min_size=1, max_size=3), callers=st.integers(0, 5))
    def begin(self, lifetimes: list[float], callers: int) -> None:
        """Begin with an open pool."""
        self.resize(3, 3)
        for lifetime in lifetimes:
            self.connect(lifetime)
        self.resize(1, 3)
        self.ask(callers)

    # What a borrower does

    @rule(callers=st.integers(1, 3), pause=PAUSES, dead=st.integers(0, 2))
    def ask(self, callers: int = 1, pause: float = A_MOMENT, dead: int = 0) -> None:
        """Callers that may each find up to two dead connections before they are served or queue."""
        for _ in range(callers):
            self.desk.now += pause
            self.asked += 1
            self._try(self.desk.ask(), dead)

    def _try(self, checkout: Checkout, dead: int) -> None:
        conn: Any = self.core.try_acquire_idle(checkout)
        if conn is None:
            self._join(checkout)
            return
        self.model.ask(checkout)
        assert self.model.held[checkout] is checkout.slot
        self._receive(checkout, conn, dead)

    def _join(self, checkout: Checkout) -> None:
        if self.core.state is State.CLOSED:
            with pytest.raises(PoolClosed):
                self.desk.join(checkout)
            return
        waiter = self.desk.join(checkout)
        self.model.ask(checkout)
        self.waiters[checkout] = waiter

    def _receive(self, checkout: Checkout, conn: FakeConnection, dead: int = 0) -> None:
        """Look at it first where the core asks for it; where it is too old or dead, try again."""
        assert conn is checkout.slot.ref(), "another slot's connection"
        assert conn not in self.hands.values(), "lent to two"
        if checkout.path is not None:
            self.hands[checkout] = conn
            return
        now, slot = self.desk.now, checkout.slot
        if now >= slot.expires:
            self.core.set_aside_for_closing(checkout)
        elif dead:
            if dead > 1:
                self.ask()  # somebody else asks while this one looks
            self.core.set_aside_for_closing(checkout, Attempt(now, "OSError", 0.0), OSError())
            self.retries += 1
        else:
            self.core.accept(checkout, now)
            self.hands[checkout] = conn
            return
        slot.conn = conn
        del self.model.held[checkout]
        self.model.alive.discard(slot)
        self._discard([slot], "expired" if now >= slot.expires else "broken")
        if checkout.retries < MAX_ATTEMPTS:
            self._try(checkout, dead - 1)
        else:
            self.failed += 1

    @precondition(lambda self: self.hands)
    @rule(which=WHICH, pause=PAUSES, broken=st.integers(0, 3), event=EVENTS, before=st.booleans())
    def give_back(self, which: int, pause: float, broken: int, event: str, before: bool) -> None:
        """Return a connection while another thread does something just before it is idle, or just after."""
        self.desk.now += pause
        checkout = self._one_of(self.hands, which)
        self._give_back(checkout, broken=broken == 3, meanwhile=lambda: self.happen(event), before=before)

    def _give_back(
        self,
        checkout: Checkout,
        *,
        broken: bool = False,
        meanwhile: Callable[[], None] | None = None,
        before: bool = False,
    ) -> None:
        conn, slot, now, expected = self.hands.pop(checkout), checkout.slot, self.desk.now, []

        def in_the_model() -> None:
            del self.model.held[checkout]
            if broken:
                self.model.alive.discard(slot)
            expected.append("broken" if broken else self.model.judge(slot, now, self.core.maxconn))

        def between() -> None:
            if not before:
                in_the_model()
            if meanwhile is not None:
                meanwhile()

        self.desk.idle.interrupt("before append" if before else "after append", between)
        verdict = self.core.release(checkout, conn, now, "broken" if broken else None)
        happened = self.desk.idle.calm()
        if before or not happened:
            in_the_model()
        if not happened and meanwhile is not None:
            meanwhile()
        assert verdict == expected[0]
        if verdict is not None:
            slot.conn = conn
            self._discard([slot], verdict)
        self.past.append((checkout, conn))
        del self.past[:-5]
        self._wake()

    @precondition(lambda self: self.past)
    @rule(which=WHICH)
    def give_back_again(self, which: int) -> None:
        """Check that a second return is refused and changes nothing."""
        checkout, conn = self.past[which % len(self.past)]
        assert self.core.release(checkout, conn, self.desk.now) is NOT_HELD
        assert self.core.release(checkout, conn, self.desk.now, "broken") is NOT_HELD

    @precondition(lambda self: self.hands)
    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        """Drop a connection as its holder might; the maintenance thread reclaims it."""
        checkout = self._one_of(self.hands, which)
        self.past = []  # nobody else may keep it alive
        del self.hands[checkout]
        assert self.desk.reclaim() == [checkout]
        self.model.alive.discard(self.model.held.pop(checkout))
        self._count("reclaimed")

    @precondition(lambda self: self.waiters)
    @rule(which=WHICH)
    def time_out(self, which: int) -> None:
        """Let a waiter time out."""
        checkout = self._one_of(self.waiters, which)
        assert self.core.leave(checkout, self.waiters.pop(checkout)) is None
        self.model.queue.remove(checkout)
        self.core.count_failure(0.0, timed_out=True)
        self.timeouts += 1

    # What connectors do

    def begin_connect(self) -> None:
        """Claim a place, exactly when one is wanted."""
        wanted = len(self.opening) < len(self.model.queue) or len(self.model.alive) < self.core.minconn
        wanted = wanted or (self.core.outage is not None and not self.opening)  # until the server is reached once
        room = len(self.model.alive) + len(self.leaving) < self.core.maxconn
        slot = self.desk.claim()
        is_open = self.core.state is State.OPEN and not self.model.suspended
        assert (slot is not None) == (wanted and room and is_open)
        if slot is not None:
            assert len(self.core.members) <= self.core.maxconn
            self.opening.append(slot)
            self.model.alive.add(slot)

    @rule(lifetime=LIFETIMES, closed=st.booleans(), end=st.sampled_from(["made", "made", "failed", "open"]))
    def connect(self, lifetime: float, closed: bool = True, end: str = "made") -> None:
        """Try to make one more connection, when those set aside are closed or before; it may last until later."""
        while closed and self.leaving:
            self.closed(0)
        self.begin_connect()
        if self.opening and end == "made":
            self.connected(-1, lifetime)
        elif self.opening and end == "failed":
            self.connect_failed(-1)

    @precondition(lambda self: self.opening)
    @rule(which=WHICH, lifetime=LIFETIMES)
    def connected(self, which: int, lifetime: float) -> None:
        """Let an attempt to connect succeed."""
        slot = self.opening.pop(which % len(self.opening))
        reason = self.desk.deliver(slot, lifetime=lifetime)
        self.created += 1
        assert slot.serial == self.created
        assert reason == self.model.judge(slot, self.desk.now, self.core.maxconn)
        if reason is not None:
            self._count(reason)  # the desk has closed it
        self._wake()

    def connect_failed(self, which: int) -> None:
        """Let an attempt to connect fail: it counts for each waiter, and some reach their limit."""
        slot = self.opening.pop(which % len(self.opening))
        self.desk.miss(slot)
        self.model.alive.discard(slot)
        self.retries += len(self.model.queue)
        for checkout in list(self.model.queue):
            if checkout.retries >= MAX_ATTEMPTS:
                self.model.queue.remove(checkout)
                assert isinstance(self.waiters.pop(checkout).error, OSError)
                self.failed += 1

    # What happens to the whole pool

    @rule(event=EVENTS)
    def happen(self, event: str) -> None:
        """Do what another thread may do in between."""
        {
            "nothing": lambda: None,
            "ask": self.ask,
            "drain": self.drain,
            "grow": lambda: self.resize(2, 4),
            "shrink": lambda: self.resize(0, 1),
            "usual": lambda: self.resize(1, 3),
            "retire": self.retire,
            "time passes": self.time_passes,
            "look for strays": self.look_for_strays,
            "suspend": self.suspend,
            "resume": self.resume,
        }[event]()

    def time_passes(self) -> None:
        """Let time pass, after which idle connections may be evicted."""
        self.desk.now += LONG

    def suspend(self) -> None:
        """Let everybody wait."""
        self.core.suspend(self.desk.now)
        self.model.suspended = True

    def resume(self) -> None:
        """Serve those who wait, from what is idle."""
        self.core.resume(self.desk.now)
        self.model.resume()
        self._wake()

    def drain(self) -> None:
        """Let every connection go."""
        shed = self.core.drain("drained")
        assert shed == self.model.mark_for_eviction("drained")
        self._discard(shed, "drained")

    def resize(self, minconn: int, maxconn: int) -> None:
        """Change the limits."""
        shed = self.core.resize(minconn, maxconn)
        assert shed == self.model.shed(len(self.model.alive) - maxconn)
        self._discard(shed, "resized")

    def retire(self) -> None:
        """Close the idle ones past their lifetime, then those idle too long above the minimum."""
        now, model = self.desk.now, self.model
        expired = [slot for slot in model.idle if now >= slot.expires]
        model.alive -= set(expired)
        unused = [slot for slot in model.idle if slot not in expired and now - slot.idle_since >= MAX_IDLE]
        unused = unused[: max(0, len(model.alive) - self.core.minconn)]
        model.alive -= set(unused)
        model.idle = [slot for slot in model.idle if slot in model.alive]
        assert self.core.evict_expired(now, MAX_IDLE) == {"expired": expired, "idle": unused}
        self._discard(expired, "expired")
        self._discard(unused, "idle")

    @precondition(lambda self: self.model.idle)
    @rule(dead=st.sets(WHICH), event=EVENTS)
    def sweep(self, dead: set[int], event: str) -> None:
        """Look at every idle connection: while that lasts nobody has them; the dead go, the others are offered."""
        suspects = self.core.idle_slots()
        assert [slot for slot, _since in suspects] == self.model.idle
        aside = self.core.begin_check(suspects)
        self.model.idle = []
        self.happen(event)
        for number, slot in enumerate(aside):
            if number in dead:
                self.core.check_failed(slot)
                self.model.alive.discard(slot)
                self._discard([slot], "broken")
            else:
                reason = self.core.check_passed(slot, self.desk.now)
                assert reason == self.model.judge(slot, self.desk.now, self.core.maxconn)
                if reason is not None:
                    self._discard([slot], reason)
        self._wake()

    @precondition(lambda self: self.model.idle)
    @rule(dead=st.booleans(), event=EVENTS)
    def ping(self, dead: bool, event: str) -> None:
        """Ping the longest idle one, which nobody has meanwhile; then it goes, is offered, or is back in its place."""
        slot = self.model.idle.pop(0)
        slot.ping_after = 0.0
        assert self.core.begin_ping(self.desk.now) is slot
        slot.ping_after = NEVER
        self.happen(event)
        if dead:
            self.core.check_failed(slot)
            self.model.alive.discard(slot)
            self._discard([slot], "broken")
            return
        queued = self.model.queue and not self.model.suspended
        reason = self.model.judge(slot, self.desk.now, self.core.maxconn)
        if reason is None and not queued:
            self.model.idle.pop()
            place = sum(other.idle_since <= slot.idle_since for other in self.model.idle)
            self.model.idle.insert(place, slot)
        assert self.core.ping_passed(slot, self.desk.now) == reason
        if reason is not None:
            self._discard([slot], reason)
        self._wake()

    def closed(self, which: int) -> None:
        """Close a connection that was set aside, which frees its slot."""
        slot, reason = self.leaving.pop(which % len(self.leaving))
        assert slot.conn is not None
        self.desk.discard([slot], reason)
        self._count(reason)

    def look_for_strays(self) -> None:
        """No slot is ever in nobody's hands."""
        assert self.core.collect_orphans(self.desk.now) == []

    @precondition(lambda self: self.asked > 9 and self.core.state is State.OPEN)
    @rule()
    def close(self) -> None:
        """Close the pool: the waiters fail, the idle go, the lent will."""
        waiters = [self.waiters.pop(checkout) for checkout in self.model.queue]
        idle = self.core.close()
        assert idle == self.model.mark_for_eviction("closed")
        assert all(isinstance(waiter.error, PoolClosed) for waiter in waiters)
        self.model.queue.clear()
        self._discard(idle, "closed")

    # What must be true at any time

    @invariant()
    def core_and_model_are_the_same(self) -> None:
        """Compare core and model: the idle connections and the queue, in order, and the holders of the connections."""
        assert list(self.core.idle) == self.model.idle
        assert list(self.core.queue) == self.model.queue
        assert {slot.checkout: slot for slot in self.core.members if slot.checkout is not None} == self.model.held
        assert self.hands.keys() == self.model.held.keys()
        assert self.core.members == self.model.alive | {slot for slot, _reason in self.leaving}
        assert self.core.opening == set(self.opening)

    @invariant()
    def levels_and_totals_agree(self) -> None:
        """Every figure that the pool shows."""
        core = self.core
        agree(core)
        assert core.used == len(self.hands)
        assert core.created == self.created
        assert +core.discarded == self.discarded
        assert core.timeouts == self.timeouts
        assert core.retries == self.retries
        holds = core.holds_now()
        assert set(holds) == self.hands.keys()
        assert [hold.acquired for hold in holds] == sorted(hold.acquired for hold in holds)
        if core.state is State.OPEN:
            served = sum(core.checkouts().values())
            assert served + len(self.waiters) + self.timeouts + self.failed == self.asked

    def teardown(self) -> None:
        """When everybody has gone home, nothing is left."""
        while self.hands:
            self._give_back(self._one_of(self.hands, 0))
        while self.waiters:
            self.time_out(0)
        while self.opening:
            self.connect_failed(0)
        self.drain()
        while self.leaving:
            self.closed(0)
        assert self.core.members == set()
        assert self.core.slots == {}
        assert self.core.register_idle_waiter() is None

    # Steps shared by rules

    def _wake(self) -> None:
        """Those who were served take what they were handed."""
        for checkout, waiter in list(self.waiters.items()):
            conn: Any = waiter.conn
            if conn is not None:
                waiter.conn = None
                del self.waiters[checkout]
                self._receive(checkout, conn)

    def _discard(self, slots: list[Slot], reason: str) -> None:
        self.leaving += [(slot, reason) for slot in slots]

    def _count(self, reason: str) -> None:
        self.discarded[reason] = self.discarded.get(reason, 0) + 1

    @staticmethod
    def _one_of(checkouts: dict[Checkout, Any], which: int) -> Checkout:
        return list(checkouts)[which % len(checkouts)]


TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=int(EXAMPLES or 150),
    stateful_step_count=40,
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
