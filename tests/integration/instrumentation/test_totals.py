"""Totals of pools that are not ours, as readers of two kinds are told them: none goes down, none is lost."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from psycopg2.pool import PoolError, ThreadedConnectionPool

from otel_pgpool.telemetry import metrics
from tests.support.instrumentation import instrumented, name_of
from tests.support.processes import in_child
from tests.support.sqlalchemy_engines import borrow
from tests.support.telemetry import until
from tests.support.totals import CHECKOUTS, CREATED, DISCARDED, MAX, TIMEOUTS, Readers, collecting, until_collected

if TYPE_CHECKING:
    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals


def use(pool: ThreadedConnectionPool, times: int = 1) -> None:
    for _ in range(times):
        pool.putconn(pool.getconn())


def test_one_stock_pool_after_the_other(signals: Signals, readers: Readers, instrumentation: None, dsn: str) -> None:
    """Closed before it was told, made anew under its name, with a timeout of each."""
    for number in range(1, 5):
        pool = ThreadedConnectionPool(1, 1, dsn)
        use(pool, number)
        conn = pool.getconn()
        with pytest.raises(PoolError, match="exhausted"):
            pool.getconn()
        pool.putconn(conn)
        if number == 2:
            readers.told(CHECKOUTS, name_of(dsn))
        pool.closeall()
    told = [readers.told(metric, name_of(dsn)) for metric in (CHECKOUTS, TIMEOUTS, CREATED, DISCARDED)]
    assert told == [1 + 2 + 3 + 4 + 4, 4, 4, 4]


def test_stock_pools_end_while_readers_collect(
    signals: Signals, readers: Readers, instrumentation: None, dsn: str
) -> None:
    """Each closed and made anew under its name."""
    with collecting(readers.all):
        for number in range(10):
            pool = ThreadedConnectionPool(1, 1, dsn)
            use(pool, number)
            pool.closeall()
    told = [readers.told(metric, name_of(dsn)) for metric in (CHECKOUTS, CREATED, DISCARDED)]
    assert told == [45, 10, 10]


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_stock_pool_that_was_dropped(
    signals: Signals, readers: Readers, instrumentation: None, dsn: str, in_a_cycle: bool
) -> None:
    """What was out of it is told as reclaimed, when the watch comes to it."""
    pool = ThreadedConnectionPool(1, 2, dsn)
    use(pool, 2)
    assert readers.told(CHECKOUTS, name_of(dsn)) == 2
    use(pool, 3)
    lent = pool.getconn()
    if in_a_cycle:
        pool.itself = pool
    ref = weakref.ref(pool)
    del pool
    until_collected(ref)
    assert readers.told(CHECKOUTS, name_of(dsn)) == 6
    assert MAX not in readers.all[1].ask()
    until(lambda: readers.told(DISCARDED, name_of(dsn)) == 1)
    lent.close()


def test_a_stock_pool_closed_while_something_is_out(
    signals: Signals, readers: Readers, instrumentation: None, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its series end though the program keeps it, and the pool itself still counts the connection as lent."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    pool.getconn()
    pool.closeall()
    assert readers.told(CHECKOUTS, name_of(dsn)) == 1
    monkeypatch.setattr(metrics, "KEPT_AFTER_THE_END", 0.0)
    assert [reader.ask() for reader in readers.all] == [{}, {}]


def test_an_engine_that_is_disposed(
    signals: Signals, readers: Readers, instrumentation: None, engines: Engines
) -> None:
    """Each of its pools counts on where the one before it ended, and every connection is told as gone once."""
    engine = engines(pool_size=2)
    held = [engine.connect()]
    for number in range(1, 5):
        borrow(engine)
        engine.dispose()
        if number % 2:
            assert readers.told(CHECKOUTS, engines.name) == 1 + number
    held.pop().close()
    gc.collect()
    assert readers.told(CHECKOUTS, engines.name) == 5
    until(lambda: readers.told(DISCARDED, engines.name) == 5)
    assert readers.told(CREATED, engines.name) == 5


def test_an_engine_keeps_its_name_when_it_is_disposed(
    signals: Signals, readers: Readers, instrumentation: None, engines: Engines
) -> None:
    """Though the name without a number is free by then: its totals must not be told twice."""
    first, second = engines(), engines()
    borrow(first)
    borrow(second)
    numbered = f"{engines.name} #2"
    assert (readers.told(CHECKOUTS, engines.name), readers.told(CHECKOUTS, numbered)) == (1, 1)
    ref = weakref.ref(engines.forget(first))
    del first
    until_collected(ref)
    borrow(second)
    second.dispose()
    borrow(second)
    assert (readers.told(CHECKOUTS, engines.name), readers.told(CHECKOUTS, numbered)) == (1, 3)


def test_an_engine_that_was_dropped(
    signals: Signals, readers: Readers, instrumentation: None, engines: Engines
) -> None:
    """With the pools that it had before."""
    engine = engines()
    borrow(engine)
    engine.dispose()
    borrow(engine)
    borrow(engine)
    ref = weakref.ref(engines.forget(engine))
    del engine
    until_collected(ref)
    assert readers.told(CHECKOUTS, engines.name) == 3


def test_off_and_on_again(signals: Signals, readers: Readers, dsn: str, engines: Engines) -> None:
    """What a pool is lent while the instrumentation is off is not counted; before and after it is, as one."""
    pool, engine = ThreadedConnectionPool(1, 1, dsn), engines()
    for number in range(1, 4):
        with instrumented(signals, long_hold=None):
            use(pool)
            borrow(engine)
            if number == 2:
                readers.told(CHECKOUTS, name_of(dsn))
        use(pool)
        gc.collect()
    assert readers.told(CHECKOUTS, name_of(dsn)) == 3
    assert readers.told(CHECKOUTS, engines.name) == 3
    pool.closeall()


def test_a_forked_child(signals: Signals, readers: Readers, instrumentation: None, dsn: str, engines: Engines) -> None:
    """Of a parent that has collected counts from zero, the connections that it leaves to it included."""
    pool, engine = ThreadedConnectionPool(1, 1, dsn), engines()
    use(pool, 4)
    for _ in range(5):
        borrow(engine)
    assert (readers.told(CHECKOUTS, name_of(dsn)), readers.told(CHECKOUTS, engines.name)) == (4, 5)

    def child() -> list[int]:
        for reader in readers.all:
            reader.total.clear()
            reader.began.clear()
            reader.ask()
        use(pool)
        borrow(engine)
        return [
            readers.told(metric, name) for name in (name_of(dsn), engines.name) for metric in (CHECKOUTS, DISCARDED)
        ]

    assert in_child(child) == str([1, 1, 1, 1])
    use(pool)
    assert readers.told(CHECKOUTS, name_of(dsn)) == 5
    pool.closeall()
