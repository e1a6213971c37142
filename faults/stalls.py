"""When this process stood still."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

EVERY = 0.01
"""Seconds between two looks at the clock; to be so late again is a stall."""


class Stalls:
    """A thread that does nothing notes when it came late: nobody else can have been faster then.

    Times are readings of the monotonic clock.
    """

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []  # when each began and ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        """Seconds, of the worst."""
        return max((ended - began for began, ended in self._stalls), default=0.0)

    def within(self, began: float, ended: float) -> float:
        """Seconds of the interval that lay in a stall."""
        return sum(max(0.0, min(ended, up) - max(began, since)) for since, up in self._stalls)

    def _run(self) -> None:
        due = monotonic() + EVERY
        while not self._over.wait(EVERY):
            now = monotonic()
            if now - due > EVERY:
                self._stalls.append((due, now))
            due = monotonic() + EVERY
