"""What is known of a pool that is not ours: holds, quiet ones too, totals, connects, and the end."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from psycopg2.pool import PoolError

from otel_pgpool.driver.dsn import UnknownTarget
from otel_pgpool.instrumentation.connects import TOLD_AFTER
from otel_pgpool.instrumentation.hook import Hook
from otel_pgpool.instrumentation.kind import Kind, Levels
from otel_pgpool.instrumentation.ledger import LEDGER, LOUD, Ledger
from otel_pgpool.instrumentation.settings import Settings
from otel_pgpool.pool import registry
from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.runtime.thread_cache import here
from otel_pgpool.telemetry import SILENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.pool.checkout import Loan


class FakeConnection:
    closed = 0

    def __init__(self, pid: int = 7) -> None:
        self.pid = pid

    def get_backend_pid(self) -> int:
        return self.pid


class FakePool:
    """Levels set by hand."""

    def __init__(self, maxconn: int = 2, used: int = 0, idle: int = 0) -> None:
        self.maxconn, self.used, self.idle, self.closed = maxconn, used, idle, False


class Recorder:
    """An observer that notes every call, and raises in those that it is told to."""

    silence = None

    def __init__(self, *broken: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any) -> None:
            self.calls.append((name, *args))
            if name in self.broken:
                raise RuntimeError(name)

        return note

    def tells_timeouts(self) -> bool:
        return True

    def told(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, *args in self.calls if called == name]  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        return [name for name, *_args in self.calls]


def read(pool: FakePool) -> Levels:
    return Levels(0, pool.maxconn, pool.used, pool.idle, 1, closed=pool.closed)


KIND = Kind(read, lambda _pool: 3)


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook(Settings.of(environ={"OTEL_PGPOOL_SPANS": "off"}, long_hold=10))
    hook.parked = False  # no thread is started
    yield hook
    hook.end()


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def ledger(hook: Hook, pool: FakePool) -> Ledger:
    return open_ledger(hook, pool)


def open_ledger(hook: Hook, pool: FakePool, name: str = "a pool of theirs") -> Ledger:
    ledger = hook.adopt(pool, KIND, name, UnknownTarget())
    assert ledger is not None
    ledger._observer = Recorder()  # type: ignore[assignment]
    return ledger


def recorder(ledger: Ledger) -> Recorder:
    observer = ledger._observer
    assert isinstance(observer, Recorder)
    return observer


def ask(ledger: Ledger) -> Loan:
    frame = sys._getframe(1)
    return ledger.ask((frame.f_code, frame.f_lasti))


def lend(ledger: Ledger, conn: object) -> Loan:
    loan = ask(ledger)
    ledger.lend(loan, conn)
    return loan


def lend_quietly(ledger: Ledger, conn: object, since: float = 0.0) -> float:
    """As the quiet path does; ``since`` seconds ago, which is returned as a reading of the clock."""
    code = sys._getframe(1).f_code
    ledger.slot_of(conn)
    began = monotonic() - since
    ledger.quiet[id(conn)] = (began, here.thread, code, 0, code, 2, code, 2)
    return began


# A checkout


def test_one_checkout(ledger: Ledger, pool: FakePool) -> None:
    """From the request to the return: counted, held, and no more."""
    ledger.silence = LOUD
    conn = FakeConnection(41)
    loan = lend(ledger, conn)
    assert list(ledger.holds) == [loan]
    assert (loan.path, loan.slot.serial, loan.slot.pid) == ("idle", 1, 41)
    ledger.give_back(loan)
    assert (ledger.holds, ledger.served) == ({}, 1)
    assert (loan.outcome, loan.slot.checkout) == ("released", None)
    assert loan.started <= loan.acquired <= loan.released
    assert recorder(ledger).names == ["started", "acquired", "released"]
    stats = ledger.stats()
    assert stats.checkouts == {"idle": 1, "queued": 0, "new": 0}
    assert stats.hold_seconds == loan.released - loan.acquired


def test_given_back_twice(ledger: Ledger) -> None:
    """The second time nothing happens, whatever it says."""
    ledger.silence = LOUD
    loan = lend(ledger, FakeConnection())
    ledger.give_back(loan)
    ledger.give_back(loan, "discarded", ValueError())
    assert (loan.outcome, loan.error_type) == ("released", None)
    assert recorder(ledger).names.count("released") == 1


def test_lent_again_before_its_return_was_done(ledger: Ledger) -> None:
    """Another thread may be faster: its hold stays, and the first ended before it began."""
    conn = FakeConnection()
    first = lend(ledger, conn)
    second = lend(ledger, conn)
    ledger.give_back(first)
    assert list(ledger.holds) == [second]
    assert first.slot is second.slot
    assert first.slot.checkout is second
    assert first.released <= second.acquired


def test_served_while_it_ends(ledger: Ledger) -> None:
    """A checkout that is lent after the end of the ledger ends with it."""
    ledger.silence = LOUD
    loan = ask(ledger)
    ledger.end("released")
    ledger.lend(loan, FakeConnection())
    assert (ledger.holds, loan.outcome) == ({}, "released")


def test_after_the_end_of_its_series_a_hold_goes_on(ledger: Ledger) -> None:
    """A retired ledger, whose pool was replaced, still watches what is out."""
    loan = lend(ledger, FakeConnection())
    ledger.retire()
    later = lend(ledger, FakeConnection())
    assert list(ledger.holds) == [loan, later]
    assert not ledger.is_quiet
    ledger.give_back(loan)
    ledger.give_back(later)
    assert ledger.is_quiet


def test_nobody_listens(ledger: Ledger) -> None:
    """Where checkouts leave nothing, an ordinary one is told to nobody; one that fails is."""
    ledger.silence = SILENT
    ledger.give_back(lend(ledger, FakeConnection()))
    assert recorder(ledger).names == []
    ledger.give_back(lend(ledger, FakeConnection()), "discarded", ValueError())
    ledger.refuse(ask(ledger), ValueError())
    assert recorder(ledger).names == ["released", "failed"]


def test_refused(ledger: Ledger, pool: FakePool) -> None:
    """A timeout is diagnosed; any other error is counted as one."""
    ledger.silence = LOUD
    pool.used = 2
    held = FakeConnection(99)
    holder = lend(ledger, held)
    timed_out, failed = ask(ledger), ask(ledger)
    ledger.refuse(timed_out, PoolError("connection pool exhausted"), "timeout")
    ledger.refuse(failed, ValueError("secret"))
    assert (timed_out.outcome, timed_out.error_type, timed_out.error_message) == (
        "timeout",
        "timeout",
        "connection pool exhausted",
    )
    assert (failed.outcome, failed.error_type, failed.error_message) == ("error", "ValueError", "")
    (_loan, error), (_failed, _same) = recorder(ledger).told("failed")
    assert (error.used, error.maxconn, [holder.pid for holder in error.holders]) == (2, 2, [99])
    assert "this thread already holds 1" in str(error)
    stats = ledger.stats()
    assert (stats.timeouts, stats.errors) == (1, 1)
    ledger.give_back(holder)


def test_queued(ledger: Ledger) -> None:
    """Who waits is counted while it waits, with those who hold, the longest first."""
    ledger.silence = LOUD
    holders = [lend(ledger, FakeConnection(pid)) for pid in range(7)]
    waiter = ask(ledger)
    waiter.observed = object()
    ledger.queue(waiter)
    assert ledger.stats().waiting == 1
    assert [blocker.connection_id for blocker in waiter.blockers] == [1, 2, 3, 4, 5]
    ledger.lend(waiter, FakeConnection())
    assert (ledger.stats().waiting, ledger.stats().queued, waiter.path) == (0, 1, "queued")
    for loan in (*holders, waiter):
        ledger.give_back(loan)


# Quiet holds


def test_quiet_hold_speaks_up(ledger: Ledger) -> None:
    """It becomes a checkout with its thread and places, once."""
    conn = FakeConnection(12)
    began = lend_quietly(ledger, conn, since=3)
    loan = ledger.speak_up(conn)
    assert loan is not None
    assert ledger.speak_up(conn) is None
    assert (loan.thread, loan.path, loan.slot.pid, loan.heard) == (threading.current_thread(), "idle", 12, False)
    assert loan.path_to.count("test_quiet_hold_speaks_up") == 2
    assert (list(ledger.holds), ledger.quiet) == ([loan], {})
    assert 3 <= ledger.stats().oldest_hold <= monotonic() - began
    ledger.give_back(loan)


def test_quiet_hold_of_a_connection_that_is_gone(ledger: Ledger) -> None:
    """Its pool, and the connection with it, may be collected before anybody asks: it is told all the same."""
    conn = FakeConnection(12)
    lend_quietly(ledger, conn)
    del conn
    gc.collect()
    ledger.end("reclaimed", "reclaimed")
    ((loan,),) = recorder(ledger).told("reclaimed")
    assert (loan.slot.pid, loan.outcome) == (0, "reclaimed")  # nobody can say it any more
    assert ledger.discarded == {"reclaimed": 1}


def test_oldest_hold_is_the_oldest(ledger: Ledger) -> None:
    """A quiet hold that spoke up after a younger one was lent is the older one still, and comes first among holders."""
    old, young = FakeConnection(1), FakeConnection(2)
    began = lend_quietly(ledger, old, since=5)
    lend(ledger, young)
    ledger.speak_up_all()
    assert 5 <= ledger.stats().oldest_hold <= monotonic() - began
    assert [loan.slot.pid for loan in ledger.holds_now()] == [1, 2]


# The watch


def test_long_hold(ledger: Ledger) -> None:
    """It is flagged once, when the threshold has passed; the next look is due when the next one passes it."""
    first, second = lend(ledger, FakeConnection()), lend(ledger, FakeConnection())
    second.acquired += 2
    assert ledger.look(first.acquired + 1) == first.acquired + 10
    assert ledger.look(first.acquired + 10) == second.acquired + 10
    assert ledger.look(first.acquired + 11) == second.acquired + 10
    assert [loan for (loan,) in recorder(ledger).told("held_long")] == [first]
    assert (first.flagged, second.flagged, ledger.long_holds) == (True, False, 1)
    assert ledger.look(second.acquired + 10) == NEVER
    assert ledger.long_holds == 2


def test_long_quiet_hold(ledger: Ledger) -> None:
    """A quiet one is flagged in its time, though one that was lent later spoke up before."""
    quiet = FakeConnection(1)
    began = lend_quietly(ledger, quiet, since=9.5)
    younger = lend(ledger, FakeConnection(2))
    assert ledger.look(began + 9.5) == began + 10
    assert ledger.look(began + 10.5) == younger.acquired + 10
    ((flagged,),) = recorder(ledger).told("held_long")
    assert flagged.slot.pid == 1


def test_never_long(hook: Hook, pool: FakePool) -> None:
    """Without a threshold nothing is ever due."""
    hook.settings = Settings.of(environ={}, long_hold=None)
    ledger = open_ledger(hook, pool)
    lend(ledger, FakeConnection())
    lend_quietly(ledger, FakeConnection())
    assert ledger.look(monotonic() + 1e9) == NEVER
    assert ledger.long_holds == 0


def test_flagged_at_its_return(ledger: Ledger) -> None:
    """A hold that comes back before the watch has seen that it was long is flagged by its return."""
    loan = lend(ledger, FakeConnection())
    loan.acquired -= 10
    ledger.give_back(loan)
    assert (loan.flagged, ledger.long_holds) == (True, 1)
    assert recorder(ledger).told("released") == [[loan]]


def test_utilization(ledger: Ledger, pool: FakePool) -> None:
    """It is looked at twice, and told when both looks agree; a closed pool has none."""
    pool.used = 2
    now = monotonic()
    for later in (1, 2, 3):
        ledger.look(now + later)
    assert [level for level, _stats in recorder(ledger).told("utilization_changed")] == ["critical"]
    assert not ledger.is_quiet
    ledger.retire()
    pool.used = 0
    ledger.look(now + 4)
    ledger.look(now + 5)
    assert len(recorder(ledger).told("utilization_changed")) == 1
    assert ledger.is_quiet


# Connections


def test_connect(ledger: Ledger) -> None:
    """Told after it was made, as the checkout's that it was made for: path `new`."""
    ledger.silence = LOUD
    loan, conn = ask(ledger), FakeConnection()
    ledger.connected(monotonic(), conn)
    assert recorder(ledger).told("connected") == []
    ledger.lend(loan, conn)
    ((connect,),) = recorder(ledger).told("connected")
    assert (connect.asked_by, connect.attempt, loan.path) == (loan, 1, "new")
    assert ledger.stats().created == 1
    ledger.give_back(loan)


