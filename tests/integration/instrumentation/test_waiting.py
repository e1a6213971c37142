"""OTEL_PGPOOL_WAIT_TIMEOUT: an exhausted ThreadedConnectionPool waits, first come, first served, instead of raising."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

from tests.support.database import ask, refused_port
from tests.support.instrumentation import CLOSED, EXHAUSTED, denied, instrumented, lent, name_of, tracker_of
from tests.support.telemetry import assert_exactly, is_child, status_of, until, waited
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from tests.support.telemetry import Signals

Pool = Any


@contextmanager
def waiting_for(
    monkeypatch: pytest.MonkeyPatch, signals: Signals | None, seconds: str, **options: Any
) -> Iterator[Any]:
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", seconds)
    with instrumented(signals, **{"long_hold": None, **options}) as instrumentor:
        yield instrumentor


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, signals: Signals) -> Iterator[Any]:
    """Pools that wait longer than any test."""
    with waiting_for(monkeypatch, signals, str(PATIENCE)) as instrumentor:
        yield instrumentor


def waiting(pool: Pool) -> int:
    return len(tracker_of(pool).waiting)


def queue(pool: Pool, work: Any = None) -> Future[Any]:
    """Let a thread ask, and go on once it waits."""
    before = waiting(pool)
    future = in_thread(work or pool.getconn)
    until(lambda: waiting(pool) > before or future.done())
    assert not future.done(), future.result()
    return future


def test_waits_for_a_return(signals: Signals, patient: None, dsn: str) -> None:
    """A waiter gets what is returned; its span says how long it waited, and for whom."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    with signals.tracer.start_as_current_span("holder"):
        conn = pool.getconn()
    (holder,) = signals.live()
    future = queue(pool)
    assert signals.value("db.client.connection.pending_requests", pool_name=name_of(dsn)) == 1
    began = time.monotonic()
    assert wait_until(lambda: time.monotonic() - began > 0.02)
    pool.putconn(conn)
    assert future.result(PATIENCE) is conn
    pool.putconn(conn)
    _first, span = signals.named("pool.checkout")
    assert_exactly(span.attributes, lent(dsn, path="queued"))
    assert span.attributes is not None
    assert span.attributes["otel_pgpool.wait_time"] > 0.02
    assert [event.name for event in span.events] == ["pool.acquired"]
    wait = signals.one("pool.wait")
    assert is_child(wait, span)
    (link,) = wait.links
    assert link.context == holder.get_span_context()
    assert_exactly(link.attributes, {"otel_pgpool.held": float, "otel_pgpool.connection.id": 1})
    assert_exactly(wait.attributes, waited(1, name_of(dsn)))
    assert wait.attributes is not None
    assert wait.attributes["otel_pgpool.blocker.connection.pid"] == conn.get_backend_pid()
    assert wait.attributes["otel_pgpool.blocker.trace_id"] == f"{holder.get_span_context().trace_id:032x}"
    assert "test_waits_for_a_return" in str(wait.attributes["otel_pgpool.blocker.checked_out_at"])
    assert signals.value("db.client.connection.pending_requests", pool_name=name_of(dsn)) == 0
    assert signals.values("otel_pgpool.checkouts", name_of(dsn)) == {("idle",): 1, ("queued",): 1, ("new",): 0}
    assert signals.values("db.client.connection.timeouts", name_of(dsn)) == {(): 0}


@pytest.mark.parametrize(("value", "errors"), [("", 0), ("0", 0), ("soon", 1)])
def test_raises_at_once(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, value: str, errors: int) -> None:
    """Nothing changes where nobody asked for a wait; what is no number of seconds is logged."""
    with waiting_for(monkeypatch, signals, value):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.getconn()
        with pytest.raises(PoolError, match=f"^{EXHAUSTED}$"):
            pool.getconn()
    records = [each.record for each in signals.records.all if "WAIT_TIMEOUT" in each.record.getMessage()]
    assert [record.levelname for record in records] == ["ERROR"] * errors
    assert all(repr(value) in record.getMessage() for record in records)


