"""Pools of psycopg_pool in a program that is not changed: every checkout is reported, however it ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg_pool
import pytest
from greenlet import greenlet
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool, NullConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from psycopg_pool.pool import WaitingClient

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import uninstrument_pool
from otel_pgpool.instrumentation.adapters.psycopg_pool.calls import PoolCalls
from tests.support.instrumentation import denied, instrumented, lent, name_of, quietly, tracker_of
from tests.support.psycopg_pools import BLOCKING, RELEASE, assert_same_totals, backend, opened, settled
from tests.support.telemetry import assert_exactly, is_child, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.telemetry import Signals

Pool = Any

pytestmark = pytest.mark.usefixtures("instrumentation")


@pytest.fixture
def pool(dsn: str) -> Iterator[Pool]:
    """Open a pool with one connection."""
    with opened(ConnectionPool, dsn, 1) as pool:
        yield pool


# Handed out and released


@pytest.mark.parametrize("cls", BLOCKING)
def test_checkout(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """A checkout is one span from getconn to putconn, under the caller's span and not current inside."""
    with opened(cls, dsn, 1) as pool:
        with signals.tracer.start_as_current_span("order") as order:
            conn = pool.getconn()
            pid = backend(conn)
            with signals.tracer.start_as_current_span("inside") as inside:
                pass
            pool.putconn(conn)
        path = "idle" if cls is ConnectionPool else "new"
        expected = lent(dsn, path=path, **{"connection.id": 1, "connection.pid": pid})
        assert_exactly(signals.checkout().attributes, expected)
        assert is_child(signals.checkout(), order)
        assert is_child(inside, order)
        assert_same_totals(pool)


@pytest.mark.parametrize("cls", BLOCKING)
def test_block(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """``connection()`` is one checkout, and its place is the line of the application."""
    with opened(cls, dsn, 1) as pool:
        with pool.connection() as conn:
            (checkout,) = tracker_of(pool).all_held()
            assert checkout.where.startswith(f"{__file__}:")
            assert checkout.where.endswith(" test_block")
            conn.execute("select 1")
        assert len(signals.named("pool.checkout")) == 1
        assert_same_totals(pool)


def test_block_that_raises(signals: Signals, pool: Pool) -> None:
    """The application's error leaves the checkout released: the pool has ended the transaction."""
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    attributes = signals.checkout().attributes or {}
    assert attributes["otel_pgpool.outcome"] == "released"
    assert "error.type" not in attributes


def test_same_objects_and_signatures(dsn: str) -> None:
    """The connection is the pool's own, positional and keyword timeouts work, and names and docs are the originals'."""
    with opened(ConnectionPool, dsn, 1) as pool:
        (own,) = pool._pool
        assert pool.getconn(1) is own
        pool.putconn(conn=own)
        assert pool.getconn(timeout=1) is own
        pool.putconn(own)
        assert pool.getconn.__name__ == "getconn"
        assert "depleted pool is a sad pool" in (pool.getconn.__doc__ or "")


def test_close_returns(signals: Signals, dsn: str) -> None:
    """``close()`` of a connection is a release, where the pool was created so."""
    if RELEASE < (3, 3):
        pytest.skip("psycopg_pool has close_returns since 3.3")
    with opened(ConnectionPool, dsn, 1, close_returns=True) as pool:
        conn = pool.getconn()
        conn.close()
        assert not conn.closed
        assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "released"
        assert tracker_of(pool).stats().used == 0


def test_subclass(signals: Signals, dsn: str) -> None:
    """A subclass's own getconn is observed where it calls the pool's."""

    class Own(ConnectionPool[Any]):
        def getconn(self, timeout: float | None = None) -> Any:
            return super().getconn(timeout)

    with opened(Own, dsn, 1) as pool, pool.connection():
        pass
    assert_exactly(signals.checkout().attributes, lent(dsn))


def test_pools_that_are_equal(signals: Signals, dsn: str) -> None:
    """A pool whose class compares its pools, so that they are not hashable, is observed as any other."""

    class Compared(ConnectionPool[Any]):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Compared)

        __hash__ = None  # type: ignore[assignment]  # as Python sets it

    with opened(Compared, dsn, 1) as pool, opened(Compared, dsn, 1) as other:
        with pool.connection():
            pass
        assert (tracker_of(pool).handed_out, tracker_of(other).handed_out) == (1, 0)
        assert signals.checkout()