def test_connect_of_another_thread(ledger: Ledger) -> None:
    """It is not this checkout's: path `idle`, and nothing told."""
    other = threading.Thread(target=ledger.connected, args=(monotonic(), FakeConnection()))
    other.start()
    other.join()
    loan = lend(ledger, FakeConnection())
    assert loan.path == "idle"
    assert recorder(ledger).told("connected") == []
    ledger.look(monotonic() + 5)  # whoever it is for may still be preparing it
    assert recorder(ledger).told("connected") == []
    ledger.look(monotonic() + TOLD_AFTER + 1)
    ((connect,),) = recorder(ledger).told("connected")
    assert connect.asked_by is None


def test_outage(ledger: Ledger) -> None:
    """Begins with the first failure, counts, and ends with a connection; an interrupt is none."""
    for error in (KeyboardInterrupt(), OSError(1), OSError(2)):
        ledger.connect_failed(monotonic(), error)
        ledger.refuse(ask(ledger), error)
    assert ledger.stats().status == "unreachable"
    ledger.connected(monotonic(), FakeConnection())
    ledger.tell_connects()
    names = [name for name in recorder(ledger).names if "out" in name or "connect" in name]
    assert names == [
        "connect_failed",
        "connect_failed",
        "outage_started",
        "connect_failed",
        "connected",
        "outage_ended",
    ]
    ((attempts, _duration),) = recorder(ledger).told("outage_ended")
    assert attempts == 2
    assert ledger.stats().status == "ok"