def test_times_out_in_the_stock_pools_words(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout the stock error comes out: `timeout`, with a wait of its length, and the place left free."""
    with waiting_for(monkeypatch, signals, "0.05"):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()
        with pytest.raises(PoolError, match=f"^{EXHAUSTED}$") as caught:
            pool.getconn()
        assert type(caught.value) is PoolError
        span = signals.checkout()
        assert_exactly(span.attributes, denied(dsn, "timeout", "timeout", "queued"))
        assert status_of(span) == ("ERROR", EXHAUSTED)
        assert span.attributes is not None
        assert span.attributes["otel_pgpool.wait_time"] >= 0.05
        assert is_child(signals.one("pool.wait"), span)
        assert signals.values("db.client.connection.timeouts", name_of(dsn)) == {(): 1}
        assert len(signals.logged("timeout")) == 1
        assert waiting(pool) == 0
        pool.putconn(conn)
        assert pool.getconn() is conn


def test_first_come_first_served(signals: Signals, patient: None, dsn: str) -> None:
    """Ten callers are served in the order in which they came, though each return wakes but one."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    order: list[int] = []

    def work(number: int) -> None:
        mine = pool.getconn()
        order.append(number)
        pool.putconn(mine)

    futures = [queue(pool, lambda number=number: work(number)) for number in range(10)]
    pool.putconn(conn)
    for future in futures:
        future.result(PATIENCE)
    assert order == list(range(10))


def test_newcomers_do_not_overtake(signals: Signals, patient: None, dsn: str) -> None:
    """A thread that gives back and asks again at once comes after who waits already."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    mine = pool.getconn()
    order: list[str] = []

    def waiter() -> None:
        conn = pool.getconn()
        order.append("waiter")
        pool.putconn(conn)

    future = queue(pool, waiter)
    pool.putconn(mine)
    mine = pool.getconn()
    order.append("newcomer")
    pool.putconn(mine)
    future.result(PATIENCE)
    assert order == ["waiter", "newcomer"]


def test_key_that_is_lent_does_not_wait(signals: Signals, patient: None, dsn: str) -> None:
    """`getconn(key)` again is answered at once, though others wait."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn("me")
    future = queue(pool)
    assert pool.getconn("me") is conn
    pool.putconn(conn, "me")
    pool.putconn(future.result(PATIENCE))


@pytest.mark.parametrize("close", [False, True])
def test_every_kind_of_return_serves(signals: Signals, patient: None, dsn: str, close: bool) -> None:
    """A connection that is closed on its return makes room for a new one."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    future = queue(pool)
    pool.putconn(conn, close=close)
    mine = future.result(PATIENCE)
    assert (mine is conn) is not close
    pool.putconn(mine)
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn, path="new" if close else "queued"))


def test_return_of_what_was_lent_before_the_hook(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter is served by a connection that was out already when the instrumentation came on."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    early = pool.getconn()
    with waiting_for(monkeypatch, signals, str(PATIENCE)):
        future = queue(pool)
        pool.putconn(early)
        assert future.result(PATIENCE / 3) is early
        pool.putconn(early)


def test_closeall_ends_the_wait(signals: Signals, patient: None, dsn: str) -> None:
    """Who waits is told that the pool is closed, each at once."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    pool.getconn()
    futures = [queue(pool) for _ in range(3)]
    pool.closeall()
    for future in futures:
        with pytest.raises(PoolError, match=f"^{CLOSED}$"):
            future.result(PATIENCE / 3)
    for span in signals.named("pool.checkout")[1:]:
        assert_exactly(span.attributes, denied(dsn, "error", "closed", "queued"))


def test_uninstrument_ends_the_wait(signals: Signals, patient: Any, dsn: str) -> None:
    """After `uninstrument()` no waiter is called any more: it asks once more, and gets the library's answer."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    futures = [queue(pool) for _ in range(3)]
    patient.uninstrument()
    for future in futures:
        with pytest.raises(PoolError, match=f"^{EXHAUSTED}$"):
            future.result(PATIENCE / 3)
    pool.putconn(conn)
    assert signals.live() == []


def test_uninstrument_serves_who_can_be_served(signals: Signals, patient: Any, dsn: str) -> None:
    """One that is served while the instrumentation goes off has its connection, and a span that has ended."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    future = queue(pool)
    original = ThreadedConnectionPool.putconn.__wrapped__  # type: ignore[attr-defined]
    original(pool, conn)  # nobody is called
    patient.uninstrument()
    assert future.result(PATIENCE / 3) is conn
    assert until(lambda: len(signals.named("pool.checkout")) == 2)
    assert signals.live() == []
    pool.putconn(conn)


def test_connect_that_fails_while_others_wait(signals: Signals, patient: None, dsn: str) -> None:
    """The first waiter may fail to connect: its error is its own, and the next one is served."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    first, second = queue(pool), queue(pool)
    args = pool._args
    with refused_port() as port:
        pool._args = (f"host=127.0.0.1 port={port} user=postgres",)
        connect = pool._connect
        calls = []

        def once(key: object = None) -> Any:
            calls.append(key)
            try:
                return connect(key)
            finally:
                pool._args = args

        pool._connect = once
        pool.putconn(conn, close=True)
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            first.result(PATIENCE)
    pool.putconn(second.result(PATIENCE))
    assert len(calls) == 2


def test_subclass_waits(signals: Signals, patient: None, dsn: str) -> None:
    """A getconn of a program's own that lets the stock error through waits as well, as one checkout."""

    class Own(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    pool = Own(1, 1, dsn)
    conn = pool.getconn()
    future = queue(pool)
    pool.putconn(conn)
    pool.putconn(future.result(PATIENCE))
    assert len(signals.named("pool.checkout")) == 2
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn, path="queued"))


