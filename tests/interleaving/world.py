"""A pool whose parts are real, with connections, clock, threads and locks faked, and what must hold of it."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from otel_pgpool import PoolError, PoolTimeout
from otel_pgpool.config import PoolConfig
from otel_pgpool.driver import session
from otel_pgpool.pool import checkout, connect, context, core, discard, slots, waiters
from otel_pgpool.pool import parts as parts_module
from otel_pgpool.pool.checkout import AT_ONCE, Checkout
from otel_pgpool.pool.core import State
from otel_pgpool.runtime import background, wakeup
from tests.interleaving import shared
from tests.interleaving.scheduler import HERE, SchedulerLock, SchedulerRLock
from tests.support.fakes import agree
from tests.support.replaced import clocks, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.pool.parts import Parts

NOW = 1000.0
PATIENT = 1e7
"""Seconds of a wait that ends only if no thread can run any more."""


CONFIG = PoolConfig.of(0, 9, timeout=PATIENT, check=None, environ={})


class Clock:
    """A clock set by hand."""

    now = NOW


def monotonic() -> float:
    """Return the time of the fake clock."""
    return Clock.now


def sleep(seconds: float) -> None:
    """Let time pass."""
    Clock.now += max(0.0, seconds)


def diagnose(
    _self: Any, reason: str, _since: float, retries: int, _waiter: Any = None, kind: Any = PoolTimeout
) -> PoolTimeout:
    """Return the error of a caller that has waited in vain, without the figures, which `look` reads."""
    return kind(reason, waited=0.0, retries=retries, holders=(), size=0, used=0, idle=0, connecting=0, waiting=0)


class FakeThread:
    """A thread that the pool has started. Nothing runs it before the operations have ended."""

    started: ClassVar[list[FakeThread]] = []

    def __init__(self, target: Callable[[], object], name: str = "", daemon: bool = True) -> None:
        self.target, self.name, self.daemon = target, name, daemon
        self.ident: int | None = None
        self.has_run = False

    def start(self) -> None:
        """Note that the thread was started."""
        self.ident = len(FakeThread.started) + 1
        FakeThread.started.append(self)

    def is_alive(self) -> bool:
        """Return whether it was started and has not ended."""
        return self.ident is not None and not self.has_run

    def join(self, timeout: float | None = None) -> None:
        """Wait for nothing."""


class Threading:
    """What the pool's modules find as ``threading``."""

    Lock = SchedulerLock
    RLock = SchedulerRLock
    Thread = FakeThread
    TIMEOUT_MAX = threading.TIMEOUT_MAX
    local = threading.local
    name = "a caller"
    current: Any = None

    @staticmethod
    def current_thread() -> Any:
        """Return the fake thread that runs as this one."""
        return Threading.current or HERE.runner


class Connection:
    """A connection without a server."""

    isolation_level = readonly = deferrable = None
    autocommit = False
    status = 1
    notices: Any = ()
    closed = 0

    host, port = "fake", 5432

    def __init__(self, server: Server, number: int) -> None:
        self._server, self.number = server, number
        self.holder: object = None

    def __repr__(self) -> str:
        return f"connection {self.number}"

    @property
    def info(self) -> Connection:
        """What psycopg2 says about a connection."""
        return self

    def get_transaction_status(self) -> int:
        return TRANSACTION_STATUS_IDLE

    def get_backend_pid(self) -> int:
        return self.number

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        if not self.closed:
            self.closed = 1
            self._server.opened -= 1


class Server:
    """What the pool connects to; counts the open connections."""

    address, port, namespace, name = "fake", 5432, "db", "db"
    fallback_name: Any = None

    def __init__(self) -> None:
        self.opened = self.made = self.failures = 0
        self.connections: list[Connection] = []

    def connect(self, _attempt: Any) -> Connection:
        if self.failures:
            self.failures -= 1
            raise OSError("no server")
        self.made += 1
        self.opened += 1
        conn = Connection(self, self.made)
        self.connections.append(conn)
        return conn

    def chosen_server(self, _conn: Connection) -> None:
        return None


class _Dead:
    """A weak reference that the garbage collector has cleared."""

    def __call__(self) -> None:
        return None