def test_an_outage_that_nobody_has_claimed(ledger: Ledger) -> None:
    """What several threads have met, and no checkout told, is told in the order in which it came."""
    met, over = threading.Semaphore(0), threading.Event()

    def meet(number: int) -> None:
        if number % 2:
            ledger.connect_failed(monotonic(), OSError(number))
        else:
            ledger.connected(monotonic(), FakeConnection())
        met.release()
        over.wait()  # the identity of a thread that has ended is given to the next

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
        met.acquire()
    over.set()
    for thread in threads:
        thread.join()
    ledger.look(monotonic() + TOLD_AFTER + 1)
    turns = [name for name in recorder(ledger).names if name.startswith("outage")]
    assert turns == ["outage_started", "outage_ended"] * 9 + ["outage_started"]


def test_connections_are_forgotten(ledger: Ledger) -> None:
    """One that was collected is not known any more; a new one at its address is another."""
    conn = FakeConnection()
    ledger.slot_of(conn)
    assert len(ledger.slots) == 1
    del conn
    gc.collect()
    assert ledger.slots == {}
    assert ledger.slot_of(FakeConnection()).serial == 2


def test_connections_without_weak_references(ledger: Ledger) -> None:
    """What a program's own factory makes may not allow them."""

    class Slotted:
        __slots__ = ()

    loan = lend(ledger, Slotted())
    assert (loan.slot.pid, loan.slot.ref()) == (0, None)
    ledger.give_back(loan)