def test_subclass_with_a_lock_does_not_deadlock(signals: Signals, patient: None, dsn: str) -> None:
    """The wait is outside the program's own lock, which its putconn needs."""

    class Locked(ThreadedConnectionPool):
        mine = threading.Lock()

        def getconn(self, key: object = None) -> Any:
            with self.mine:
                return super().getconn(key)

        def putconn(self, *args: Any, **kwargs: Any) -> None:
            with self.mine:
                super().putconn(*args, **kwargs)

    pool = Locked(1, 1, dsn)
    conn = pool.getconn()
    future = queue(pool)
    pool.putconn(conn)
    pool.putconn(future.result(PATIENCE))


class Abstract(AbstractConnectionPool):
    def getconn(self) -> Any:
        return self._getconn()  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [SimpleConnectionPool, Abstract])
def test_pools_of_one_thread_do_not_wait(signals: Signals, patient: None, dsn: str, cls: type[Pool]) -> None:
    """What is no ThreadedConnectionPool makes no promise for threads: to wait would be to wait for oneself."""
    pool = cls(0, 0, dsn)
    with pytest.raises(PoolError, match=f"^{EXHAUSTED}$"):
        pool.getconn()


def test_interrupted_wait(signals: Signals, patient: None, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt ends the wait, whose place in the queue is free: the next one is served."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    turns = tracker_of(pool).queue
    assert turns is not None

    def interrupted() -> Any:
        assert waiting(pool) == 1
        raise KeyboardInterrupt

    failing = in_thread(lambda: turns.wait_for(interrupted, PATIENCE))
    with pytest.raises(AssertionError):
        failing.result(PATIENCE)
    assert not turns
    future = queue(pool)
    pool.putconn(conn)
    pool.putconn(future.result(PATIENCE))


@pytest.mark.parametrize("spans", ["always", "off"])
def test_many_threads(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, spans: str) -> None:
    """Forty threads on three connections: nobody fails, no connection is lent twice, none is lost."""
    with waiting_for(monkeypatch, signals if spans == "always" else None, str(3 * PATIENCE), spans=spans):
        pool = ThreadedConnectionPool(1, 3, dsn)
        out: set[int] = set()

        def work() -> int:
            for _ in range(10):
                conn = pool.getconn()
                assert id(conn) not in out
                out.add(id(conn))
                assert ask(conn, "select 1") == 1
                out.remove(id(conn))
                pool.putconn(conn)
            return 10

        assert sum(future.result(3 * PATIENCE) for future in [in_thread(work) for _ in range(40)]) == 400
        stats = tracker_of(pool).stats()
        assert (sum(stats.checkouts.values()), stats.timeouts, stats.waiting, stats.used) == (400, 0, 0, 0)
        assert not tracker_of(pool).queue
