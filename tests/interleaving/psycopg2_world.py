"""An instrumented pool of psycopg2, with the real wrappers of the fast path, and connections without a server."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import psycopg2.pool
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool.instrumentation import open_checkouts
from otel_pgpool.instrumentation import tracker as tracker_module
from otel_pgpool.instrumentation.adapters.psycopg2 import fast_path
from otel_pgpool.instrumentation.adapters.psycopg2.install import Psycopg2Adapter
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.pool import checkout
from otel_pgpool.types import Outcome
from tests.interleaving import shared
from tests.interleaving.explorer import Case
from tests.interleaving.operations import Operation
from tests.interleaving.scheduler import Scheduler, SchedulerLock
from tests.interleaving.world import Connection, FakeThread, Server, faked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GETCONN, PUTCONN = ThreadedConnectionPool.getconn, ThreadedConnectionPool.putconn
OPTIONS = InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}, long_hold=10)


class Observer:
    """An observer that notes nothing."""

    recording_gate = silence = None

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args: None


class Connected(Connection):
    """A connection as psycopg2's pool uses it."""

    def __init__(self) -> None:
        super().__init__(Server(), 1)

    transaction_status = 0

    def rollback(self) -> None:
        """Do nothing."""


class Instrumented:
    """One pool of psycopg2 and its tracker, for one order."""

    def __init__(self, *, idle: int, held: int, room: int, light: bool) -> None:
        shared.forget_all()
        FakeThread.started = []
        self.session = InstrumentationSession(OPTIONS)
        self.session.watch.parked = False
        adapter = Psycopg2Adapter(self.session)
        self.pool: Any = ThreadedConnectionPool(0, max(1, idle + held + room), "")
        self.pool._lock = SchedulerLock()
        self.pool.minconn = self.pool.maxconn  # so that it keeps what is released
        tracker: Any = adapter._calls.tracker_of(self.pool)
        self.tracker = tracker
        tracker._observer = Observer()
        wrap_get, wrap_put = fast_path.wrap_getconn, fast_path.wrap_putconn
        if light:
            wrap_get, wrap_put = fast_path.wrap_getconn_lightly, fast_path.wrap_putconn_lightly
        self.get = wrap_get(adapter._calls, GETCONN)
        self.put = wrap_put(adapter._calls, ThreadedConnectionPool, PUTCONN)
        self.served = self.failed = 0
        self.began_parked = self.has_ended = False
        self.holds: list[Any] = []
        conns = [self.getconn() for _ in range(idle + held)]
        for conn in conns[held:]:
            self.putconn(conn)
        self.free = self.holds.copy()
        for thing in (tracker, self.session.watch, self.session.watch._thread, self.session.watch._deferred):
            shared.watch(thing)
        self.session.trackers = shared.contained({tracker: None})

    def getconn(self) -> Any:
        """Check a connection out."""
        try:
            conn = self.get(self.pool)
        except psycopg2.pool.PoolError:
            self.failed += 1
            return None
        assert conn not in self.holds, "a connection was handed to two holders"
        self.served += 1
        self.holds.append(conn)
        return conn

    def putconn(self, conn: Any, *, close: bool = False) -> None:
        """Release a connection."""
        if conn is not None:
            self.holds.remove(conn)
            self.put(self.pool, conn, None, close)

    def check(self) -> None:
        """Fail unless the invariants hold that hold after each step."""
        tracker = self.tracker
        assert min(tracker.idle_checkouts, tracker.new_checkouts, tracker.errors, tracker.timeouts) >= 0
        assert tracker.hold_seconds >= 0

    def rest(self) -> object:
        """Fail unless what the tracker knows is what has happened; then end all holds, and look again."""
        tracker, pool = self.tracker, self.pool
        counted = tracker.handed_out
        assert counted == self.served, f"{counted} checkouts counted, {self.served} served"
        assert tracker.errors + tracker.timeouts == self.failed, f"{self.failed} failed"
        known = len(tracker.light) + len(tracker.held)
        if not self.has_ended:
            assert known == len(self.holds), f"{known} holds known, {len(self.holds)} held"
        assert len(tracker.light) + len(tracker.held) == len(
            {*tracker.light} | {each.slot.key for each in tracker.held}
        ), "a hold is known twice"
        if not self.began_parked and self.holds and not self.has_ended:
            assert not self.session.watch.parked, "the watch is parked while a connection is held"
        assert len(pool._used) == len(self.holds)
        outcome = self.served, self.failed, tracker.idle_checkouts, len(tracker.slots), str(dict(tracker.discards))
        for conn in self.holds.copy():
            self.putconn(conn)
        assert not tracker.light, "a light checkout is left"
        assert not tracker.held, "a record of a checkout is left"
        assert all(slot.checkout is None for slot in tracker.slots.values()), "a slot still has a checkout"
        self.session.is_on = False
        return outcome


