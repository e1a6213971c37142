"""The totals of an instrumented pool that has replaced others: no count is lost, and none is missing for a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.open_checkouts import OpenCheckouts
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.adapters import FakeAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TotalsOfPool(OpenCheckouts):
    """Totals without a tracker; their pool is collected once `pool_ref` says so."""

    def __init__(self, pool: object = None) -> None:
        super().__init__()
        self._pool: Callable[[], object] = lambda: pool  # type: ignore[assignment]  # like a weak reference

    def errors_now(self) -> int:
        levels = Levels(0, 1, 0, 0, 1)
        return self.statistics("shop", levels, connecting=0, is_unreachable=False).errors


class ReadByTwo(TotalsOfPool):
    """Totals of a collected pool; another thread has its turn whenever a counter is read."""

    other_thread: Callable[[], object] | None = None

    @property
    def errors(self) -> int:  # type: ignore[override]  # for the slot of the same name
        turn, self.other_thread = self.other_thread, None
        if turn is not None:
            turn()
        return 5

    @errors.setter
    def errors(self, value: int) -> None:
        pass


@pytest.fixture
def replaced() -> ReadByTwo:
    return ReadByTwo()


@pytest.fixture
def totals(replaced: ReadByTwo) -> TotalsOfPool:
    totals = TotalsOfPool()
    totals.continue_from(replaced)
    return totals


def test_counts_during_the_merge(totals: TotalsOfPool, replaced: ReadByTwo) -> None:
    """An error that another thread counts while a replaced pool's totals are merged is not lost."""

    def count() -> None:
        totals.errors += 1

    replaced.other_thread = count
    totals.errors_now()
    assert totals.errors_now() == 5 + 1


def test_reader_during_the_merge(totals: TotalsOfPool, replaced: ReadByTwo) -> None:
    """A reader in another thread gets the whole totals at each moment of the merge."""
    seen = []
    replaced.other_thread = lambda: seen.append(totals.errors_now())
    assert totals.errors_now() == 5
    assert seen == [5]


def test_merge_in_two_threads(totals: TotalsOfPool, replaced: ReadByTwo) -> None:
    """Two threads that merge at the same time count a replaced pool once, and then do not keep its totals."""
    replaced.other_thread = totals._merge_finished
    totals.errors_now()
    assert totals.errors_now() == 5
    assert totals.past.predecessors == ()


def test_a_chain_of_pools() -> None:
    """A pool in use is counted as it is; what it has replaced is counted with its successor only."""
    first, second, third = TotalsOfPool(), TotalsOfPool(pool=object()), TotalsOfPool()
    first.errors, second.errors, third.errors = 1, 2, 4
    second.continue_from(first)
    assert (first.errors_now(), second.errors_now()) == (0, 3)
    third.continue_from(second)
    assert (first.errors_now(), second.errors_now(), third.errors_now()) == (0, 0, 7)
    second.errors += 8
    assert third.errors_now() == 15
    assert third.past.predecessors == (second,)


class Pool:
    """A pool that can be collected."""


@pytest.fixture
def session() -> Iterator[InstrumentationSession]:
    session = InstrumentationSession(InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}, long_hold=10))
    session.watch.parked = False  # no thread is started
    yield session
    session.end()


def test_long_hold_that_outlives_its_pool(session: InstrumentationSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release is counted before the pool's totals count as finished, whatever another thread reads meanwhile."""
    adapter, pool, successor_pool = FakeAdapter(), Pool(), Pool()
    tracker = session.track(pool, adapter, name="shop")
    assert tracker is not None
    successor = session.track(successor_pool, adapter, name="shop", predecessor=tracker)
    assert successor is not None
    checkout = tracker.start(())
    tracker.acquired(checkout, conn := Pool())
    checkout.acquired -= 60.0
    del pool
    flag = PoolTracker.flag

    def flag_while_another_reads(self: PoolTracker, *args: Any) -> None:
        successor.stats()
        flag(self, *args)

    monkeypatch.setattr(PoolTracker, "flag", flag_while_another_reads)
    tracker.released(checkout)
    stats = successor.stats()
    assert (stats.long_holds, round(stats.hold_seconds)) == (1, 60)
    assert tracker.is_finished
    assert conn is not None