class World:
    """One pool and its callers, for one order.

    Args:
        idle: connections that are idle at the start.
        held: connections that are held at the start, by the world.
        room: further connections that the pool may open.
    """

    def __init__(self, *, idle: int = 0, held: int = 0, room: int = 0) -> None:
        shared.forget_all()
        Clock.now = NOW
        FakeThread.started = []
        self.server: Any = Server()
        self.maxconn = idle + held + room
        config = replace(CONFIG, maxconn=self.maxconn)
        self.parts: Parts = parts_module.Parts(config, self.server, None)
        self.core = self.parts.core
        self.most = self.maxconn  # connections that may be open
        self.served = self.failed = self.ended = 0
        self.began_parked = self.begins_suspended = self.may_be_interrupted = False
        self.again: Any = None  # the block whose connection is released
        self.blocks: list[Any] = []  # that are entered
        self.dropped: Any = None
        self._watch()
        self.core.open()
        self.core.parked = False
        self.background(self.parts.thread)
        self.contexts = []
        for _ in range(idle + held):
            self.connect()
        for _ in range(held):
            self.contexts.append(self.enter())

    def _watch(self) -> None:
        parts = self.parts
        for thing in (
            self.core.connection_totals,
            self.core,
            parts.thread.wakeup,
            parts.thread,
            parts.connectors.dropped,
            parts.connectors._wakeup,
            parts.connectors,
            parts.releaser._deferred,
            parts.releaser,
            parts.maintenance,
            parts.maintenance._alarm,
            parts.keepalive,
            parts.liveness,
            parts.lifecycle,
            parts.acquirer,
        ):
            shared.watch(thing)

    def background(self, thread: Any) -> None:
        """Start the maintenance thread, in name."""
        thread._thread = FakeThread(thread._run, "maintenance")
        thread._thread.start()
        thread._thread.is_maintenance = True

    def connect(self) -> None:
        """Let a connector open a connection."""
        core = self.core
        with core.lock:
            core.growth_requested = True
            slot = core.reserve_slot(NOW)
        assert slot is not None
        self.parts.connectors._connect(slot, None)

    # A caller

    def context(self, timeout: float | None = None) -> Any:
        """Return a context as `ConnectionPool.connection` does."""
        block = context.CheckoutContext()
        block.owner, block.parts, block.timeout = self, self.parts, timeout
        frame = sys._getframe()
        block.stack = frame.f_code, frame.f_lasti
        block.checkout = block.conn = None
        return block

    def enter(self, timeout: float | None = None) -> Any:
        """Check a connection out, and hold it."""
        block = self.context(timeout)
        try:
            conn = block.__enter__()
        except PoolError:
            self.failed += 1
            raise
        self._receive(block, conn)
        return block

    def leave(self, block: Any) -> None:
        """Release the connection of a block."""
        assert block.conn.holder is block, "the connection of a holder was handed to another"
        assert not block.conn.closed, "the connection of a holder was closed"
        block.conn.holder = None
        self.blocks.remove(block)
        block.__exit__(None, None, None)

    def end_setup(self) -> None:
        """Begin: what the operations drop is closed, since nothing refers to it any more."""
        if self.begins_suspended:
            self.core.suspend(NOW)
        if self.dropped is not None:
            self.dropped[1].close()
            self.dropped = None

    def forget(self, block: Any) -> None:
        """Note that a block's connection is released in another way."""
        block.conn.holder = None
        self.blocks.remove(block)

    def queue_up(self) -> tuple[Any, Any]:
        """Let a caller queue that no thread waits for yet; return its checkout and its waiter."""
        record = context.Checkout()
        record.stack, record.thread, record.started, record.path = self.context().stack, Threading, NOW, None
        waiter = self.core.join(record, NOW)
        return record, waiter

    def settle(self, record: Any, waiter: Any) -> None:
        """Do the rest of an acquire for a caller that has queued."""
        self.parts.connectors.wait_for(waiter.lock, NOW + PATIENT)
        conn = self.core.leave(record, waiter) if waiter.conn is None else waiter.conn
        if conn is None:
            return
        if record.path is None:
            self.core.accept(record, NOW)
        block = self.context()
        block.checkout, block.conn = record, conn
        self._receive(block, conn)

    def _receive(self, block: Any, conn: Connection) -> None:
        self.served += 1
        assert not conn.closed, "a closed connection was handed out"
        assert conn.holder is None, "a connection was handed to two holders"
        conn.holder = block
        self.blocks.append(block)

    def drop(self, block: Any) -> Any:
        """Drop the connection of a block; return the weak reference that the pool had to it.

        The garbage collector may clear the reference although a generator still has the connection, and releases it.
        """
        slot = block.checkout.slot
        self.dropped = block.checkout, block.conn
        self.forget(block)
        slot.ref = ref = _Dead()
        slot.review_at = AT_ONCE
        block.conn = block.checkout = None
        return ref

    # What must hold

    def check(self) -> None:
        """Fail unless the invariants hold that hold after each step."""
        core = self.core
        assert self.server.opened <= self.most, f"{self.server.opened} connections are open, of at most {self.most}"
        assert len(core.members) <= self.most, f"{len(core.members)} places are in use, of at most {self.most}"
        idle = list(core.idle)
        assert len(set(map(id, idle))) == len(idle), "a connection is idle twice"
        for slot in idle:
            assert slot in core.members, "an idle connection has no place"
            assert slot.checkout is None, "an idle connection has a holder"
            assert slot.conn is None or slot.conn.holder is None, "an idle connection is used"

    def stuck(self, waiting: int) -> None:
        """Do what the pool's own threads do while every caller waits; fail if one of them waits in vain."""
        core = self.core
        if core.lock.locked():
            return
        if core.is_suspended:
            self.parts.lifecycle.resume()
            return
        before = core.created
        self.run_connectors()
        if core.created > before:
            return
        if core.queue and not core.parked:
            self.parts.maintenance.run_once()
            self.run_connectors()
        if core.created > before:
            return
        if self.may_be_interrupted:
            self.drop_lost()
            self.collect_orphans()
            self.run_connectors()
            if not core.queue or core.created > before:
                return
        held = [slot for slot in core.members if slot.checkout is not None and slot.checkout.is_held]
        assert not core.idle, "a caller waits while a connection is idle"
        assert not core.queue or len(held) >= core.maxconn, "a caller waits while no other holds the connection"
        assert waiting <= len(core.queue), "a caller sleeps that is not in the queue"

    def rest(self, *, was_interrupted: bool = False) -> object:
        """Fail unless everything fits together once the operations have ended; then end everything, and look again.

        Returns:
            How the order has ended, for a comparison with other orders.
        """
        core = self.core
        if core.is_suspended:
            self.parts.lifecycle.resume()
        self.run_connectors()
        if was_interrupted:
            self.drop_lost()
            self.collect_orphans()
        agree(core)
        assert core.used == len(self.blocks), f"{core.used} in use, {len(self.blocks)} held"
        counted = sum(core.checkouts().values())
        assert 0 <= counted - self.served <= int(was_interrupted), f"{counted} checkouts counted, {self.served} served"
        assert self.failed == core.timeouts + core.errors or was_interrupted
        assert not any(slot.evict_reason for slot in core.idle), "a connection that is to go is still idle"
        assert not (core.idle and core.remaining > core.maxconn), "a surplus connection is idle"
        if not self.began_parked:
            assert not (core.parked and core.used), "the maintenance is parked while a connection is held"
        outcome = self.served, self.failed, core.created, len(core.idle), core.parked, str(core.discarded)
        for block in list(self.blocks):
            self.leave(block)
        self.run_connectors()
        agree(core)
        assert core.used == 0
        assert not core.queue, "somebody is still in the queue"
        assert self.server.opened == len(core.members), f"{self.server.opened} open, {len(core.members)} members"
        assert core.remaining <= core.maxconn, "the pool has more connections than it may"
        assert core.state is not State.CLOSED or not core.members, "a closed pool keeps a connection"
        self._use_again()
        return outcome

    def _use_again(self) -> None:
        """Fail unless as many connections can be checked out as the pool may have."""
        core = self.core
        if core.state is State.CLOSED:
            return
        self.most = max(self.most, core.maxconn)
        while len(core.members) < core.maxconn:
            self.connect()
        blocks = [self.enter(0.0) for _ in range(core.maxconn)]
        for block in blocks:
            self.leave(block)

    def run_connectors(self) -> None:
        """Run the connectors that were started."""
        for each in FakeThread.started:
            if not hasattr(each, "is_maintenance") and not each.has_run:
                Threading.current = each
                try:
                    each.target()
                finally:
                    Threading.current = None
                    each.has_run = True

    def drop_lost(self) -> None:
        """Drop and reclaim the connections to which an interrupt has left no reference but the scheduler's own."""
        kept = [block.conn for block in self.blocks] + [slot.conn for slot in self.core.members]
        lost = [conn for conn in self.server.connections if not conn.closed and conn not in kept]
        for conn in lost:
            conn.close()
        keys = list(map(id, lost))
        self.core.reclaim([slot.ref for slot in self.core.members if slot.key in keys], Clock.now)
        self.parts.connectors.start_if_needed()

    def collect_orphans(self) -> None:
        """Let so much time pass that the maintenance has found every orphan twice."""
        for seconds in (0.0, 11.0, 11.0):
            Clock.now += seconds
            orphans = self.core.collect_orphans(Clock.now)
            self.parts.maintenance._discarder.discard(orphans, "reclaimed")


