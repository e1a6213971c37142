"""Threads that do as they please with one core; afterwards everything must fit together."""

from __future__ import annotations

import os
import random
import sys
import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.pool.core import NOT_HELD
from otel_pgpool.pool.slots import ORPHAN_AFTER
from otel_pgpool.runtime.wakeup import acquire_within
from tests.support.fakes import Desk, FakeConnection, agree
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.pool.checkout import Checkout, Slot

SECONDS = float(os.environ.get("STRESS_SECONDS", "1"))
SEED = int(os.environ.get("STRESS_SEED") or random.SystemRandom().randrange(2**32))
"""Decides what each thread does; which thread goes when is the system's choice."""

BORROWERS, CONNECTORS, MEDDLERS = 12, 2, 2
MINCONN, MAXCONN = 2, 5
PATIENCE = 10.0
"""Seconds within which every waiter must be served: while connections come back, none may be forgotten."""


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Threads take turns a hundred times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


class Stressed(Desk):
    """A desk at which many threads stand."""

    def __init__(self) -> None:
        super().__init__(MINCONN, MAXCONN, long_hold=0.0005)
        self.core.idle = []  # a plain list: one written in Python would not be atomic
        self.refs: deque[weakref.ref[FakeConnection]] = deque()
        self.owners: dict[int, threading.Thread] = {}
        self.over = threading.Event()
        self.faults: list[str] = []
        self.asked = self.lost = 0
        self.counts = threading.Lock()

    # Borrowers

    def borrow(self, dice: random.Random) -> None:
        if dice.random() < 0.5:  # so that some find the pool idle, and some find a queue
            self.over.wait(dice.uniform(0, 0.02))
        checkout = self.ask()
        checkout.started = monotonic()
        patience = dice.choice((0.0, 0.0005, PATIENCE, PATIENCE))
        conn = self.obtain(checkout, patience, dice)
        with self.counts:
            self.asked += 1
            self.lost += conn is None
        if conn is None:
            return
        self.own(conn)
        if dice.random() < 0.3:
            self.over.wait(dice.uniform(0, 0.001))
        fate = dice.random()
        if fate < 0.02:
            self.disown(conn)
            return  # dropped without a word
        self.disown(conn)
        self.give(checkout, conn, "broken" if fate < 0.07 else None)
        if fate > 0.97 and self.core.release(checkout, conn, monotonic()) is not NOT_HELD:
            self.faults.append("a second return was taken")

    def obtain(self, checkout: Checkout, patience: float, dice: random.Random) -> FakeConnection | None:
        """As the slow half of a checkout does."""
        conn = self.core.try_acquire_idle(checkout)
        while True:
            if conn is None:
                if patience == 0.0:
                    self.core.request_growth(checkout)
                    return None
                waiter = self.core.join(checkout, monotonic())
                acquire_within(waiter.lock, patience)
                conn = waiter.conn or self.core.leave(waiter.checkout, waiter)
                if conn is None:
                    if patience == PATIENCE:
                        self.faults.append(f"a waiter was forgotten, {len(self.core.idle)} idle, {self.core.used} used")
                    return None
            if checkout.path is not None:
                return conn
            if dice.random() < 0.9:
                self.core.accept(checkout, monotonic())
                return conn
            self.core.set_aside_for_closing(checkout, Attempt(monotonic(), "OSError", 0.0), OSError())
            checkout.slot.conn = conn
            self.discard([checkout.slot], "broken")
            conn = self.core.try_acquire_idle(checkout)

    def own(self, conn: FakeConnection) -> None:
        if conn.closed:
            self.faults.append("a closed connection was lent")
        if self.owners.setdefault(id(conn), threading.current_thread()) is not threading.current_thread():
            self.faults.append("a connection was lent to two")

    def disown(self, conn: FakeConnection) -> None:
        if self.owners.pop(id(conn), None) is not threading.current_thread():
            self.faults.append("a connection changed hands while it was lent")

    def give(self, checkout: Checkout, conn: FakeConnection, reason: str | None) -> None:
        verdict = self.core.release(checkout, conn, monotonic(), reason)
        if verdict is NOT_HELD:
            self.faults.append("a connection was taken from its borrower")
        elif verdict is not None:
            checkout.slot.conn = conn
            self.discard([checkout.slot], verdict)

    # Connectors

    def make(self, dice: random.Random) -> None:
        slot = self.claim()
        if slot is None:
            self.over.wait(0.0002)
            return
        if len(self.core.members) > MAXCONN:
            self.faults.append(f"{len(self.core.members)} members of at most {MAXCONN}")
        if dice.random() < 0.1:
            self.miss(slot)
            return
        conn = FakeConnection()
        slot.key = id(conn)
        slot.ref = weakref.ref(conn, self.refs.append)
        slot.expires = monotonic() + dice.choice((0.005, 0.05, 60.0))
        slot.review_at = min(slot.review_at, slot.expires)
        reason, _ended = self.core.connect_succeeded(slot, conn, monotonic())
        if reason is not None:
            slot.conn = conn
            self.discard([slot], reason)

    # Those who change the whole pool

    # `recover` is not among them: its two looks are meant to be half a second apart, and a thread may well stand still
    # for as long as it takes here.
    def meddle(self, dice: random.Random) -> None:
        core, now = self.core, monotonic()
        match dice.randrange(7):
            case 0:
                self.discard(core.drain("drained"), "drained")
            case 1:
                maxconn = dice.randint(1, MAXCONN)
                self.discard(core.resize(dice.randint(0, min(MINCONN, maxconn)), maxconn), "resized")
            case 2:
                for reason, slots in core.evict_expired(now, dice.choice((0.001, 60.0))).items():
                    self.discard(slots, reason)
            case 3:
                self.look(dice)
            case 4:
                core.reclaim([self.refs.popleft() for _ in range(len(self.refs))], now)
            case 5:
                core.flag_long_holds(now)
                core.next_deadline(0.01)
            case _:
                figures = core.checkouts(), core.total_hold(), core.oldest_hold(now), core.holds_now()
                if min(*figures[0].values(), figures[1], figures[2]) < 0:
                    self.faults.append(f"figures below nought: {figures}")
        self.over.wait(dice.uniform(0, 0.002))

    def look(self, dice: random.Random) -> None:
        for slot in self.core.begin_check(self.core.idle_slots()):
            if dice.random() < 0.2:
                self.core.check_failed(slot)
                self.discard([slot], "broken")
            elif (reason := self.core.check_passed(slot, monotonic())) is not None:
                self.discard([slot], reason)

    def run(self, act: Callable[[random.Random], None], dice: random.Random) -> None:
        try:
            while not self.over.is_set() and not self.faults:
                act(dice)
        except BaseException as error:
            self.faults.append(f"{act.__name__}: {error!r}")
            raise