@pytest.mark.parametrize("spans", ["always", "off"])
def test_pool_that_shows_what_another_has(dsn: str, spans: str) -> None:
    """A pool in front of another, whose attributes it passes off as its own, has telemetry of its own."""

    class Front(ConnectionPool[Any]):
        behind: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.behind, name)

    PgPoolInstrumentor().uninstrument()
    with opened(ConnectionPool, dsn, 1) as behind:
        before = Front(dsn, min_size=1, open=True)
        before.behind = behind
        with instrumented(spans=spans):
            later = Front(dsn, min_size=1, open=False)
            later.behind = behind
            later.open()
            for pool in (before, later):
                with pool, pool.connection():
                    pass
                assert tracker_of(pool).handed_out == 1
            assert tracker_of(behind).handed_out == 0
    assert "_otel_pgpool" not in vars(Front)


@pytest.mark.parametrize("spans", ["always", "off"])
def test_pool_whose_attributes_raise(dsn: str, spans: str) -> None:
    """A pool whose class raises another error for an attribute that it does not have works as without telemetry."""

    class Refusing(type):
        def __setattr__(cls, name: str, value: object) -> None:
            if name == "_otel_pgpool":
                raise TypeError(name)
            super().__setattr__(name, value)

    class Configured(ConnectionPool[Any], metaclass=Refusing):
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name) if name == "_lock" else KeyError(name)  # psycopg_pool 3.2 tests for `_lock`

        def __setattr__(self, name: str, value: object) -> None:
            if name == "_otel_pgpool":
                raise TypeError(name)
            super().__setattr__(name, value)

    PgPoolInstrumentor().uninstrument()
    with instrumented(spans=spans), opened(Configured, dsn, 1) as pool, pool.connection() as conn:
        assert backend(conn)


# Waits


def test_wait_links_to_the_holder(signals: Signals, pool: Pool) -> None:
    """A caller that the pool queues is a waiter, and its wait links to the hold."""
    held = pool.getconn()
    waiter = in_thread(pool.getconn)
    assert until(lambda: tracker_of(pool).stats().waiting)
    assert pool.get_stats()["requests_waiting"] == 1
    pool.putconn(held)
    pool.putconn(waiter.result(10))
    wait = signals.one("pool.wait")
    holder, queued = signals.named("pool.checkout")
    (link,) = wait.links
    assert link.context == holder.context
    assert is_child(wait, queued)
    assert (queued.attributes or {})["otel_pgpool.path"] == "queued"
    assert_same_totals(pool)


def test_connection_opened_for_a_waiter(signals: Signals, dsn: str) -> None:
    """A waiter that receives what a worker has opened took a new connection, whose connect is part of its trace."""
    with opened(ConnectionPool, dsn, 1, max_size=2) as pool:
        settled(pool)
        with pool.connection(), pool.connection():
            pass
        second = next(span for span in signals.named("pool.checkout") if span.attributes["otel_pgpool.path"] == "new")
        assert [span for span in signals.named("pool.connect") if span.parent and is_child(span, second)]
        assert len(signals.named("pool.connect")) == 2
        assert_same_totals(pool)


def test_timeout(signals: Signals, dsn: str, pool: Pool) -> None:
    """The pool's own error reaches the caller; the checkout timed out, and the log names the holder."""
    with pool.connection(), pytest.raises(PoolTimeout, match=r"couldn't get a connection after 0\.01 sec"):
        pool.getconn(timeout=0.01)
    refused = signals.named("pool.checkout")[0]
    assert_exactly(refused.attributes, denied(dsn, "timeout", "timeout", "queued"))
    (record,) = signals.logged("timeout")
    assert "couldn't get a connection" in record.record.getMessage()
    assert " test_timeout" in record.record.getMessage()
    assert_same_totals(pool)


def test_timeout_of_nothing(signals: Signals, pool: Pool) -> None:
    """A timeout of 0 is a timeout without a wait, in the present release."""
    if RELEASE < (3, 3):
        pytest.skip("psycopg_pool before 3.3 hands out an idle connection in spite of a timeout of 0")
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0)
    attributes = signals.checkout().attributes or {}
    assert (attributes["otel_pgpool.outcome"], attributes["otel_pgpool.path"]) == ("timeout", "idle")
    assert signals.named("pool.wait") == []


