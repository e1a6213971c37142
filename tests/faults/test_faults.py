"""Every fault of `make faults` from outside, briefly, on our pool: the application goes on, and nothing is lost."""

from __future__ import annotations

import pytest

from benchmarks.row import OURS
from faults.catalogue import OUTSIDE
from faults.scene import WORKERS, play

AWAY = 0.5


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_application_goes_on(name: str) -> None:
    """Whoever held a connection that was broken sees one error; nobody else does, and all is as before afterwards."""
    outcome = play(OUTSIDE[name], OURS, AWAY)
    assert outcome.wrongs() == []
    assert outcome.attempts > WORKERS
