"""The long runs of `make faults`, small: what they look for is found missing in seconds too."""

from __future__ import annotations

from faults import crowd, fleet, herd, load


def test_nothing_grows_with_the_checkouts() -> None:
    """Each checkout's span arrives, no series comes twice, threads stay as many; memory is judged by a million."""
    soaked = load.play(["soak"], ["--checkouts", "4000"]).soak
    assert soaked is not None
    assert soaked.spans == soaked.checkouts >= 4000
    assert (soaked.undelivered, soaked.series_twice, soaked.threads_left) == (0, 0, 0)
    assert len(set(soaked.threads)) == 1
    assert soaked.grown < 10.0


def test_a_crowd_is_served() -> None:
    """All wait at once for few connections, and all are served."""
    crowded = crowd.play(400)
    assert crowded.violations == []
    assert (crowded.waiting, crowded.served, crowded.errors) == (400, 400, {})
    assert (crowded.most_backends, crowded.threads_left, crowded.descriptors_left) == (crowd.MAXCONN, 0, 0)


def test_many_pools_cost_a_thread_each_and_leave_nothing() -> None:
    """None before the first connection, one from then on, none when they are closed."""
    sailed = fleet.play(40)
    assert sailed.violations == []


def test_a_herd_comes_back_without_a_stampede() -> None:
    """While the server is away each process tries alone; when it is back each makes its connections once."""
    returned = herd.play(processes=4, connections=3, away=0.5)
    assert returned.violations == []
    assert returned.all_back is not None


def test_the_figures_come_out_as_they_went_in() -> None:
    """Written as JSON and read again, they are told in the same words."""
    figures = load.Figures(fleet=fleet.Sailed(1, 2.0, 0.0, 3.0, 1.0, 4.0, 1.0, 1, 0, 0))
    again = load.Figures.of(load.plain(figures))
    assert again == figures
    assert "| closed, in all | 0 | | 0 |" in list(load.lines(again))
