"""The stress test of `make faults`, briefly: nothing is lost, and threads and descriptors are as before."""

from __future__ import annotations

import os

import pytest

from tests.chaos import stress

SECONDS = float(os.environ.get("STRESS_SECONDS", "3"))
SEED = int(os.environ["STRESS_SEED"]) if os.environ.get("STRESS_SEED") else None


@pytest.mark.timeout(SECONDS + 60)
def test_whatever_threads_do_nothing_is_lost() -> None:
    """64 threads check out, hold, raise, give up, drop, kill, drain and resize: every invariant holds all the time."""
    stressed = stress.play(SECONDS, SEED)
    assert stressed.violations == []
    for what in ("served", "committed", "timeouts", "killed", "lost"):
        assert stressed.counts[what] > 0, f"nothing was {what}"
