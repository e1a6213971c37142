"""What is known of a pool that is not ours: holds, light ones too, totals, connects, and the end."""

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

from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.open_checkouts import LightCheckout
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.pending_connects import REPORT_AFTER
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR, PoolTracker
from otel_pgpool.pool.call_site import call_sites
from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.runtime.thread_cache import here
from otel_pgpool.telemetry.sdk_internals import CLOSED, OPEN
from otel_pgpool.types import DiscardReason, Outcome, PoolErrorType
from tests.support.adapters import FakeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.pool.checkout import ManualCheckout


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

    @property
    def levels(self) -> Levels:
        return Levels(0, self.maxconn, self.used, self.idle, 1, closed=self.closed)


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

    def will_log_timeout(self) -> bool:
        return True

    def told(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, *args in self.calls if called == name]  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        return [name for name, *_args in self.calls]


class Adapter(FakeAdapter):
    """Leaves three connections to the parent, and lets callers of a pool of five wait."""

    inherited = 3

    def can_wait(self, pool: Any) -> bool:
        return bool(pool.maxconn == 5)


ADAPTER = Adapter()


@pytest.fixture
def session() -> Iterator[InstrumentationSession]:
    session = InstrumentationSession(InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}, long_hold=10))
    session.watch.parked = False  # no thread is started
    yield session
    session.end()


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def tracker(session: InstrumentationSession, pool: FakePool) -> PoolTracker:
    return track(session, pool)


def track(session: InstrumentationSession, pool: FakePool, name: str = "a pool of theirs") -> PoolTracker:
    tracker = session.track(pool, ADAPTER, name=name)
    assert tracker is not None
    tracker._observer = Recorder()  # type: ignore[assignment]
    return tracker


def recorder(tracker: PoolTracker) -> Recorder:
    observer = tracker._observer
    assert isinstance(observer, Recorder)
    return observer


def start(tracker: PoolTracker) -> ManualCheckout:
    frame = sys._getframe(1)
    return tracker.start((frame.f_code, frame.f_lasti))


def acquire(tracker: PoolTracker, conn: object) -> ManualCheckout:
    checkout = start(tracker)
    tracker.acquired(checkout, conn)
    return checkout


def acquire_lightly(tracker: PoolTracker, conn: object, since: float = 0.0) -> float:
    """As the light path does; ``since`` seconds ago, which is returned as a reading of the clock."""
    code = sys._getframe(1).f_code
    tracker.slot_of(conn)
    began = monotonic() - since
    tracker.light[id(conn)] = (began, here.thread, code, 0, code, 2, code, 2)
    return began


# A checkout


def test_given_back_twice(tracker: PoolTracker) -> None:
    """The second time nothing happens, whatever it says."""
    tracker.gate = OPEN
    checkout = acquire(tracker, FakeConnection())
    tracker.released(checkout)
    tracker.released(checkout, Outcome.DISCARDED, ValueError())
    assert (checkout.outcome, checkout.error_type) == ("released", None)
    assert recorder(tracker).names.count("released") == 1


def test_lent_again_before_its_return_was_done(tracker: PoolTracker) -> None:
    """Another thread may be faster: its hold stays, and the first ended before it began."""
    conn = FakeConnection()
    first = acquire(tracker, conn)
    second = acquire(tracker, conn)
    tracker.released(first)
    assert list(tracker.held) == [second]
    assert first.slot is second.slot
    assert first.slot.checkout is second
    assert first.released <= second.acquired


def test_served_while_it_ends(tracker: PoolTracker) -> None:
    """A checkout that is lent after the end of the tracker ends with it."""
    tracker.gate = OPEN
    checkout = start(tracker)
    tracker.end(Outcome.RELEASED)
    tracker.acquired(checkout, FakeConnection())
    assert (tracker.held, checkout.outcome) == ({}, "released")


