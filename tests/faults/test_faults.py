"""Every fault of `make faults` from outside, briefly, on our pool: the application goes on, and nothing is lost."""

from __future__ import annotations

import pytest

from benchmarks.row import OURS
from faults.catalogue import OUTSIDE
from faults.scene import MAXCONN, WORKERS, play

AWAY = 0.5
BACK_WITHIN = 7.0
"""Seconds: the prober pauses for up to 5 s while the server is away."""

SEEN_BY_NOBODY = {"idle-killed", "rollback-killed", "too-many-clients", "idle-frozen", "return-frozen", "slow", "drip"}
"""Faults that cost no holder an error: the dead are found before they are lent, or on their way back."""

NO_CONNECTION = {
    "connect-reset",
    "failover",
    "in-recovery",
    "rotated",
    "silent-port",
    "stopped-fast",
    "stopped-immediate",
    "too-many-clients",
    "unverified",
}
"""Faults during which none can be made, so that callers may time out."""


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_application_goes_on(name: str) -> None:
    """Whoever held a connection that was broken sees one error; nobody else does, and all is as before afterwards."""
    outcome = play(OUTSIDE[name], OURS, AWAY)
    assert outcome.wrongs() == []
    assert outcome.first_good is not None
    assert outcome.first_good < BACK_WITHIN + outcome.longest_stall
    timeouts = outcome.errors.pop("PoolTimeout", 0)
    assert timeouts == 0 or name in NO_CONNECTION
    assert sum(outcome.errors.values()) <= (0 if name in SEEN_BY_NOBODY else MAXCONN)
    assert outcome.attempts > WORKERS