def test_whatever_threads_do_nothing_is_lost() -> None:
    """No connection is lent to two or lost, no limit exceeded, no waiter forgotten; the counters agree at the end."""
    print(f"to do the same again: STRESS_SEED={SEED} STRESS_SECONDS={SECONDS:g}")
    desk = Stressed()
    acts = [desk.borrow] * BORROWERS + [desk.make] * CONNECTORS + [desk.meddle] * MEDDLERS
    threads = []
    for number, act in enumerate(acts):
        arguments = act, random.Random(f"{SEED} {number}")
        threads.append(threading.Thread(target=desk.run, args=arguments, name=f"{act.__name__}-{number}"))
    for thread in threads:
        thread.start()
    desk.over.wait(SECONDS)
    wait_until(lambda: desk.faults or is_enough(desk))
    finish(desk, threads)
    assert desk.faults == []
    at_rest(desk)


def is_enough(desk: Stressed) -> bool:
    """Whether there was traffic on every path."""
    return desk.asked > 100 and min(desk.core.checkouts().values()) > 0


def finish(desk: Stressed, threads: list[threading.Thread]) -> None:
    """Stop everybody; those who still wait are served by connects made here."""
    desk.over.set()
    deadline = monotonic() + PATIENCE
    while any(thread.is_alive() for thread in threads) and monotonic() < deadline:
        desk.core.resize(0, MAXCONN)
        slot = desk.claim()
        if slot is not None:
            desk.deliver(slot)
        for thread in threads:
            thread.join(0.001)
    assert not [thread.name for thread in threads if thread.is_alive()], "a waiter was forgotten"


def at_rest(desk: Stressed) -> None:
    """Every connection made is idle or was discarded, once; every request was served or was not."""
    core = desk.core
    core.reclaim([*desk.refs, *desk.dropped], monotonic())
    assert core.collect_orphans(0.0) == []
    assert core.collect_orphans(ORPHAN_AFTER) == []
    agree(core)
    assert core.members == set(core.idle)
    assert len(core.queue) == core.used == 0
    assert desk.owners == {}
    assert sum(core.checkouts().values()) == desk.asked - desk.lost
    assert is_enough(desk)
    everything: list[Slot] = core.close()
    desk.discard(everything, "closed")
    assert core.members == set()
    assert core.created == sum(core.discarded.values())
    assert core.register_idle_waiter() is None