def test_after_the_end_of_its_series_a_hold_goes_on(tracker: PoolTracker) -> None:
    """A retired tracker, whose pool was replaced, still watches what is out."""
    checkout = acquire(tracker, FakeConnection())
    tracker.stop_reporting()
    later = acquire(tracker, FakeConnection())
    assert list(tracker.held) == [checkout, later]
    assert not tracker.is_at_rest
    tracker.released(checkout)
    tracker.released(later)
    assert tracker.is_at_rest


def test_nobody_listens(tracker: PoolTracker) -> None:
    """Where checkouts leave nothing, an ordinary one is told to nobody; one that fails is."""
    tracker.gate = CLOSED
    tracker.released(acquire(tracker, FakeConnection()))
    assert recorder(tracker).names == []
    tracker.released(acquire(tracker, FakeConnection()), Outcome.DISCARDED, ValueError())
    tracker.failed(start(tracker), ValueError())
    assert recorder(tracker).names == ["released", "failed"]


def test_refused(tracker: PoolTracker, pool: FakePool) -> None:
    """A timeout is diagnosed; any other error is counted as one."""
    tracker.gate = OPEN
    pool.used = 2
    held = FakeConnection(99)
    holder = acquire(tracker, held)
    timed_out, failed = start(tracker), start(tracker)
    tracker.failed(timed_out, PoolError("connection pool exhausted"), PoolErrorType.TIMEOUT)
    tracker.failed(failed, ValueError("secret"))
    assert (timed_out.outcome, timed_out.error_type, timed_out.error_message) == (
        "timeout",
        "timeout",
        "connection pool exhausted",
    )
    assert (failed.outcome, failed.error_type, failed.error_message) == ("error", "ValueError", "")
    (_loan, error), (_failed, _same) = recorder(tracker).told("failed")
    assert (error.used, error.maxconn, [holder.pid for holder in error.holders]) == (2, 2, [99])
    assert "this thread already holds 1" in str(error)
    stats = tracker.stats()
    assert (stats.timeouts, stats.errors) == (1, 1)
    tracker.released(holder)


def test_queued(tracker: PoolTracker) -> None:
    """Who waits is counted while it waits, with those who hold, the longest first."""
    tracker.gate = OPEN
    holders = [acquire(tracker, FakeConnection(pid)) for pid in range(7)]
    waiter = start(tracker)
    waiter.observer_data = object()
    tracker.enqueued(waiter)
    assert tracker.stats().waiting == 1
    assert [blocker.connection_id for blocker in waiter.blockers] == [1, 2, 3, 4, 5]
    tracker.acquired(waiter, FakeConnection())
    assert (tracker.stats().waiting, tracker.stats().queued, waiter.path) == (0, 1, "queued")
    for checkout in (*holders, waiter):
        tracker.released(checkout)


# Light checkouts


def test_light_checkout_is_promoted(tracker: PoolTracker) -> None:
    """It becomes a checkout with its thread and places, once."""
    conn = FakeConnection(12)
    began = acquire_lightly(tracker, conn, since=3)
    checkout = tracker.promote_checkout_of(conn)
    assert checkout is not None
    assert tracker.promote_checkout_of(conn) is None
    assert (checkout.thread, checkout.path, checkout.slot.pid, checkout.is_observed) == (
        threading.current_thread(),
        "idle",
        12,
        False,
    )
    assert checkout.path_to.count("test_light_checkout_is_promoted") == 2
    assert (list(tracker.held), tracker.light) == ([checkout], {})
    assert 3 <= tracker.stats().oldest_hold <= monotonic() - began
    tracker.released(checkout)


def test_light_checkout_that_another_follows_meanwhile(tracker: PoolTracker) -> None:
    """If the connection is released and checked out again during the promotion, the record is that of the new hold."""
    conn, other = FakeConnection(12), FakeConnection(13)
    acquire_lightly(tracker, conn)
    acquire_lightly(tracker, other)
    follower = tracker.light.pop(id(other))
    follower = (follower[0] + 1, "follower", *call_sites(sys._getframe()))

    class Followed(dict[int, LightCheckout]):
        def pop(self, key: int, default: Any = None) -> Any:
            super().pop(key, default)
            return follower

    tracker.light = Followed(tracker.light)
    checkout = tracker.promote_checkout_of(conn)
    assert checkout is not None
    assert (checkout.acquired, checkout.thread, checkout.stack) == (follower[0], "follower", follower[2:])


