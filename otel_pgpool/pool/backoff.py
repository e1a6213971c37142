"""The delays between failed attempts to connect: exponential, with full jitter."""

from __future__ import annotations

import random

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Maximum delays in seconds: after the first failed attempt, and after many. Each attempt doubles the maximum."""

MOST_DOUBLINGS = 16


def delay_after(attempt: int) -> float:
    """Return a random delay in seconds after the given number of failed attempts.

    The jitter is "full": between 0 and the maximum, so that the pools of a fleet do not connect at the same moment.
    """
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, MOST_DOUBLINGS))
    return random.uniform(0, longest)  # nosec B311 # noqa: S311 - jitter