def test_discarded(ledger: Ledger) -> None:
    """Counted by reason, told, and not known any more."""
    slot = ledger.enter(FakeConnection())
    ledger.discard(slot, "broken")
    assert (ledger.discarded, ledger.slots) == ({"broken": 1}, {})
    assert recorder(ledger).told("discarded") == [[[slot], "broken", None, None]]


# Whole pools


def test_levels(ledger: Ledger, pool: FakePool) -> None:
    """Read from the pool when asked for."""
    pool.used, pool.idle = 1, 1
    stats = ledger.stats()
    assert (stats.size, stats.used, stats.idle, stats.utilization, stats.maxidle) == (2, 1, 1, 0.5, 1)
    pool.maxconn = 0
    assert ledger.stats().utilization == 0.0
    pool.closed = True
    assert ledger.closed
    assert ledger.stats().status == "closed"


def test_pool_that_is_gone(hook: Hook) -> None:
    """The ledger does not keep it; its checkouts end when somebody looks, as reclaimed."""
    pool = FakePool()
    ledger = open_ledger(hook, pool)
    ref, loan = weakref.ref(pool), lend(ledger, FakeConnection())
    del pool
    assert ref() is None
    assert ledger.closed
    assert ledger in hook.ledgers
    hook.settle()
    assert ledger not in hook.ledgers
    assert loan.outcome == "reclaimed"


def test_name_of_a_pool_that_is_gone(hook: Hook) -> None:
    """The next one has it, without a look in between."""
    pool = FakePool()
    first = open_ledger(hook, pool, "mine")
    del pool
    assert open_ledger(hook, FakePool(), "mine").name == first.name == "mine"