def test_light_checkout_of_a_connection_that_is_gone(tracker: PoolTracker) -> None:
    """Its pool, and the connection with it, may be collected before anybody asks: it is told all the same."""
    conn = FakeConnection(12)
    acquire_lightly(tracker, conn)
    del conn
    gc.collect()
    tracker.end(Outcome.RECLAIMED, DiscardReason.RECLAIMED)
    ((checkout,),) = recorder(tracker).told("reclaimed")
    assert (checkout.slot.pid, checkout.outcome) == (0, "reclaimed")  # nobody can say it any more
    assert tracker.discards == {"reclaimed": 1}


def test_oldest_hold_is_the_oldest(tracker: PoolTracker) -> None:
    """A light checkout that was promoted after a younger one began is the older one still, and comes first."""
    old, young = FakeConnection(1), FakeConnection(2)
    began = acquire_lightly(tracker, old, since=5)
    acquire(tracker, young)
    tracker.promote_all()
    assert 5 <= tracker.stats().oldest_hold <= monotonic() - began
    assert [checkout.slot.pid for checkout in tracker.all_held()] == [1, 2]


# The watch


def test_long_hold(tracker: PoolTracker) -> None:
    """It is flagged once, when the threshold has passed; the next look is due when the next one passes it."""
    first, second = acquire(tracker, FakeConnection()), acquire(tracker, FakeConnection())
    second.acquired += 2
    assert tracker.report_due(first.acquired + 1) == first.acquired + 10
    assert tracker.report_due(first.acquired + 10) == second.acquired + 10
    assert tracker.report_due(first.acquired + 11) == second.acquired + 10
    assert [checkout for (checkout,) in recorder(tracker).told("held_long")] == [first]
    assert (first.flagged, second.flagged, tracker.long_holds) == (True, False, 1)
    assert tracker.report_due(second.acquired + 10) == NEVER
    assert tracker.long_holds == 2


def test_long_light_hold(tracker: PoolTracker) -> None:
    """A light checkout is flagged in its time, though one that was handed out later was promoted before."""
    light = FakeConnection(1)
    began = acquire_lightly(tracker, light, since=9.5)
    younger = acquire(tracker, FakeConnection(2))
    assert tracker.report_due(began + 9.5) == began + 10
    assert tracker.report_due(began + 10.5) == younger.acquired + 10
    ((flagged,),) = recorder(tracker).told("held_long")
    assert flagged.slot.pid == 1


def test_never_long(session: InstrumentationSession, pool: FakePool) -> None:
    """Without a threshold nothing is ever due."""
    session.options = InstrumentationOptions.of(environ={}, long_hold=None)
    tracker = track(session, pool)
    acquire(tracker, FakeConnection())
    acquire_lightly(tracker, FakeConnection())
    assert tracker.report_due(monotonic() + 1e9) == NEVER
    assert tracker.long_holds == 0


def test_flagged_at_its_return(tracker: PoolTracker) -> None:
    """A hold that comes back before the watch has seen that it was long is flagged by its return."""
    checkout = acquire(tracker, FakeConnection())
    checkout.acquired -= 10
    tracker.released(checkout)
    assert (checkout.flagged, tracker.long_holds) == (True, 1)
    assert recorder(tracker).told("released") == [[checkout]]


def test_utilization(tracker: PoolTracker, pool: FakePool) -> None:
    """It is looked at twice, and told when both looks agree; a closed pool has none."""
    pool.used = 2
    now = monotonic()
    for later in (1, 2, 3):
        tracker.report_due(now + later)
    assert [level for level, _stats in recorder(tracker).told("utilization_changed")] == ["critical"]
    assert not tracker.is_at_rest
    tracker.stop_reporting()
    pool.used = 0
    tracker.report_due(now + 4)
    tracker.report_due(now + 5)
    assert len(recorder(tracker).told("utilization_changed")) == 1
    assert tracker.is_at_rest


