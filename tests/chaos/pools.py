"""The pools under test behind one interface, and the operations of our pool one by one."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import TracerProvider
from psycopg2 import errors

from benchmarks.peers import MAKERS, Setup
from benchmarks.row import OURS, PSYCOPG, PSYCOPG2, QUEUEPOOL
from otel_pgpool import ConnectionPool, PoolError, PoolTimeout, TooManyRequests
from otel_pgpool.telemetry import Telemetry
from tests.chaos.application import CommitRecording, text_of
from tests.chaos.checks import SpanCounter
from tests.support.internals import core_of, use_reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.peers import Peer
    from otel_pgpool.observed import ObservedCheckout, ObservedSlot
    from otel_pgpool.observer import Connect
    from otel_pgpool.types import ReasonName


PRE_PING = f"{QUEUEPOOL}, pre_ping"
PEERS = (PSYCOPG2, PSYCOPG, PRE_PING)
POOLS = (OURS, *PEERS)


class Listener(Telemetry):
    """Our telemetry, which also records the errors that the pool gets."""

    def __init__(self, tracer_provider: TracerProvider) -> None:
        super().__init__(tracer_provider)
        self.seen: list[str] = []

    def connect_failed(self, connect: Connect) -> None:
        """Record a connect that failed."""
        self.seen.append(f"while it connected: {connect.message}")
        super().connect_failed(connect)

    def discarded(
        self,
        slots: Sequence[ObservedSlot],
        reason: ReasonName,
        error: BaseException | None,
        checkout: ObservedCheckout | None,
    ) -> None:
        """Record why connections were discarded."""
        self.seen.append(f"{reason}: {text_of(error)}")
        super().discarded(slots, reason, error, checkout)


class Ours:
    """Our pool, whose spans are counted, and sent to further ``span_processors``."""

    def __init__(self, setup: Setup, options: Mapping[str, Any]) -> None:
        self.spans = SpanCounter()
        self._provider = TracerProvider()
        for processor in (self.spans, *options.get("span_processors", ())):
            self._provider.add_span_processor(processor)
        self.listener = Listener(self._provider)
        self.pool = ConnectionPool(
            setup.minconn,
            setup.maxconn,
            setup.dsn,
            timeout=setup.timeout,
            observer=self.listener,
            **setup.options,
            **{name: value for name, value in options.items() if name != "span_processors"},
        )
        self.connection = self.pool.connection

    def close(self) -> None:
        """Close the pool and its tracer provider."""
        self.pool.close()
        self._provider.shutdown()


class CommittingPeer:
    """A peer whose blocks do not commit, with a commit at the end of each, as its users write it."""

    def __init__(self, peer: Peer) -> None:
        self._new_block = peer.connection
        self.close = peer.close

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """Provide a connection for a block."""
        with self._new_block() as conn:
            yield conn
            conn.commit()


def make(name: str, setup: Setup, options: Mapping[str, Any]) -> Any:
    """Make one of `POOLS`, whose connections record their commits; the options are for ours."""
    setup = replace(setup, delay=CommitRecording())
    if name == OURS:
        return Ours(setup, options)
    peer: Peer = MAKERS[QUEUEPOOL if name == PRE_PING else name](setup)
    return peer if name == PSYCOPG else CommittingPeer(peer)


def capacity(new_block: Callable[[], Any], limit: int, patience: float) -> int:
    """Return how many connections can be checked out at once."""
    had = threading.Semaphore(0)
    over = threading.Event()

    def hold() -> None:
        with ExitStack() as held:
            try:
                conn = held.enter_context(new_block())
                with conn.cursor() as cursor:
                    cursor.execute("select 1")
            except Exception:  # noqa: BLE001 - the connection cannot be checked out
                return
            had.release()
            over.wait()

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(limit)]
    for thread in threads:
        thread.start()
    found = sum(had.acquire(timeout=patience) for _ in range(limit))
    over.set()
    for thread in threads:
        thread.join(patience)
    return found


# The operations of our pool, one by one

BRIEFLY = 0.005
"""Seconds that a caller waits in vain."""
PATIENCE = 2.0
"""Seconds within which the condition of an operation has to come true."""
TWINS = "create temp table twins (n int unique deferrable initially deferred); insert into twins values (1), (1)"
"""The second row is refused at the commit, and the connection stays usable."""


def use(conn: Any) -> None:
    """Run one statement."""
    with conn.cursor() as cursor:
        cursor.execute("select 1")


def block(pool: ConnectionPool) -> None:
    """Run a block that ends without an error."""
    with pool.connection() as conn:
        use(conn)


def expected_hold(pool: ConnectionPool) -> None:
    """Run a block, and check a connection out by hand, with a threshold of their own."""
    with pool.connection(expected_hold=60) as conn:
        use(conn)
    conn = pool.getconn(expected_hold=None)
    use(conn)
    pool.putconn(conn)


def failing_block(pool: ConnectionPool) -> None:
    """Run a block that raises."""
    with suppress(LookupError), pool.connection() as conn:
        use(conn)
        raise LookupError


def failing_commit(pool: ConnectionPool) -> None:
    """Run a block whose commit is refused."""
    with suppress(errors.UniqueViolation), pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute(TWINS)


def long_hold(pool: ConnectionPool) -> None:
    """Run a block that becomes a long hold."""
    with pool.connection():
        before = core_of(pool).long_holds
        wait_until(lambda: core_of(pool).long_holds > before)


def with_reset(pool: ConnectionPool) -> None:
    """Run a block, and a ``getconn``, in a pool with a ``reset``."""
    use_reset(pool, use)
    try:
        block(pool)
        getconn_putconn(pool)
    finally:
        use_reset(pool, None)


def getconn_putconn(pool: ConnectionPool) -> None:
    """Check out and release by `getconn` and `putconn`."""
    conn = pool.getconn()
    try:
        use(conn)
    finally:
        pool.putconn(conn)


def getconn_by_key(pool: ConnectionPool) -> None:
    """Check out twice and release by a key, which keeps its connection; release once more after an interrupt."""
    try:
        conn = pool.getconn("key")
        assert pool.getconn("key") is conn
        pool.putconn(key="key")
    except KeyboardInterrupt:
        with suppress(PoolError):
            pool.putconn(key="key")
        raise


def putconn_close(pool: ConnectionPool) -> None:
    """Release a connection so that it is closed."""
    pool.putconn(pool.getconn(), close=True)


def queued(pool: ConnectionPool) -> None:
    """Wait while all connections are held, until they are released."""
    with all_held(pool, until=lambda: len(core_of(pool).queue) > 0):
        block(pool)


def timed_out(pool: ConnectionPool) -> None:
    """Time out while all connections are held, at once and after a short wait."""
    with all_held(pool):
        for timeout in (0.0, BRIEFLY):
            with suppress(PoolTimeout), pool.connection(timeout):
                pass


def refused(pool: ConnectionPool) -> None:
    """Be refused, as the queue is full."""
    waiter = threading.Thread(target=block, args=(pool,))
    try:
        with all_held(pool):
            waiter.start()
            wait_until(lambda: len(core_of(pool).queue) > 0)
            with suppress(TooManyRequests):
                block(pool)
    finally:
        waiter.join()


def after_deaths(pool: ConnectionPool) -> None:
    """Check out when all idle connections are dead, and were idle for long enough to be checked."""
    for slot in list(core_of(pool).idle):
        if slot.conn is not None:
            with suppress(Exception), socket.socket(fileno=os.dup(slot.conn.fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)
    age_idle(pool)
    block(pool)


def after_a_lifetime(pool: ConnectionPool) -> None:
    """Check out when all idle connections have passed their lifetime; release one that has passed it too."""
    for slot in list(core_of(pool).idle):
        slot.expires = 0.0
    age_idle(pool)
    with pool.connection() as conn:
        slot = core_of(pool).slots[id(conn)]
        slot.expires = slot.review_at = 0.0


def checking(pool: ConnectionPool) -> None:
    """Check every idle connection."""
    pool.check()


OPERATIONS = (
    block,
    expected_hold,
    failing_block,
    failing_commit,
    long_hold,
    with_reset,
    getconn_putconn,
    getconn_by_key,
    putconn_close,
    queued,
    timed_out,
    refused,
    after_deaths,
    after_a_lifetime,
    checking,
)


def age_idle(pool: ConnectionPool) -> None:
    """Make all idle connections one second older."""
    for slot in list(core_of(pool).idle):
        slot.seen -= 1
        slot.returned -= 1


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for at most `PATIENCE`."""
    deadline = monotonic() + PATIENCE
    while not condition() and monotonic() < deadline:
        time.sleep(0.001)


@contextmanager
def all_held(pool: ConnectionPool, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let another thread hold all connections until a condition is true or the block ends."""
    out, gone = threading.Event(), threading.Event()

    def hold() -> None:
        held = []
        try:
            held += [pool.getconn() for _ in range(pool.maxconn)]
        finally:
            out.set()
            wait_until(lambda: until() or gone.is_set())
            while held:
                pool.putconn(held.pop())

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        out.wait()
        yield
    finally:
        gone.set()
        holder.join()


@contextmanager
def silence_logs() -> Iterator[None]:
    """Keep the records of the pools, of thousands of long holds and timeouts, off the terminal."""
    logger = logging.getLogger("otel_pgpool")
    handler = logging.NullHandler()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
