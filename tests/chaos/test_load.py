"""The long runs of `make faults`, shortened, and tests that each run reports its violations."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos import load, scale, soak, thundering_herd
from tests.chaos.monitors import Monitor


def test_nothing_grows_with_the_checkouts() -> None:
    """Each span arrives, no series is exported twice, the number of threads is constant; memory needs a long run."""
    result = load.play(["soak"], ["--checkouts", "4000"])["soak"]
    assert isinstance(result, soak.SoakResult)
    assert [each for each in result.violations if "MB more" not in each] == []
    assert result.checkouts >= 4000
    assert result.grown < 10.0


def test_a_soak_whose_workers_die_ends() -> None:
    """An error of a worker is a violation, and so is a run without exports."""
    dead = soak.SoakResult(10, resident=[1.0], threads=[1], descriptors=[1], series=[0], found=["ValueError()"])
    assert dead.violations == [
        "ValueError()",
        "series come and go, or never come: [0] in 0 exports",
        "0 spans of 10 checkouts, 0 undelivered",
    ]


def test_many_waiters_are_served() -> None:
    """Many threads wait at once for few connections, and all are served."""
    result = scale.play_waiters(400)
    assert result.violations == []
    assert (result.waiting, result.served) == (400, 400)


def test_many_pools_cost_a_thread_each_and_leave_nothing() -> None:
    """A pool has no thread before its first connection, then one, and none after its close."""
    result = scale.play_pools(40)
    assert result.violations == []


def test_a_thundering_herd_is_held_back() -> None:
    """During an outage each process connects by one thread; afterwards it opens each connection once."""
    result = thundering_herd.play(processes=4, connections=3, away=0.5)
    assert result.violations == []


def test_a_herd_without_restraint_is_seen() -> None:
    """It is a violation if pools do not pause, return at the same moment, miss a connection, or do not return."""
    seconds = [130, 20, 12, 9, 9, 7, 7, 8, 8, 8, 1]
    good = thundering_herd.HerdResult(20, 10, 10.2, seconds, 1.0, [70, 60, 40, 20, 10], 0.1, 4.0, 4.5, {}, 200)
    assert good.violations == []
    for result in (
        replace(good, while_away=[200] * 11),
        replace(good, while_away=[3 * number for number in seconds]),
        replace(good, while_away=[*seconds[:2], *(2 * number for number in seconds[2:])]),
        replace(good, silence=3.0),
        replace(good, on_return=[200]),
        replace(good, on_return=[70, 60, 60, 40, 20]),
        replace(good, most_backends=201),
        replace(good, all_work=None),
    ):
        assert len(result.violations) >= 1, result


def test_what_many_waiters_leave_is_reported() -> None:
    """Errors, threads that never waited, or were never served, and threads and descriptors that are left."""
    result = scale.WaitersResult(9, 2, {"served": 7, "PoolTimeout": 1}, 1.0, 8, 1.0, 3, 1, 1, ["found"])
    assert result.violations == [
        "found",
        "8 of 9 threads wait",
        "of 9 threads: {'served': 7, 'PoolTimeout': 1}",
        "3 backends of 2",
        "1 threads and 1 descriptors are left",
    ]


def test_one_that_cannot_be_played_is_a_violation_of_the_whole() -> None:
    """If a run fails, the next one is still started, and the document says which run has no figures."""
    figures = load.play(["many-pools", "many-waiters"], ["--pools", "none", "--threads", "20"])
    assert figures.violations == [
        "many-pools: could not be run: status 2",
        "many-waiters: could not be run: status 2",
    ]
    told = "\n".join(load.lines(figures))
    assert "### Many pools\n\nIt could not be run: status 2.\n" in told
    assert "### Many waiters\n\nIt could not be run: status 2." in told


class Blind(Monitor):
    """A monitor that fails."""

    def _watch(self) -> None:
        raise ValueError("nothing to see")


def test_a_monitor_that_ends_early_says_so() -> None:
    """An error in a monitor is a violation."""
    with Blind() as blind:
        pass
    assert blind.violations == {"blind was ended by ValueError('nothing to see')"}
