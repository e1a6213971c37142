"""The real fleet, small: six workers through a short absence of PgBouncer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.fleet import real
from tests.fleet.figures import peak
from tests.fleet.scenarios import SCENARIOS, Event
from tests.support.external_programs import find_program


def test_six_workers_survive_pgbouncer() -> None:
    """All serve again after it has been away, and PostgreSQL never sees more connections than the budget."""
    find_program("pgbouncer")
    (away,) = (scenario.at(6) for scenario in SCENARIOS if scenario.event is Event.PGBOUNCER_AWAY)
    fleet = replace(away.fleet, arrivals=10.0)
    figures = real.measure(replace(away, fleet=fleet, before=0.5, disturbance=0.5, after=5.0), 1, {})
    assert 1 <= figures.server_connections <= fleet.budget
    assert figures.recovery is not None
    assert math.isfinite(figures.recovery)  # each worker served again
    assert figures.served > 0
    assert figures.logins_peak > 0
    assert 0 < figures.fairness <= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "1"], "--processes: '1' is not a whole number of at least 2"),
        (["--seed", "x"], "--seed: 'x' is not"),
        (["--scenario", "rain"], "--scenario: invalid choice: 'rain'"),
    ],
)
def test_bad_input_is_named(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names the option, the value and what it accepts."""
    with pytest.raises(SystemExit, match="2"):
        real.main(arguments)
    assert told in capsys.readouterr().err


def test_a_missing_pgbouncer_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says how it looks for the program."""
    monkeypatch.setenv("PGBOUNCER", "/nowhere")
    assert real.main([]) == 1
    assert "there is no pgbouncer: PGBOUNCER does not name it" in capsys.readouterr().err


def test_a_peak_counts_one_second() -> None:
    """Moments a whole second apart are not of one second, and those outside the load do not count."""
    assert peak([0.0, 0.4, 0.9, 1.0, 1.3, 5.0], 0.1, 2.0) == 4