# Connections


def test_connect_of_another_thread(tracker: PoolTracker) -> None:
    """It is not this checkout's: path `idle`, and nothing told."""
    other = threading.Thread(target=tracker.connected, args=(monotonic(), FakeConnection()))
    other.start()
    other.join()
    checkout = acquire(tracker, FakeConnection())
    assert checkout.path == "idle"
    assert recorder(tracker).told("connected") == []
    tracker.report_due(monotonic() + 5)  # whoever it is for may still be preparing it
    assert recorder(tracker).told("connected") == []
    tracker.report_due(monotonic() + REPORT_AFTER + 1)
    ((connect,),) = recorder(tracker).told("connected")
    assert connect.asked_by is None


def test_outage(tracker: PoolTracker) -> None:
    """Begins with the first failure, counts, and ends with a connection; an interrupt is none."""
    for error in (KeyboardInterrupt(), OSError(1), OSError(2)):
        tracker.connect_failed(monotonic(), error)
        tracker.failed(start(tracker), error)
    assert tracker.stats().status == "unreachable"
    tracker.connected(monotonic(), FakeConnection())
    tracker.report_connects()
    names = [name for name in recorder(tracker).names if "out" in name or "connect" in name]
    assert names == [
        "connect_failed",
        "connect_failed",
        "outage_started",
        "connect_failed",
        "connected",
        "outage_ended",
    ]
    ((attempts, _duration),) = recorder(tracker).told("outage_ended")
    assert attempts == 2
    assert tracker.stats().status == "ok"


