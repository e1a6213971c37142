"""The live pools of a process: unique names, and the news of a fork."""

from __future__ import annotations

import threading
import weakref

import pytest

from otel_pgpool.pool import registry
from otel_pgpool.pool.registry import release_name


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of other tests are told of no fork that has not happened."""
    monkeypatch.setattr(registry, "_names", weakref.WeakValueDictionary())
    monkeypatch.setattr(registry, "_resets", weakref.WeakKeyDictionary())
    monkeypatch.setattr(registry, "_lock", threading.Lock())
    monkeypatch.setattr(registry, "_lowest", {})
    monkeypatch.setattr(registry, "_numbered", weakref.WeakKeyDictionary())


class FakePool:
    forked = 0

    def reset_after_fork(self) -> None:
        self.forked += 1


def register(pool: FakePool, name: str) -> str:
    return registry.register(pool, name, type(pool).reset_after_fork)


def test_two_live_pools_of_one_name_are_told_apart() -> None:
    """The second is `` #2``, the third `` #3``."""
    pools = [FakePool(), FakePool(), FakePool()]
    assert [register(pool, "till") for pool in pools] == ["till", "till #2", "till #3"]


def test_the_name_of_a_closed_pool_is_free() -> None:
    """The next takes the first number that is free."""
    first, second, third = FakePool(), FakePool(), FakePool()
    register(first, "desk")
    register(second, "desk")
    release_name("desk", first)
    assert register(third, "desk") == "desk"
    assert register(first, "desk") == "desk #3"


def test_the_name_of_a_pool_that_is_gone_is_free() -> None:
    """A pool never closed but collected holds no name."""
    pool = FakePool()
    register(pool, "gone")
    del pool
    successor = FakePool()
    assert register(successor, "gone") == "gone"


def test_a_name_is_released_by_its_pool_only() -> None:
    """A pool closed twice does not free the name of its successor."""
    first, second = FakePool(), FakePool()
    register(first, "mine")
    release_name("mine", first)
    register(second, "mine")
    release_name("mine", first)
    third = FakePool()
    assert register(third, "mine") == "mine #2"


def test_a_name_that_nobody_has_may_be_released() -> None:
    """Nothing happens."""
    release_name("never registered", object())


def test_live_pools_hear_of_a_fork() -> None:
    """Each once, closed ones included, and with a lock that can be taken in the child."""
    pool, closed = FakePool(), FakePool()
    register(pool, "fork")
    release_name(register(closed, "fork"), closed)
    with registry._lock:
        registry._after_fork()
    assert (pool.forked, closed.forked) == (1, 1)
    another = FakePool()
    assert register(another, "fork") == "fork #2"


class Counting(weakref.WeakValueDictionary[str, object]):
    """Counts how often it is asked."""

    asked = 0

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return super().__contains__(key)


def test_many_of_one_name_are_made_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a free number does not begin anew each time."""
    names = Counting()
    monkeypatch.setattr(registry, "_names", names)
    pools = [FakePool() for _ in range(500)]
    assert [register(pool, "many") for pool in pools][-1] == "many #500"
    assert names.asked <= 3 * len(pools)


def test_the_lowest_number_that_is_free_is_used_again() -> None:
    """Of a pool that was closed, and of one that was collected."""
    pools = [FakePool() for _ in range(6)]
    for pool in pools:
        register(pool, "again")
    release_name("again #4", pools[3])
    del pools[1], pool
    assert [register(FakePool(), "again") for _ in range(1)] == ["again #2"]
    kept = [FakePool(), FakePool(), FakePool()]
    assert [register(pool, "again") for pool in kept] == ["again #2", "again #4", "again #7"]


def test_one_pool_that_fails_in_a_child_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """All are told of the fork; what one raised is logged."""

    class Failing(FakePool):
        def reset_after_fork(self) -> None:
            super().reset_after_fork()
            raise LookupError

    pools = [FakePool(), Failing(), FakePool(), Failing(), FakePool()]
    for pool in pools:
        register(pool, "fork")
    registry._after_fork()
    assert [pool.forked for pool in pools] == [1] * 5
    assert len(caplog.records) == 2


def test_names_do_not_accumulate() -> None:
    """Nothing is kept of the names of pools that are gone, in whatever order their numbers were freed."""
    for number in range(100):
        pools = {register(pool, f"tenant {number}"): pool for pool in (FakePool(), FakePool(), FakePool())}
        for name in sorted(pools, reverse=bool(number % 2)):
            release_name(name, pools[name])
    assert (len(registry._lowest), len(registry._names)) == (0, 0)
