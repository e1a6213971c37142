"""Totals of our own pool, as readers of two kinds receive them: none goes down, none is lost with its pool."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.telemetry import sdk_internals
from tests.support.internals import connectors_of, maintenance_of
from tests.support.processes import in_child
from tests.support.telemetry import NAME, Signals, until
from tests.support.totals import CHECKOUTS, CREATED, DISCARDED, MAX, TIMEOUTS, Readers, collecting, until_collected


def pool_of(signals: Signals, dsn: str, **options: Any) -> ConnectionPool:
    return ConnectionPool(1, 1, dsn, name=NAME, observer=signals.telemetry(), **{"long_hold": None, **options})


def borrow(pool: ConnectionPool, times: int = 1) -> None:
    for _ in range(times):
        with pool.connection():
            pass


def time_out(pool: ConnectionPool) -> None:
    with pool.connection(), pytest.raises(PoolTimeout):
        pool.getconn(timeout=0)


def test_a_short_job(signals: Signals, readers: Readers, dsn: str) -> None:
    """All checkouts, timeouts and connections of a pool that ends before the first collection are reported."""
    with pool_of(signals, dsn) as pool:
        borrow(pool, 3)
        time_out(pool)
    assert (readers.told(CHECKOUTS), readers.told(TIMEOUTS)) == (4, 1)
    assert (readers.told(CREATED), readers.told(DISCARDED)) == (1, 1)


def test_a_closed_pool_and_its_successor(signals: Signals, readers: Readers, dsn: str) -> None:
    """The levels are those of the one that is open, the totals those of both."""
    with pool_of(signals, dsn) as first:
        borrow(first, 7)
        assert readers.told(CHECKOUTS) == 7
    with pool_of(signals, dsn) as second:
        assert readers.told(CHECKOUTS) == 7
        assert readers.all[1].ask()[MAX] == {NAME: 1}
        borrow(second)
        assert readers.told(CHECKOUTS) == 8
    assert sum(first.stats().checkouts.values()) == 7


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_pool_that_was_dropped(signals: Signals, readers: Readers, dsn: str, in_a_cycle: bool) -> None:
    """Without being closed, and before a collection has seen all that it counted."""
    pool = pool_of(signals, dsn)
    borrow(pool, 2)
    assert readers.told(CHECKOUTS) == 2
    borrow(pool, 3)
    if in_a_cycle:
        pool.itself = pool  # type: ignore[attr-defined]
    ref = weakref.ref(pool)
    del pool
    until_collected(ref)
    assert readers.told(CHECKOUTS) == 5
    with pool_of(signals, dsn) as pool:
        borrow(pool)
        assert readers.told(CHECKOUTS) == 6


def test_a_pool_that_was_never_whole(signals: Signals, readers: Readers, dsn: str) -> None:
    """One whose making fails leaves nothing, and raises nothing when it goes."""
    with pytest.raises(ValueError, match="minconn"):
        ConnectionPool(-1, 1, dsn, name=NAME, observer=signals.telemetry())
    gc.collect()
    assert readers.told(CHECKOUTS) == 0


def test_a_return_after_the_end_counts(signals: Signals, readers: Readers, dsn: str) -> None:
    """A connection that is released to a closed pool is closed, and counts as discarded; its checkout counts too."""
    pool = pool_of(signals, dsn)
    conn = pool.getconn()
    pool.close(0)
    assert (readers.told(CHECKOUTS), readers.told(DISCARDED)) == (1, 0)
    pool.putconn(conn)
    assert readers.told(DISCARDED) == 1
    until(lambda: not maintenance_of(pool)._runs())


def test_pools_end_while_readers_collect(signals: Signals, readers: Readers, dsn: str) -> None:
    """Each closed, or dropped with what it counted since the last collection."""
    with collecting(readers.all):
        for number in range(6):
            pool = pool_of(signals, dsn)
            borrow(pool, number)
            if number % 2:
                pool.close()
            del pool
            gc.collect()
    until(lambda: readers.told(CHECKOUTS) == 15)
    assert (readers.told(CREATED), readers.told(DISCARDED)) == (6, 3)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_forked_child(
    signals: Signals, readers: Readers, dsn: str, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Of a parent that has collected: no total falls, and the increments are the child's own.

    Where the SDK's inside is not known, the sums go on where the parent's ended.
    """
    with pool_of(signals, dsn) as pool:
        borrow(pool, 8)
        assert readers.told(CHECKOUTS) == 8

        def child() -> list[int]:
            for reader in readers.all:
                reader.total.clear()
                reader.began.clear()
                reader.ask()
            borrow(pool)
            for reader in readers.all:
                reader.ask()
            pool.close(0)
            return [reader.sum_of(CHECKOUTS) for reader in readers.all]

        if not is_known:
            monkeypatch.setattr(sdk_internals, "_real", lambda _instrument: object())
        until(lambda: not connectors_of(pool)._threads)
        assert in_child(child) == str([1, 1 if is_known else 9])
        monkeypatch.undo()
        borrow(pool)
        assert readers.told(CHECKOUTS) == 9