def test_an_outage_that_nobody_has_claimed(tracker: PoolTracker) -> None:
    """What several threads have met, and no checkout told, is told in the order in which it came."""
    met, over = threading.Semaphore(0), threading.Event()

    def meet(number: int) -> None:
        if number % 2:
            tracker.connect_failed(monotonic(), OSError(number))
        else:
            tracker.connected(monotonic(), FakeConnection())
        met.release()
        over.wait()  # the identity of a thread that has ended is given to the next

    threads = [threading.Thread(target=meet, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
        met.acquire()
    over.set()
    for thread in threads:
        thread.join()
    tracker.report_due(monotonic() + REPORT_AFTER + 1)
    turns = [name for name in recorder(tracker).names if name.startswith("outage")]
    assert turns == ["outage_started", "outage_ended"] * 9 + ["outage_started"]


def test_connections_are_forgotten(tracker: PoolTracker) -> None:
    """One that was collected is not known any more; a new one at its address is another."""
    conn = FakeConnection()
    tracker.slot_of(conn)
    assert len(tracker.slots) == 1
    del conn
    gc.collect()
    assert tracker.slots == {}
    assert tracker.slot_of(FakeConnection()).serial == 2


def test_connections_without_weak_references(tracker: PoolTracker) -> None:
    """What a program's own factory makes may not allow them."""

    class Slotted:
        __slots__ = ()

    checkout = acquire(tracker, Slotted())
    assert (checkout.slot.pid, checkout.slot.ref()) == (0, None)
    tracker.released(checkout)


def test_discarded(tracker: PoolTracker) -> None:
    """Counted by reason, told, and not known any more."""
    slot = tracker.register(FakeConnection())
    tracker.discarded(slot, DiscardReason.BROKEN)
    assert (tracker.discards, tracker.slots) == ({"broken": 1}, {})
    assert recorder(tracker).told("discarded") == [[[slot], "broken", None, None]]


# Whole pools


def test_levels(tracker: PoolTracker, pool: FakePool) -> None:
    """Read from the pool when asked for."""
    pool.used, pool.idle = 1, 1
    stats = tracker.stats()
    assert (stats.size, stats.used, stats.idle, stats.utilization, stats.maxidle) == (2, 1, 1, 0.5, 1)
    pool.maxconn = 0
    assert tracker.stats().utilization == 0.0
    pool.closed = True
    assert tracker.closed
    assert tracker.stats().status == "closed"


def test_pool_that_is_gone(session: InstrumentationSession) -> None:
    """The tracker does not keep it; its checkouts end when somebody looks, as reclaimed."""
    pool = FakePool()
    tracker = track(session, pool)
    ref, checkout = weakref.ref(pool), acquire(tracker, FakeConnection())
    del pool
    assert ref() is None
    assert tracker.closed
    assert tracker in session.trackers
    session.run_once()
    assert tracker not in session.trackers
    assert checkout.outcome == "reclaimed"


def test_name_of_a_pool_that_is_gone(session: InstrumentationSession) -> None:
    """The next one has it, without a look in between."""
    pool = FakePool()
    first = track(session, pool, "mine")
    del pool
    assert track(session, FakePool(), "mine").name == first.name == "mine"


def test_one_tracker_for_a_pool(session: InstrumentationSession, pool: FakePool) -> None:
    """Whoever comes second gets the first one's; after the end nobody gets one."""
    tracker = session.track(pool, ADAPTER, name="shop")
    assert session.track(pool, ADAPTER, name="shop") is tracker
    session.end()
    assert not hasattr(pool, TRACKER_ATTR)
    assert session.track(pool, ADAPTER, name="shop") is None


def test_tracker_that_cannot_be_opened(session: InstrumentationSession, caplog: pytest.LogCaptureFixture) -> None:
    """A pool that takes no attribute has none, which is logged once, and no name is lost on it."""

    class Closed(FakePool):
        def __setattr__(self, name: str, value: object) -> None:
            if name == TRACKER_ATTR:
                raise AttributeError(name)
            super().__setattr__(name, value)

    for _ in range(3):
        assert session.track(Closed(), ADAPTER, name="mine") is None
    assert track(session, FakePool(), "mine").name == "mine"
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_fork_after_the_end(tracker: PoolTracker) -> None:
    """The connections of a pool that is not hooked any more are not ours to give up."""
    tracker.end(Outcome.RELEASED)
    tracker._reset_after_fork()
    assert tracker.discards == {}


# What goes wrong


@pytest.mark.parametrize("where", ["started", "acquired", "released", "failed", "discarded", "connected"])
def test_observer_that_raises(tracker: PoolTracker, caplog: pytest.LogCaptureFixture, where: str) -> None:
    """It is logged once, and the figures stay true."""
    tracker.gate = OPEN
    tracker._observer = Recorder(where)  # type: ignore[assignment]
    for _ in range(2):
        checkout, conn = start(tracker), FakeConnection()
        tracker.connected(monotonic(), conn)
        tracker.acquired(checkout, conn)
        tracker.released(checkout)
        tracker.discarded(tracker.slot_of(conn), DiscardReason.IDLE)
        tracker.failed(start(tracker), ValueError())
    stats = tracker.stats()
    assert (stats.checkouts["new"], stats.errors, stats.discarded) == (2, 2, {"idle": 2})
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_tracker_that_raises(tracker: PoolTracker, caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong in its own methods goes no further."""
    checkout = start(tracker)
    tracker.acquired(None, FakeConnection())  # type: ignore[arg-type]
    tracker.failed(checkout, ValueError())
    assert "AttributeError" in caplog.text


def test_loud_and_silent(session: InstrumentationSession, pool: FakePool) -> None:
    """Checkouts are light while spans are off and nobody records; a pool that waits is never."""
    assert session.track(FakePool(), ADAPTER, name="quiet").gate._real_instrument is None  # type: ignore[union-attr]
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    settings = InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}, meter_provider=provider)
    session.options = settings
    assert session.track(FakePool(), ADAPTER, name="recorded").gate is OPEN  # type: ignore[union-attr]
    session.options = InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off", "OTEL_PGPOOL_WAIT_TIMEOUT": "1"})
    patient, other = FakePool(5), FakePool(6)
    tracker = session.track(patient, ADAPTER, name="patient")
    assert tracker is not None
    assert (tracker.gate, tracker.queue is not None) == (OPEN, True)
    assert session.track(other, ADAPTER, name="other").queue is None  # type: ignore[union-attr]
    provider.shutdown()