@pytest.mark.parametrize("cls", BLOCKING)
def test_full_queue(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """``max_waiting`` refuses with the pool's own error."""
    with opened(cls, dsn, 1, max_waiting=1) as pool:
        held = pool.getconn()
        waiter = in_thread(pool.getconn)
        assert until(lambda: tracker_of(pool).stats().waiting)
        with pytest.raises(TooManyRequests):
            pool.getconn()
        refused = signals.named("pool.checkout")[0]
        assert_exactly(refused.attributes, denied(dsn, "error", "too_many_requests"))
        pool.putconn(held)
        pool.putconn(waiter.result(10))
        assert_same_totals(pool)


def test_interrupted_wait(signals: Signals, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the caller waits ends the checkout, and reaches the caller."""
    held = pool.getconn()

    def interrupted(self: Any, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
    attributes = signals.checkout().attributes or {}
    assert (attributes["otel_pgpool.outcome"], attributes["error.type"]) == ("error", "KeyboardInterrupt")
    pool.putconn(held)
    assert tracker_of(pool).stats().waiting == 0


def test_interrupt_before_the_wait(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between the pool's queue and its own wait costs no connection: the next caller receives it."""
    held = pool.getconn()

    def interrupted(*_args: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(PoolCalls, "enqueued", interrupted)
        with pytest.raises(InterruptedError):
            pool.getconn()
    pool.putconn(held)
    pool.putconn(pool.getconn())
    assert tracker_of(pool).stats().waiting == 0


def test_interrupt_at_the_start_of_the_wait(signals: Signals, dsn: str) -> None:
    """An interrupt that the pool does not note in its own wait costs no connection either."""
    PgPoolInstrumentor().uninstrument()

    def interrupted(self: Any, timeout: float) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaitingClient, "wait", interrupted)
        with instrumented(signals), opened(ConnectionPool, dsn, 1) as pool:
            held = pool.getconn()
            with pytest.raises(KeyboardInterrupt):
                pool.getconn()
            pool.putconn(held)
            pool.putconn(pool.getconn())


def test_totals_that_differ_from_the_pools(dsn: str) -> None:
    """A checkout that queues again counts as queued once, and a refusal of a closed pool as an error: see the docs."""
    refused: list[Any] = []

    def check(conn: Any) -> None:
        if threading.current_thread() is not threading.main_thread() and not refused:
            refused.append(conn)
            conn.close()
            raise ValueError

    with opened(ConnectionPool, dsn, 1, check=check) as pool:
        settled(pool)
        held = pool.getconn()
        waiter = in_thread(pool.getconn)
        assert until(lambda: tracker_of(pool).stats().waiting)
        pool.putconn(held)
        pool.putconn(waiter.result(PATIENCE))
        assert pool.get_stats()["requests_queued"] == 2
        assert tracker_of(pool).stats().queued == 1
        assert tracker_of(pool).stats().retries == 1
        pool.close()
        with pytest.raises(PoolClosed):
            pool.getconn()
        assert "requests_errors" not in pool.get_stats()
        assert tracker_of(pool).stats().errors == 1
        assert pool.get_stats()["requests_num"] == 3 == sum(tracker_of(pool).stats().checkouts.values()) + 1


def test_interrupt_after_the_wait(signals: Signals, dsn: str) -> None:
    """A connect for a waiter that is interrupted as it receives the connection belongs to that waiter's checkout."""
    if RELEASE < (3, 3):
        pytest.skip("psycopg_pool before 3.3 loses the connection of an interrupted waiter")
    PgPoolInstrumentor().uninstrument()
    wait = WaitingClient.wait

    def interrupted(self: Any, timeout: float) -> Any:
        wait(self, timeout)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaitingClient, "wait", interrupted)
        with instrumented(signals), opened(ConnectionPool, dsn, 0, max_size=1) as pool:
            with pytest.raises(InterruptedError):
                pool.getconn()
            assert until(lambda: pool.get_stats()["pool_available"])
            for _ in range(2):
                pool.putconn(pool.getconn())
            settled(pool)
            (connect,), (first, *later) = signals.named("pool.connect"), signals.named("pool.checkout")
            assert is_child(connect, first)
            assert [(span.attributes or {})["otel_pgpool.path"] for span in later] == ["idle", "idle"]


def test_wait_of_a_pool_that_is_not_observed(signals: Signals, dsn: str) -> None:
    """A check that waits for a pool which is not observed leaves the checkout as one that has not waited."""
    with opened(ConnectionPool, dsn, 1, name="inner") as inner:
        uninstrument_pool(inner)

        def check(conn: Any) -> None:
            inner.putconn(inner.getconn())

        with opened(ConnectionPool, dsn, 1, name="outer", check=check) as outer:
            settled(outer)
            held = inner.getconn()
            waiter = in_thread(outer.getconn)
            assert until(lambda: inner.get_stats()["requests_waiting"])
            assert tracker_of(outer).stats().waiting == 0
            inner.putconn(held)
            outer.putconn(waiter.result(PATIENCE))
            assert tracker_of(outer).stats().checkouts == {"idle": 1, "queued": 0, "new": 0}
            assert_same_totals(outer)


# Pools that are not open


@pytest.mark.parametrize(("cls", "size"), [(ConnectionPool, 1), (NullConnectionPool, 0)])
def test_pool_that_is_not_open_yet(signals: Signals, dsn: str, cls: type[Pool], size: int) -> None:
    """A checkout is refused as without the instrumentation; spans and series begin when the pool is opened."""
    pool = cls(dsn, min_size=size, max_size=1, open=False)
    with pytest.raises(PoolClosed, match="not open yet"):
        pool.getconn()
    with pytest.raises(PoolClosed, match="not open yet"), pool.connection():
        pass
    with pytest.raises(ValueError, match="can't return connection"):
        pool.putconn(object())
    assert "_otel_pgpool" not in vars(pool)
    assert not signals.named("pool.checkout")
    assert not signals.metrics()
    pool.open(wait=True)
    with pool.connection():
        assert signals.value("db.client.connection.count", "used", pool_name=name_of(dsn)) == 1
    pool.close()
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert_exactly(signals.named("pool.checkout")[-1].attributes, denied(dsn, "error", "closed"))


@pytest.mark.parametrize("cls", BLOCKING)
def test_pool_that_is_never_opened(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """It leaves nothing, also when it is closed."""
    pool = cls(dsn, min_size=0, max_size=1, open=False)
    pool.close()
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert "_otel_pgpool" not in vars(pool)
    assert not signals.metrics()


def test_closed_pool(signals: Signals, dsn: str, pool: Pool) -> None:
    """A waiter and a later caller are refused; a hold goes on, and its connection is discarded at the release."""
    held = pool.getconn()
    waiter = in_thread(pool.getconn)
    assert until(lambda: tracker_of(pool).stats().waiting)
    pool.close()
    with pytest.raises(PoolClosed):
        waiter.result(10)
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert [span.attributes["error.type"] for span in signals.named("pool.checkout")] == ["closed", "closed"]
    assert backend(held)
    assert len(signals.live()) == 1
    pool.putconn(held)
    last = signals.named("pool.checkout")[-1]
    assert (last.attributes or {})["otel_pgpool.outcome"] == "released"
    assert tracker_of(pool).discards == {"closed": 1}
    assert signals.live() == []


def test_pool_that_is_dropped(signals: Signals, dsn: str) -> None:
    """A pool that the program drops without closing it is collected, and its workers end."""
    with instrumented_again(signals):
        pool = ConnectionPool(dsn, min_size=1, open=True)
        with pool.connection():
            pass
        settled(pool)
        tracker = tracker_of(pool)
        del pool
        assert until(lambda: tracker.is_stopped)


def instrumented_again(signals: Signals) -> Any:
    PgPoolInstrumentor().uninstrument()
    return instrumented(signals, long_hold=None)


# Pools from before, and the end


def test_pool_from_before(signals: Signals, dsn: str) -> None:
    """A pool that was open before the instrumentation is reported at once; what is checked out counts as used."""
    PgPoolInstrumentor().uninstrument()
    with opened(ConnectionPool, dsn, 2) as pool:
        held = pool.getconn()
        with instrumented(signals):
            stats = tracker_of(pool).stats()
            assert (stats.used, stats.idle) == (1, 1)
            pool.putconn(held)
            assert tracker_of(pool).stats().used == 0
            with pool.connection():
                assert tracker_of(pool).stats().used == 1
            assert len(signals.named("pool.checkout")) == 1
        assert "_otel_pgpool" not in vars(pool)


def test_uninstrument_ends_open_checkouts(signals: Signals, dsn: str) -> None:
    """The spans end, the connections stay with their holders, and the original methods are in place again."""
    PgPoolInstrumentor().uninstrument()
    classes = (*BLOCKING, psycopg_pool.AsyncConnectionPool, psycopg_pool.AsyncNullConnectionPool)
    waiting = (psycopg_pool.pool.WaitingClient, psycopg_pool.pool_async.WaitingClient)
    before = [dict(vars(cls)) for cls in (*classes, *waiting)]
    with opened(ConnectionPool, dsn, 1) as pool:
        with instrumented(signals):
            conn = pool.getconn()
        assert signals.live() == []
        assert [dict(vars(cls)) for cls in (*classes, *waiting)] == before
        pool.putconn(conn)
        assert list(pool._pool) == [conn]


# Kinds side by side


def test_two_kinds_of_pools(signals: Signals, dsn: str) -> None:
    """Pools of psycopg2 and of psycopg_pool are reported side by side, each under a name of its own."""
    other = ThreadedConnectionPool(1, 1, dsn)
    with opened(ConnectionPool, dsn, 1, name="shop") as pool:
        with pool.connection():
            other.putconn(other.getconn())
        names = [span.attributes["db.client.connection.pool.name"] for span in signals.named("pool.checkout")]
        assert names == [name_of(dsn), "shop"]
    other.closeall()


# Without records


def test_quiet(dsn: str) -> None:
    """Without spans and metrics, totals, holders, waits, failures and discards are still known."""
    PgPoolInstrumentor().uninstrument()
    with quietly(), opened(ConnectionPool, dsn, 1) as pool:
        tracker = tracker_of(pool)
        with pool.connection() as conn:
            assert len(tracker.light) == 1
            assert tracker.stats().used == 1
            (holder,) = tracker.all_held()
            assert holder.where.endswith(" test_quiet")
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.01)
            waiter = in_thread(pool.getconn)
            assert until(lambda: tracker.stats().waiting)
        assert waiter.result(10) is conn
        pool.putconn(conn)
        assert_same_totals(pool)
        conn = pool.getconn()
        with pytest.raises(ValueError, match="can't return"):
            pool.putconn(object())
        conn.close()
        pool.putconn(conn)
        assert tracker.discards == {"returned_closed": 1}
        assert until(lambda: tracker.stats().idle)
        assert tracker.stats().checkouts == {"idle": 2, "queued": 1, "new": 0}
        assert (tracker.light, tracker.held, tracker.waiting) == ({}, {}, {})
        assert not tracker.adapter._calls.light_waits  # type: ignore[attr-defined]
        assert_same_totals(pool)


@pytest.mark.parametrize("spans", ["off", "slow", "parent"])
def test_span_modes(signals: Signals, dsn: str, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Totals are the same whatever leaves a span."""
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "60")
    PgPoolInstrumentor().uninstrument()
    with instrumented(spans=spans), opened(ConnectionPool, dsn, 1, max_size=2) as pool:
        with pool.connection(), pool.connection():
            pass
        assert signals.named("pool.checkout") == []
        assert_same_totals(pool)


@pytest.mark.parametrize("spans", ["always", "off"])
def test_nested_checkout_in_a_callback(dsn: str, spans: str) -> None:
    """A check that uses another pool does not mix up the two checkouts, also where both wait."""
    PgPoolInstrumentor().uninstrument()
    with instrumented(spans=spans), opened(ConnectionPool, dsn, 1, name="inner") as inner:

        def check(conn: Any) -> None:
            with inner.connection() as other:
                other.execute("select 1")

        with opened(ConnectionPool, dsn, 1, name="outer", check=check) as outer:
            held = outer.getconn()
            waiter = in_thread(outer.getconn)
            assert until(lambda: tracker_of(outer).stats().waiting)
            outer.putconn(held)
            outer.putconn(waiter.result(10))
            assert_same_totals(outer)
            assert_same_totals(inner)


@pytest.mark.parametrize("spans", ["always", "off"])
def test_no_caller(dsn: str, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A greenlet whose first function is getconn has no caller: the results and errors are the pool's."""
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")
    PgPoolInstrumentor().uninstrument()
    with instrumented(spans=spans), opened(ConnectionPool, dsn, 1) as pool:
        pool.putconn(greenlet(pool.getconn).switch())
        held = greenlet(pool.getconn).switch()
        with pytest.raises(PoolTimeout):
            greenlet(pool.getconn).switch(0.01)
        pool.putconn(held)
        pool.close()
        with pytest.raises(PoolClosed):
            greenlet(pool.getconn).switch()
