"""The long runs of `make faults`, small: what they look for is found missing in seconds too."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos import crowd, fleet, herd, load, soak
from tests.chaos.lookout import Lookout


def test_nothing_grows_with_the_checkouts() -> None:
    """Each checkout's span arrives, no series comes twice, threads stay as many; memory is judged by a million."""
    soaked = load.play(["soak"], ["--checkouts", "4000"])["soak"]
    assert isinstance(soaked, soak.Soaked)
    assert [each for each in soaked.violations if "MB more" not in each] == []
    assert soaked.checkouts >= 4000
    assert soaked.grown < 10.0


def test_a_soak_whose_workers_die_ends() -> None:
    """What a worker raises is a violation, as is that nothing was exported."""
    dead = soak.Soaked(10, resident=[1.0], threads=[1], descriptors=[1], series=[0], found=["ValueError()"])
    assert dead.violations == [
        "ValueError()",
        "series come and go, or never come: [0] in 0 exports",
        "0 spans of 10 checkouts, 0 undelivered",
    ]


def test_a_crowd_is_served() -> None:
    """All wait at once for few connections, and all are served."""
    crowded = crowd.play(400)
    assert crowded.violations == []
    assert (crowded.waiting, crowded.served) == (400, 400)


def test_many_pools_cost_a_thread_each_and_leave_nothing() -> None:
    """None before the first connection, one from then on, none when they are closed."""
    sailed = fleet.play(40)
    assert sailed.violations == []


def test_a_herd_comes_back_without_a_stampede() -> None:
    """While the server is away each process tries alone; when it is back each makes its connections once."""
    returned = herd.play(processes=4, connections=3, away=0.5)
    assert returned.violations == []


def test_a_stampede_is_seen() -> None:
    """Pools that do not pause, or come back all at once, or one short, or not at all, pass for no herd."""
    seconds = [130, 20, 12, 9, 9, 7, 7, 8, 8, 8, 1]
    good = herd.Returned(20, 10, 10.2, seconds, 1.0, [70, 60, 40, 20, 10], 0.1, 4.0, 4.5, {}, 200)
    assert good.violations == []
    for stampede in (
        replace(good, while_away=[200] * 11),
        replace(good, while_away=[3 * number for number in seconds]),
        replace(good, while_away=[*seconds[:2], *(2 * number for number in seconds[2:])]),
        replace(good, silence=3.0),
        replace(good, on_return=[200]),
        replace(good, on_return=[70, 60, 60, 40, 20]),
        replace(good, most_backends=201),
        replace(good, all_work=None),
    ):
        assert len(stampede.violations) >= 1, stampede


def test_what_is_left_of_a_crowd_is_told() -> None:
    """Errors, threads that never waited, or were never served, and threads and descriptors that are left."""
    crowded = crowd.Crowded(9, 2, {"served": 7, "PoolTimeout": 1}, 1.0, 8, 1.0, 3, 1, 1, ["found"])
    assert crowded.violations == [
        "found",
        "8 of 9 threads wait",
        "of 9 threads: {'served': 7, 'PoolTimeout': 1}",
        "3 server processes of 2",
        "1 threads and 1 descriptors are left",
    ]


def test_one_that_cannot_be_played_is_a_violation_of_the_whole() -> None:
    """The next is tried all the same, and the document says which has no figures."""
    figures = load.play(["fleet", "crowd"], ["--pools", "none", "--threads", "20"])
    assert figures.violations == ["fleet: could not be played: status 2", "crowd: could not be played: status 2"]
    told = "\n".join(load.lines(figures))
    assert "### Fleet\n\nIt could not be played: status 2.\n" in told
    assert "### Crowd\n\nIt could not be played: status 2." in told


class Blind(Lookout):
    """One that sees nothing."""

    def _look_on(self) -> None:
        raise ValueError("nothing to see")


def test_who_looks_on_no_more_says_so() -> None:
    """What ends a lookout before its time is a violation, and no silence."""
    with Blind() as blind:
        pass
    assert blind.violations == {"blind was ended by ValueError('nothing to see')"}