@contextmanager
def faked() -> Iterator[None]:
    """Put the fakes in the place of clock, threads, locks and network, in the modules of the pool."""
    changes: list[tuple[Any, str, Any]] = [
        (module, "threading", Threading) for module in (slots, waiters, connect, background, wakeup)
    ]
    changes += clocks(monotonic)
    changes += [
        (background, "is_unpatched", lambda _lock: False),
        (wakeup, "is_unpatched", lambda _lock: False),
        (connect, "delay_forks_until_this_thread_ends", lambda: None),
        (connect.Connectors, "diagnose", diagnose),
        (SchedulerLock, "sleep", staticmethod(sleep)),
        (connect, "local_port", lambda _number: 0),
        (discard, "close", Connection.close),
        (session, "close", Connection.close),
        (core, "Slot", shared.watched(core.Slot)),
        (core, "OneShotEvent", shared.watched(waiters.OneShotEvent)),
        (slots, "OneShotEvent", shared.watched(waiters.OneShotEvent)),
        (waiters, "Waiter", shared.watched(waiters.Waiter)),
        (context, "Checkout", shared.watched(Checkout)),
        (checkout, "ManualCheckout", shared.watched(checkout.ManualCheckout)),
        (connect, "ConnectAttempt", shared.watched(connect.ConnectAttempt)),
    ]
    with replaced(changes):
        yield
