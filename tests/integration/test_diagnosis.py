"""What a pool says of itself: the error of a timeout, `stats()`, `holders()`, `repr`."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from typing import TYPE_CHECKING

import pytest

from otel_pgpool import Holder, PoolStats, PoolTimeout
from tests.support.pools import make
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from otel_pgpool import ConnectionPool


def timeout_of(pool: ConnectionPool, seconds: float = 0.05) -> PoolTimeout:
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=seconds)
    return caught.value


def test_timeout_tells_the_levels(dsn: str) -> None:
    """In attributes and in words; the caller itself is not among the waiting."""
    with make(1, 2, dsn, name="shop") as pool:
        held = [pool.getconn(), pool.getconn()]
        error = timeout_of(pool, 0.1)
        assert (error.minconn, error.maxconn, error.size, error.used, error.idle) == (1, 2, 2, 2, 0)
        assert (error.connecting, error.waiting, error.retries, error.utilization) == (0, 0, 0, 1.0)
        assert 0.1 <= error.waited < PATIENCE
        assert error.oldest_hold >= 0.1
        assert error.__cause__ is None
        waited = f"waited {error.waited:.3f} s"
        for words in ("no connection within 0.1 s", "'shop'", "2 of 2 in use", "0 idle", "0 waiting", waited):
            assert words in str(error)
        for conn in held:
            pool.putconn(conn)


def test_timeout_counts_other_waiters(dsn: str) -> None:
    """Others in the queue are told."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        others = [in_thread(pool.getconn) for _ in range(2)]
        assert wait_until(lambda: pool.stats().waiting == 2)
        assert timeout_of(pool).waiting == 2
        pool.putconn(held)
        for other in others:
            pool.putconn(other.result(PATIENCE))


def test_timeout_names_the_longest_holders(dsn: str) -> None:
    """Up to five, the longest first, with age, thread, place and backend."""
    with make(7, 7, dsn) as pool:
        go_on = threading.Event()
        pids: list[int] = []

        def hold() -> None:
            with pool.connection() as conn:
                pids.append(conn.info.backend_pid)
                assert go_on.wait(PATIENCE)

        threads = []
        for number in range(7):
            threads.append(in_thread(hold, name=f"worker-{number}"))
            assert wait_until(lambda number=number: len(pids) == number + 1)
        error = timeout_of(pool)
        go_on.set()
        for thread in threads:
            thread.result(PATIENCE)
        assert [holder.thread for holder in error.holders] == [f"worker-{number}" for number in range(5)]
        assert [holder.pid for holder in error.holders] == pids[:5]
        ages = [holder.held for holder in error.holders]
        assert ages == sorted(ages, reverse=True)
        line = inspect.getsourcelines(hold)[1] + 1
        for holder in error.holders:
            assert f"{__file__}:{line}" in holder.where
            assert holder.where in str(error)
            assert holder.thread in str(error)
            assert str(holder.pid) in str(error)
        assert "worker-5" not in str(error)


def test_timeout_says_when_the_thread_waits_for_itself(dsn: str) -> None:
    """Nested checkouts are said to be such, only to the thread that holds."""
    with make(1, 1, dsn) as pool:
        mine = pool.getconn()
        assert "this thread already holds 1" in str(timeout_of(pool))
        stranger = in_thread(timeout_of, pool).result(PATIENCE)
        assert "this thread already holds" not in str(stranger)
        pool.putconn(mine)


def test_number_of_an_ended_thread(dsn: str) -> None:
    """A hold whose thread has ended is nobody's own, though a new thread may have got its number."""
    with make(1, 1, dsn) as pool:
        conn = in_thread(pool.getconn, name="ended").result(PATIENCE)
        try:
            assert wait_until(lambda: pool.holders()[0].thread == "ended (ended)")
            stranger = in_thread(timeout_of, pool, name="stranger").result(PATIENCE)
            assert "'ended (ended)'" in str(stranger)
            assert "this thread already holds" not in str(stranger)
            assert "stranger" not in str(stranger)
        finally:
            pool.putconn(conn)


def test_holders(dsn: str) -> None:
    """Who holds what since when: live, the longest first, with the place of the checkout."""
    with make(2, 2, dsn) as pool:
        assert pool.holders() == []
        first = pool.getconn()
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        with pool.connection() as second:
            holders = pool.holders()
            assert [holder.pid for holder in holders] == [first.info.backend_pid, second.info.backend_pid]
            assert {holder.connection_id for holder in holders} == {1, 2}
            assert holders[0].thread == threading.current_thread().name
            assert f"{__file__}:{line}" in holders[0].where
            assert holders[0].held >= holders[1].held >= 0
            assert holders[0].trace_id is None
        assert [holder.pid for holder in pool.holders()] == [first.info.backend_pid]
        pool.putconn(first)
        assert pool.holders() == []


def test_where_is_the_programs_helper(dsn: str) -> None:
    """A helper of the program's around getconn is the place: the innermost frame that is not ours."""
    with make(1, 1, dsn) as pool:

        def borrow() -> object:
            return pool.getconn()

        conn = borrow()
        assert "borrow" in pool.holders()[0].where
        pool.putconn(conn)  # type: ignore[arg-type]


def test_holder_fields() -> None:
    """The fields promised, in order, frozen."""
    names = [field.name for field in dataclasses.fields(Holder)]
    assert names == ["connection_id", "pid", "thread", "held", "where", "trace_id", "task", "database_state"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Holder(1, 2, "t", 0.0, "w").pid = 3  # type: ignore[misc]


def test_stats_fields(dsn: str) -> None:
    """Every field that is promised, frozen."""
    levels = "minconn maxconn size used idle connecting waiting utilization oldest_hold"
    totals = "checkouts queued timeouts errors retries long_holds created discarded wait_seconds hold_seconds"
    assert {*levels.split(), *totals.split()} <= {field.name for field in dataclasses.fields(PoolStats)}
    with make(0, 1, dsn) as pool, pytest.raises(dataclasses.FrozenInstanceError):
        pool.stats().used = 5  # type: ignore[misc]


def test_status(dsn: str) -> None:
    """From 80 % high, from 95 % critical."""
    with make(5, 5, dsn) as pool:
        seen = [pool.stats().status]
        conns = []
        for _ in range(5):
            conns.append(pool.getconn())
            seen.append(pool.stats().status)
        assert seen == ["ok", "ok", "ok", "ok", "high", "critical"]
        for conn in conns:
            pool.putconn(conn)


def test_repr_in_one_line(dsn: str) -> None:
    """Name, state, and who is where."""
    with make(1, 2, dsn, name="shop", timeout=PATIENCE) as pool:
        assert repr(pool) == "<ConnectionPool 'shop' ok: 0 of 2 in use, 1 idle, 0 connecting, 0 waiting>"
        held = [pool.getconn(), pool.getconn()]
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().waiting == 1)
        assert "2 of 2 in use, 0 idle, 0 connecting, 1 waiting" in repr(pool)
        for conn in held:
            pool.putconn(conn)
        pool.putconn(waiting.result(PATIENCE))
    assert "'shop' closed" in repr(pool)
