"""The faults of servers and networks, and forks, briefly, on our pool: the application continues, nothing is lost."""

from __future__ import annotations

from itertools import product

import pytest

from benchmarks.row import OURS
from tests.chaos import __main__ as faults
from tests.chaos.catalogue import FAULTS, OUTSIDE
from tests.chaos.pools import POOLS
from tests.chaos.report import findings, lines
from tests.chaos.runner import WORKERS, Outcome, play

AWAY = 0.5


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_application_goes_on(name: str) -> None:
    """Each holder of a broken connection sees one error, other callers see none, and the pool recovers completely."""
    outcome = play(OUTSIDE[name], OURS, AWAY)
    assert outcome.failures() == []
    assert outcome.attempts > WORKERS


def test_a_pool_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the run of a fault hangs or crashes, the document says so in its cell."""
    assert faults.play_apart("no such fault", OURS, AWAY) == "could not be run"
    monkeypatch.setattr(faults, "PATIENCE", 0.0)
    hung = faults.play_apart("cut", OURS, 0.0)
    assert hung == "did not end in time"
    written = [*lines(dict.fromkeys(product(FAULTS, POOLS), hung), AWAY)]
    assert sum(hung in line for line in written) > len(FAULTS)
    assert sum(hung in line for line in findings(dict.fromkeys(product(FAULTS, POOLS), hung))) > 1


def outcome(*, first_good: float | None = 0.5, lost: int = 0, violations: tuple[str, ...] = ()) -> Outcome:
    """Make an outcome with two errors, as far as the findings read it."""
    return Outcome(
        attempts=9,
        errors={"OperationalError": 2},
        in_doubt=0,
        first_good=first_good,
        lost=lost,
        hung=0,
        threads=0,
        descriptors=0,
        most_backends=4,
        most_backends_at_all=4,
        longest_wait=0.0,
        longest_release=0.0,
        longest_work=0.1,
        longest_stall=0.0,
        violations=[*violations],
        notes=[],
    )


def test_the_findings_say_what_went_wrong() -> None:
    """The findings count the faults without remains, name each violation, and add up the errors of telemetry faults."""
    outcomes = dict.fromkeys(product(FAULTS, POOLS), outcome())
    outcomes["demotion", OURS] = outcome(first_good=None)
    outcomes["cut", OURS] = outcome(lost=1)
    outcomes["drip", OURS] = outcome(violations=("two holders",))
    found = "\n".join(findings(outcomes))
    assert f"After {len(FAULTS) - 2} of {len(FAULTS)} faults" in found
    assert f"- Violated: {FAULTS['drip'].title}: two holders." in found
    assert "The application saw 22 errors." in found
    assert "| time until work succeeds | never | 0.500 s |" in found