def get(world: Instrumented) -> Callable[[], object]:
    """Check a connection out."""
    return world.getconn


def put(world: Instrumented) -> Callable[[], object]:
    """Release a connection."""
    conn = world.free.pop()
    return lambda: world.putconn(conn)


def close(world: Instrumented) -> Callable[[], object]:
    """Release a connection and close it."""
    conn = world.free.pop()
    return lambda: world.putconn(conn, close=True)


def use(world: Instrumented) -> Callable[[], object]:
    """Check a connection out and release it."""
    return lambda: world.putconn(world.getconn())


def wake(world: Instrumented) -> Callable[[], object]:
    """Do so while the watching thread is parked."""
    world.session.watch.parked = world.began_parked = True
    return use(world)


def watch(world: Instrumented) -> Callable[[], object]:
    """Make a pass of the watching thread."""
    world.session._handed_out = world.tracker.handed_out
    return world.session.run_once


def promote(world: Instrumented) -> Callable[[], object]:
    """List the holders, which turns light checkouts into records."""
    return world.tracker.all_held


def look(world: Instrumented) -> Callable[[], object]:
    """Read the totals twice."""

    def act() -> None:
        first, second = world.tracker.stats(), world.tracker.stats()
        for path, count in first.checkouts.items():
            assert 0 <= count <= second.checkouts[path], "a total has decreased"
        assert 0 <= first.hold_seconds <= second.hold_seconds

    return act


def end(world: Instrumented) -> Callable[[], object]:
    """End the tracker, as `uninstrument()` does."""
    world.has_ended = True
    return lambda: world.tracker.end(Outcome.RELEASED)


OPERATIONS: dict[str, Operation] = {
    "getconn": Operation(get),
    "putconn": Operation(put, held=1),
    "putconn close": Operation(close, held=1),
    "use": Operation(use),
    "wake": Operation(wake),
    "watch": Operation(watch),
    "list holders": Operation(promote),
    "look": Operation(look),
    "end": Operation(end),
}  # type: ignore[arg-type]


def pairs() -> list[tuple[str, str]]:
    """Return every pair of operations that two threads may do at once."""
    alone = {("watch", "watch"), ("end", "end")}
    return [pair for pair in combinations_with_replacement(OPERATIONS, 2) if pair not in alone]


def scenario(names: Sequence[str], idle: int = 0, interrupt_at: int = -1, *, light: bool = True) -> Callable[[], Case]:
    """Return the scenario of some operations at once, on a pool with so many idle connections."""
    operations = [OPERATIONS[name] for name in names]
    held = sum(each.held for each in operations)

    def begin() -> Case:
        world: Any = Instrumented(idle=idle, held=held, room=0, light=light)
        actions = [each.prepare(world) for each in operations]

        def rest(scheduler: Scheduler) -> object:
            for runner in scheduler.runners:
                if runner.error is not None:
                    raise runner.error
            return world.rest()

        return Case(actions, world.check, rest, interrupt_at)

    return begin


@contextmanager
def faked_psycopg2() -> Iterator[None]:
    """Put fakes in the place of psycopg2's connect, clock and locks."""
    connect = psycopg2.connect
    changes: list[tuple[Any, str, Any]] = [
        (open_checkouts, "TrackedSlot", shared.watched(open_checkouts.TrackedSlot)),
        (fast_path, "ManualCheckout", shared.watched(checkout.ManualCheckout)),
        (tracker_module, "ManualCheckout", shared.watched(checkout.ManualCheckout)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _value in changes]
    with faked():
        psycopg2.connect = lambda *_args, **_kwargs: Connected()
        for module, name, value in changes:
            setattr(module, name, value)
        try:
            yield
        finally:
            psycopg2.connect = connect
            for module, name, value in before:
                setattr(module, name, value)
