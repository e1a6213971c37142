"""Orders of two and three threads' steps on the pool and on an instrumented pool: the fast part of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interleaving import psycopg2_world, runs, shared
from tests.interleaving.explorer import (
    Case,
    Given,
    all_orders,
    bounded_orders,
    order_of,
    play,
    sampled_orders,
    switches_of,
)
from tests.interleaving.operations import OPERATIONS, pairs, scenario
from tests.interleaving.scheduler import EVAL_BREAKER, EVERY_BYTECODE, Deadlocked, SchedulerLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBE = 6
"""Orders of each pair here; `make faults` runs all."""


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    """Replace clock, threads, locks and network in the modules of the pool."""
    with psycopg2_world.faked_psycopg2():
        yield


HOT = [("acquire", "release"), ("use", "release"), ("release", "drain"), ("release", "shrink"), ("time out", "release")]


@pytest.mark.parametrize("names", HOT, ids="/".join)
def test_all_orders_of_the_hot_path(names: tuple[str, str]) -> None:
    """No order of a hot pair loses a connection, hands it to two holders, passes the limit or forgets a waiter."""
    for idle in (0, 1):
        result = all_orders(scenario(names, idle))
        assert result.is_complete
        assert result.failures == []


def test_some_orders_of_every_pair() -> None:
    """The first orders of each pair of operations keep the pool's invariants."""
    for names in pairs():
        result = all_orders(scenario(names, 1), limit=PROBE)
        assert result.failures == [], names


@pytest.mark.parametrize("world", ["light", "records"])
def test_some_orders_of_an_instrumented_pool(world: str) -> None:
    """Counters and holders of an instrumented pool of psycopg2 agree with what has happened, in each order."""
    kind = runs.WORLDS[world]
    for names in kind.pairs():
        result = all_orders(kind.scenario(names, kind.idle[1]), kind.mode, limit=PROBE)
        assert result.failures == [], names


def test_three_threads() -> None:
    """Sampled orders of three threads keep the invariants too."""
    for names in runs.TRIPLES[:3]:
        assert sampled_orders(scenario(names, 0), "three", 20).failures == []


def test_every_operation_is_run() -> None:
    """Each operation is part of a pair."""
    assert {name for pair in pairs() for name in pair} == set(OPERATIONS)


# The tools themselves


class Planted:
    """Two threads add to a number that no lock guards."""

    def __init__(self) -> None:
        self.number = 0


def adding(times: int = 1, *, lock: bool = False) -> Callable[[], Case]:
    """Return two threads that each read the number and write it, as two steps."""

    def begin() -> Case:
        shared.forget_all()
        planted, guard = shared.watch(Planted()), SchedulerLock()

        def step() -> None:
            from tests.interleaving.scheduler import HERE

            runner = HERE.runner
            assert runner is not None
            for _ in range(times):
                if lock:
                    guard.acquire()
                runner.fresh = True
                number = planted.number
                runner.fresh = True
                planted.number = number + 1
                if lock:
                    guard.release()

        def rest(_scheduler: object) -> object:
            assert planted.number == 2 * times, "an addition is lost"
            return planted.number

        return Case([step, step], lambda: None, rest)

    return begin


def test_a_lost_update_is_found() -> None:
    """Both searches find it, and the reduced one needs fewer orders."""
    plain, reduced = bounded_orders(adding(2), 3), all_orders(adding(2))
    assert plain.failures
    assert reduced.failures
    assert reduced.is_complete
    assert reduced.orders < plain.orders
    assert all_orders(adding(2, lock=True)).failures == []


def test_a_failing_order_is_replayed() -> None:
    """The list of switches of a failure leads to the same failure, each time."""
    failure = all_orders(adding()).failures[0]
    for _ in range(3):
        scheduler, error, _outcome = play(adding(), Given(order_of(failure.switches)))
        assert "an addition is lost" in str(error)
        assert switches_of(scheduler.steps) == failure.switches


def test_a_deadlock_is_found_and_printed() -> None:
    """Two threads that take two locks in opposite orders: the orders in which both wait are failures."""

    def begin() -> Case:
        shared.forget_all()
        first, second = SchedulerLock(), SchedulerLock()

        def take(one: SchedulerLock, other: SchedulerLock) -> Callable[[], object]:
            def act() -> None:
                with one, other:
                    pass

            return act

        return Case([take(first, second), take(second, first)], lambda: None, lambda _scheduler: None)

    failures = all_orders(begin).failures
    assert failures
    assert all(Deadlocked.__name__ in failure.text for failure in failures)
    assert "waits for a SchedulerLock of thread" in failures[0].text


@pytest.mark.parametrize("names", [("acquire", "release"), ("release", "evict")], ids="/".join)
def test_the_reduction_leaves_no_outcome_out(names: tuple[str, str]) -> None:
    """Every order of one preemption ends as an order of the reduced search does."""
    plain, reduced = bounded_orders(scenario(names, 1), 1), all_orders(scenario(names, 1))
    assert plain.failures == []
    assert plain.outcomes <= reduced.outcomes


def test_counters_rest_on_the_eval_breaker() -> None:
    """`total += 1` of a tracker loses nothing where CPython switches, and would if it switched at every bytecode."""
    begin = psycopg2_world.scenario(("getconn", "getconn"), 2)
    assert all_orders(begin, EVAL_BREAKER).failures == []
    assert all_orders(begin, EVERY_BYTECODE).failures


QUICK = ["a release does not look again whether its connection is to go", "a light putconn looks, then deletes"]


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_found(name: str) -> None:
    """A mutant of the hot path fails in at least one order; `make faults` tries them all."""
    assert runs.try_mutant(name)["failures"]
