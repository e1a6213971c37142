"""When this process stood still."""

from __future__ import annotations

from time import monotonic

from tests.chaos.lookout import Lookout

EVERY = 0.01
"""Seconds between two looks at the clock; to be so late again is a stall."""


class Stalls(Lookout):
    """A thread that does nothing notes when it came late: nobody else can have been faster then.

    Times are readings of the monotonic clock.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stalls: list[tuple[float, float]] = []  # when each began and ended

    @property
    def longest(self) -> float:
        """Seconds, of the worst."""
        return max((ended - began for began, ended in self._stalls), default=0.0)

    def within(self, began: float, ended: float) -> float:
        """Seconds of the interval that lay in a stall."""
        return sum(max(0.0, min(ended, up) - max(began, since)) for since, up in self._stalls)

    def _look_on(self) -> None:
        due = monotonic() + EVERY
        while not self._over.wait(EVERY):
            now = monotonic()
            if now - due > EVERY:
                self._stalls.append((due, now))
            due = monotonic() + EVERY
