"""Every fault of `make faults` from outside, briefly, on our pool: the application goes on, and nothing is lost."""

from __future__ import annotations

from itertools import product

import pytest

from benchmarks.row import OURS
from faults import __main__ as faults
from faults.catalogue import FAULTS, OUTSIDE
from faults.pools import POOLS
from faults.report import lines
from faults.scene import WORKERS, play

AWAY = 0.5


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_application_goes_on(name: str) -> None:
    """Whoever held a connection that was broken sees one error; nobody else does, and all is as before afterwards."""
    outcome = play(OUTSIDE[name], OURS, AWAY)
    assert outcome.wrongs() == []
    assert outcome.attempts > WORKERS


def test_a_pool_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A play that hangs, or crashes, costs the document one cell, of our pool's too."""
    assert faults.play_apart("no such fault", OURS, AWAY) == "could not be played"
    monkeypatch.setattr(faults, "PATIENCE", 0.0)
    hung = faults.play_apart("cut", OURS, 0.0)
    assert hung == "never came back"
    written = [*lines(dict.fromkeys(product(FAULTS, POOLS), hung), AWAY)]
    assert sum(hung in line for line in written) > len(FAULTS)
