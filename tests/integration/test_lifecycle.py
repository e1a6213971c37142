"""Opening, waiting, closing, draining, resizing; threads; names; copies."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from otel_pgpool import PoolClosed, PoolTimeout
from tests.support.database import ask, lives
from tests.support.pools import Gate, fill, let_last, make, pid_of_a_checkout, pool_threads
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer


# Opening


def test_constructor_opens_the_minimum(dsn: str) -> None:
    """They are idle when it returns; a minimum of 0 connects nothing."""
    with make(3, 5, dsn) as pool:
        assert (pool.stats().idle, pool.stats().size) == (3, 3)
    with make(0, 5, dsn) as pool:
        assert (pool.stats().idle, pool.stats().size) == (0, 0)


@pytest.mark.parametrize("how", ["open", "wait", "checkout", "block"])
def test_open_false(dsn: str, how: str) -> None:
    """Nothing is connected and no thread started until it is opened, or used."""
    before = set(threading.enumerate())
    with closing(make(2, 3, dsn, open=False)) as pool:
        time.sleep(0.05)
        assert set(threading.enumerate()) <= before
        assert pool.stats().size == 0
        assert pool.stats().status == "new"
        assert not pool.closed
        if how == "open":
            pool.open()
            assert pool.stats().idle == 2
        elif how == "wait":
            pool.wait()
            assert pool.stats().idle == 2
        elif how == "checkout":
            pool.putconn(pool.getconn())
        else:
            pid_of_a_checkout(pool)
        assert wait_until(lambda: pool.stats().idle == 2)
        pool.open()
        assert pool.stats().idle == 2


def test_open_that_fails_may_be_tried_again(own_server: PostgresServer) -> None:
    """`open()` raises what the connect raised; nothing runs on, and the next try may succeed."""
    pool = make(2, 2, own_server.dsn, open=False)
    own_server.stop()
    with pytest.raises(psycopg2.OperationalError):
        pool.open()
    assert wait_until(lambda: pool.stats().size == 0)
    assert wait_until(lambda: not [t for t in pool_threads() if "connector" in t.name])
    own_server.start()
    pool.open()
    assert pool.stats().idle == 2
    pool.close()


def test_open_without_a_wait(own_server: PostgresServer) -> None:
    """It returns while the server is down; the pool fills in the background when the server is back."""
    own_server.stop()
    with closing(make(2, 3, own_server.dsn, open=False)) as pool:
        pool.open(wait=False)
        assert wait_until(lambda: pool.stats().status == "unreachable")
        pool.open()  # is open already
        pool.open(False)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)
        with pytest.raises(psycopg2.OperationalError):
            pool.open(wait=True)
        assert pool.stats().status == "unreachable", "it is still open"
        own_server.start()
        assert wait_until(lambda: pool.stats().idle == 2, 20)
        pool.open(wait=True)
        assert pool.stats().status == "ok"


def test_open_with_a_wait_of_its_own(dsn: str) -> None:
    """It lasts up to `timeout`; on a pool that is open, `wait=True` waits too. Invalid arguments change nothing."""
    gate = Gate(free=0)
    with closing(make(1, 1, dsn, open=False, connection_factory=gate)) as pool:
        for invalid in ({"wait": 1}, {"wait": "no"}, {"timeout": -1}):
            with pytest.raises(ValueError, match=next(iter(invalid))):
                pool.open(**invalid)
        assert pool.stats().status == "new"
        with pytest.raises(PoolTimeout):
            pool.open(True, 0.05)
        assert pool.stats().status == "new"
        pool.open(wait=False)
        with pytest.raises(PoolTimeout):
            pool.open(wait=True, timeout=0.05)
        gate.open()
        pool.open(wait=True, timeout=PATIENCE)
        assert pool.stats().idle == 1
    for wait in (None, True, False):
        with pytest.raises(PoolClosed):
            pool.open(wait)


def test_a_failed_wait_does_not_undo_an_opening_in_the_background(dsn: str) -> None:
    """The pool that another thread has opened by `open(wait=False)` meanwhile stays open, and fills."""
    gate = Gate(free=0)
    with closing(make(1, 1, dsn, open=False, connection_factory=gate)) as pool:
        failed = in_thread(pool.open, None, 0.3)
        assert wait_until(lambda: gate.calls == 1)
        pool.open(wait=False)
        with pytest.raises(PoolTimeout):
            failed.result(PATIENCE)
        assert pool.stats().status != "new"
        gate.open()
        assert wait_until(lambda: pool.stats().idle == 1)


def test_constructor_that_fails_leaves_nothing(own_server: PostgresServer) -> None:
    """Neither thread nor name nor connection."""
    own_server.stop()
    with pytest.raises(psycopg2.OperationalError):
        make(2, 2, own_server.dsn, name="unborn")
    gc.collect()
    assert wait_until(lambda: pool_threads() == [])
    own_server.start()
    with make(1, 1, own_server.dsn, name="unborn") as pool:
        assert pool.name == "unborn"


def test_constructor_is_bounded_by_the_timeout(dsn: str) -> None:
    """A connect that takes too long: PoolTimeout after `timeout`."""
    gate = Gate(free=0)
    began = time.monotonic()
    with pytest.raises(PoolTimeout, match="could not be opened within"):
        make(1, 1, dsn, timeout=0.3, connection_factory=gate)
    assert 0.3 <= time.monotonic() - began < PATIENCE
    gate.open()


def test_wait_is_bounded_by_its_timeout(dsn: str) -> None:
    """`wait(timeout)` raises in time and may be called again."""
    gate = Gate(free=0)
    with closing(make(2, 2, dsn, open=False, connection_factory=gate)) as pool:
        with pytest.raises(PoolTimeout):
            pool.wait(0.1)
        with pytest.raises(PoolTimeout):
            pool.wait(0)
        with pytest.raises(ValueError, match="timeout"):
            pool.wait(-1)
        gate.open()
        pool.wait(PATIENCE)
        assert pool.stats().idle == 2
        pool.wait(0)


# Closing


def test_closed_pool(dsn: str) -> None:
    """It refuses, with PoolClosed, everything that would need a connection."""
    pool = make(1, 1, dsn)
    pool.close()
    assert pool.closed
    for refused in (pool.getconn, pool.open, pool.wait, pool.closeall, pool.connection().__enter__):
        with pytest.raises(PoolClosed, match="closed"):
            refused()
    pool.close()
    assert pool.stats().size == 0
    assert pool.stats().status == "closed"
    assert "closed" in repr(pool)
    pool.drain()
    pool.check()
    pool.resize(0, 3)
    pool.suspend()
    assert pool.stats().status == "closed"
    pool.resume()
    assert pool.stats().size == 0


def test_pool_as_context_manager(dsn: str, admin: connection) -> None:
    """The block gives the pool itself; leaving the block closes it, and its sessions end."""
    made = make(2, 2, dsn)
    with made as pool:
        assert pool is made
        pids = fill(pool, 2)
    assert pool.closed
    assert wait_until(lambda: not any(lives(admin, pid) for pid in pids))


def test_close_waits_for_holders(dsn: str, admin: connection) -> None:
    """It returns when the last connection is back; the holder's work is committed."""
    pool = make(1, 1, dsn)
    holding, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with pool.connection() as conn:
            ask(conn, "create table committed_late ()")
            holding.set()
            assert go_on.wait(PATIENCE)

    holder = in_thread(work)
    assert holding.wait(PATIENCE)
    closing = in_thread(pool.close, PATIENCE)
    assert wait_until(lambda: pool.closed)
    assert not wait_until(closing.done, 0.1)
    with pytest.raises(PoolClosed):
        pool.getconn()
    go_on.set()
    holder.result(PATIENCE)
    closing.result(PATIENCE)
    assert ask(admin, "select to_regclass('committed_late')") is not None
    ask(admin, "drop table committed_late")
    assert pool.stats().size == 0