def test_one_ledger_for_a_pool(hook: Hook, pool: FakePool) -> None:
    """Whoever comes second gets the first one's; after the end nobody gets one."""
    ledger = hook.adopt(pool, KIND, "shop", UnknownTarget())
    assert hook.adopt(pool, KIND, "shop", UnknownTarget()) is ledger
    hook.end()
    assert not hasattr(pool, LEDGER)
    assert hook.adopt(pool, KIND, "shop", UnknownTarget()) is None


def test_ledger_that_cannot_be_opened(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that takes no attribute has none, which is logged once, and no name is lost on it."""

    class Closed(FakePool):
        def __setattr__(self, name: str, value: object) -> None:
            if name == LEDGER:
                raise AttributeError(name)
            super().__setattr__(name, value)

    for _ in range(3):
        assert hook.adopt(Closed(), KIND, "mine", UnknownTarget()) is None
    assert open_ledger(hook, FakePool(), "mine").name == "mine"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_end(ledger: Ledger) -> None:
    """What is out ends as is said, with its connections where they are gone too; the name is free."""
    loud, quiet = lend(ledger, FakeConnection(1)), FakeConnection(2)
    lend_quietly(ledger, quiet)
    ledger.end("discarded", "closed")
    assert (loud.outcome, ledger.holds, ledger.quiet) == ("discarded", {}, {})
    assert ledger.discarded == {"closed": 2}
    assert ledger.closed
    assert ledger.name not in registry._names


def test_fork(ledger: Ledger) -> None:
    """In a child nothing is out, nothing was done, and what the parent had is told as left behind."""
    lend(ledger, FakeConnection())
    lend_quietly(ledger, FakeConnection())
    ledger.restart_after_fork()
    stats = ledger.stats()
    assert (sum(stats.checkouts.values()), stats.oldest_hold, stats.discarded) == (0, 0.0, {"forked": 3})
    assert recorder(ledger).told("attached") == [[ledger]]


def test_fork_after_the_end(ledger: Ledger) -> None:
    """The connections of a pool that is not hooked any more are not ours to give up."""
    ledger.end("released")
    ledger.restart_after_fork()
    assert ledger.discarded == {}


# What goes wrong


@pytest.mark.parametrize("where", ["started", "acquired", "released", "failed", "discarded", "connected"])
def test_observer_that_raises(ledger: Ledger, caplog: pytest.LogCaptureFixture, where: str) -> None:
    """It is logged once, and the figures stay true."""
    ledger.silence = LOUD
    ledger._observer = Recorder(where)  # type: ignore[assignment]
    for _ in range(2):
        loan, conn = ask(ledger), FakeConnection()
        ledger.connected(monotonic(), conn)
        ledger.lend(loan, conn)
        ledger.give_back(loan)
        ledger.discard(ledger.slot_of(conn), "idle")
        ledger.refuse(ask(ledger), ValueError())
    stats = ledger.stats()
    assert (stats.checkouts["new"], stats.errors, stats.discarded) == (2, 2, {"idle": 2})
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_ledger_that_raises(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong in its own methods goes no further."""
    loan = ask(ledger)
    ledger.lend(None, FakeConnection())  # type: ignore[arg-type]
    ledger.refuse(loan, ValueError())
    assert "AttributeError" in caplog.text


def test_loud_and_silent(hook: Hook, pool: FakePool) -> None:
    """Checkouts are quiet while spans are off and nobody records; a pool that waits is never."""
    assert hook.adopt(FakePool(), KIND, "quiet", UnknownTarget()).silence._real_instrument is None  # type: ignore[union-attr]
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    settings = Settings.of(environ={"OTEL_PGPOOL_SPANS": "off"}, meter_provider=provider)
    hook.settings = settings
    assert hook.adopt(FakePool(), KIND, "recorded", UnknownTarget()).silence is LOUD  # type: ignore[union-attr]
    hook.settings = Settings.of(environ={"OTEL_PGPOOL_SPANS": "off", "OTEL_PGPOOL_WAIT_TIMEOUT": "1"})
    waiting = Kind(read, lambda _pool: 0, waits=lambda pool: pool.maxconn == 5)
    patient, other = FakePool(5), FakePool(6)
    ledger = hook.adopt(patient, waiting, "patient", UnknownTarget())
    assert ledger is not None
    assert (ledger.silence, ledger.turns is not None) == (LOUD, True)
    assert hook.adopt(other, waiting, "other", UnknownTarget()).turns is None  # type: ignore[union-attr]
    provider.shutdown()
