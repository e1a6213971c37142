"""The simulated fleet: real parts of the pool on a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fleet.scenarios import SCENARIOS, Event, Scenario
from tests.fleet.simulate import compare, main
from tests.fleet.simulation.run import simulate

STEADY = SCENARIOS[0].at(15)
AWAY = Scenario(Event.PGBOUNCER_AWAY, before=6.0, disturbance=6.0, after=6.0).at(40)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_the_budget_holds_in_every_scenario(scenario: Scenario) -> None:
    """PgBouncer never has more connections to PostgreSQL than its budget, and every process is served."""
    figures = simulate(replace(scenario.at(15), before=6.0, after=8.0), 1)
    assert 0 < figures.server_connections <= scenario.at(15).fleet.budget
    assert figures.fairness > 0.8
    assert (figures.recovery is not None) == (scenario.event in {Event.POSTGRES_RESTART, Event.PGBOUNCER_AWAY})


def test_the_same_seed_gives_the_same_figures() -> None:
    """A run replays exactly, and another seed gives another run."""
    assert simulate(AWAY, 3) == simulate(AWAY, 3)
    assert simulate(AWAY, 3) != simulate(AWAY, 4)


def test_jitter_lowers_the_peak_after_an_outage() -> None:
    """Without jitter, processes that notice an outage together connect together when it has ended."""
    busy = replace(AWAY, fleet=replace(AWAY.fleet, arrivals=10.0, hold=0.005, timeout=1.0), disturbance=8.5)
    assert simulate(busy, 3).logins_peak < 0.6 * simulate(busy, 3, jitter=False).logins_peak


def test_a_deviation_from_a_real_run_is_found() -> None:
    """Figures more than 20 % apart are out, equal ones are not, and waits below a millisecond are not compared."""
    real = simulate(STEADY, 5)
    assert not [row for row in compare([real], [real]) if row["is_out"]]
    off = replace(real, served=real.served * 2, wait_p50=0.0001, recovery=1.0)
    assert [row["figure"] for row in compare([real], [off]) if row["is_out"]] == ["served", "recovery"]


def test_bad_input_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The option and what it accepts are in the message."""
    with pytest.raises(SystemExit):
        main(["--processes", "1"])
    assert "--processes" in capsys.readouterr().err