def test_close_gives_up_after_its_timeout(dsn: str) -> None:
    """What is still out works on, and is closed when it comes back, without an error."""
    pool = make(2, 2, dsn)
    held, other = pool.getconn(), pool.getconn()
    began = time.monotonic()
    pool.close(timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert ask(held, "select 1") == 1
    pool.putconn(held)
    assert held.closed
    pool.putconn(other, close=True)
    assert pool.stats().size == 0
    assert sum(pool.stats().discarded.values()) == 2


def test_close_during_a_connect(dsn: str, admin: connection) -> None:
    """A connection that is made while the pool closes is closed too."""
    gate = Gate(free=0)
    pool = make(0, 1, dsn, connection_factory=gate, application_name="late")
    waiting = in_thread(pool.getconn)
    assert wait_until(lambda: gate.calls == 1)
    pool.close(timeout=0)
    with pytest.raises(PoolClosed):
        waiting.result(PATIENCE)
    gate.open()
    assert wait_until(lambda: pool.stats().size == 0)
    assert wait_until(lambda: not ask(admin, "select count(*) from pg_stat_activity where application_name = 'late'"))


def test_closeall_closes_what_is_lent(dsn: str, admin: connection) -> None:
    """Idle, held, and in the middle of a query."""
    pool = make(3, 3, dsn)
    pids = fill(pool, 3)
    held, busy = pool.getconn(), pool.getconn()
    query = in_thread(ask, busy, "select pg_sleep(60)")
    assert wait_until(lambda: busy.info.transaction_status == 1)
    pool.closeall()
    assert held.closed
    with pytest.raises(psycopg2.Error):
        query.result(PATIENCE)
    assert busy.closed
    pool.putconn(held)
    pool.putconn(busy)
    assert pool.stats().size == 0
    with pytest.raises(PoolClosed):
        pool.closeall()
    ask(admin, "select pg_terminate_backend(pid) from unnest(%s) as pid", pids)


def test_close_inside_a_block(dsn: str) -> None:
    """A pool closed by its own borrower does not hang, and the block ends in peace."""
    pool = make(1, 1, dsn)
    with pool.connection() as conn:
        ask(conn, "select 1")
        pool.close(timeout=0)
    assert pool.stats().size == 0


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_bad_close_timeout(dsn: str, timeout: Any) -> None:
    """A bad timeout is refused, and the pool stays open."""
    with make(0, 1, dsn) as pool:
        with pytest.raises(ValueError, match="timeout must be"):
            pool.close(timeout)
        assert not pool.closed


# Threads


def test_threads_are_joined_by_close(dsn: str) -> None:
    """When `close` returns, no thread of the pool is left."""
    gc.collect()  # while another pool is open the process goes on watching deadlines
    before = set(threading.enumerate())
    pool = make(2, 2, dsn)
    fill(pool, 2)
    assert set(pool_threads()) - before
    pool.close()
    assert set(pool_threads()) <= before
    assert wait_until(lambda: set(threading.enumerate()) <= before)


def test_pool_dropped_without_close(dsn: str, admin: connection) -> None:
    """It is collected, its threads end by themselves, its sessions too."""
    pool = make(2, 2, dsn)
    pids = fill(pool, 2)
    gone = weakref.ref(pool)
    del pool
    assert wait_until(lambda: gc.collect() >= 0 and gone() is None)
    assert wait_until(lambda: pool_threads() == [])
    # Once more: what a thread still had in hand may have been left by the first time.
    assert wait_until(lambda: gc.collect() >= 0 and not any(lives(admin, pid) for pid in pids))


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system cannot tell a thread's CPU time")
def test_maintenance_costs_nothing_while_nothing_is_out(dsn: str) -> None:
    """Its thread sleeps: not a nanosecond of CPU time in more than one of its ticks."""
    with make(2, 2, dsn) as pool:
        fill(pool, 2)
        (thread,) = (t for t in pool_threads() if "maintenance" in t.name)
        clock = time.pthread_getcpuclockid(thread.ident or 0)

        def sleeps() -> bool:
            before = time.clock_gettime_ns(clock)
            time.sleep(0.7)
            return time.clock_gettime_ns(clock) == before

        assert wait_until(sleeps)
        conn = pool.getconn()
        before = time.clock_gettime_ns(clock)
        assert wait_until(lambda: time.clock_gettime_ns(clock) > before), "it watches as soon as one is out"
        pool.putconn(conn)


# Long holds


@pytest.mark.parametrize("off", [None, 0])
def test_long_hold_off(dsn: str, off: float | None) -> None:
    """Switched off, no hold is long."""
    with make(1, 1, dsn, long_hold=off) as pool:
        conn = pool.getconn()
        let_last(pool)
        pool.putconn(conn)
        assert pool.stats().long_holds == 0


# drain, resize


def test_drain(dsn: str) -> None:
    """The idle are replaced now, the lent when they come back, and nobody is kept waiting."""
    with make(2, 3, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 3)
        held = pool.getconn()
        pool.drain()
        assert pool.stats().discarded == {"drained": 2}
        assert ask(held, "select 1") == 1
        pool.putconn(held)
        assert held.closed
        assert pool.stats().discarded == {"drained": 3}
        assert pid_of_a_checkout(pool) not in pids
        assert wait_until(lambda: pool.stats().idle == 2)
        pool.putconn(pool.getconn())
        assert pool.stats().discarded == {"drained": 3}, "the new generation stays"


def test_resize_up_serves_who_waits(dsn: str) -> None:
    """A larger pool serves those who wait already."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        waiting = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.resize(1, 2)
        assert waiting.result(PATIENCE)
        assert pool.maxconn == 2
        pool.putconn(held)


def test_resize_up_fills_the_minimum(dsn: str) -> None:
    """A larger minimum is opened."""
    with make(1, 2, dsn) as pool:
        pool.resize(3, 4)
        pool.wait()
        assert pool.stats().idle == 3
        assert (pool.minconn, pool.maxconn) == (3, 4)


def test_resize_down(dsn: str) -> None:
    """Surplus idle ones go at once, surplus lent ones when they come back."""
    with make(4, 4, dsn) as pool:
        held = [pool.getconn() for _ in range(3)]
        pool.resize(1, 1)
        assert pool.stats().discarded == {"resized": 1}
        assert pool.stats().size == 3
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        for conn in held:
            pool.putconn(conn)
        assert [bool(conn.closed) for conn in held] == [True, True, False]
        assert pool.stats().size == 1
        assert pool.stats().discarded == {"resized": 3}


def test_bad_resize(dsn: str) -> None:
    """Bad limits are refused by name, and nothing changes."""
    with make(1, 2, dsn) as pool:
        for limits, named in (((3, 2), "minconn"), ((0, 0), "maxconn"), ((-1, 2), "minconn"), ((1, "x"), "maxconn")):
            with pytest.raises(ValueError, match=named):
                pool.resize(*limits)  # type: ignore[arg-type]
        assert (pool.minconn, pool.maxconn) == (1, 2)


# Names and copies


def test_names_are_unique_among_the_living(dsn: str) -> None:
    """Two live pools of one name get numbers; a closed or collected one frees its own."""
    gc.collect()  # other tests have dropped pools of this name
    first = make(0, 1, dsn, name="shop")
    second = make(0, 1, dsn, name="shop")
    third = make(0, 1, dsn, name="shop")
    assert [pool.name for pool in (first, second, third)] == ["shop", "shop #2", "shop #3"]
    second.close()
    again = make(0, 1, dsn, name="shop")
    assert again.name == "shop #2"
    del third
    gc.collect()
    assert wait_until(lambda: _name_of_a_new_pool(dsn) == "shop #3")
    first.close()
    again.close()


def _name_of_a_new_pool(dsn: str) -> str:
    with make(0, 1, dsn, name="shop") as pool:
        return pool.name


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(dsn: str, copying: Any) -> None:
    """With a clear TypeError."""
    with make(0, 1, dsn) as pool, pytest.raises(TypeError, match="ConnectionPool cannot be copied or pickled"):
        copying(pool)
