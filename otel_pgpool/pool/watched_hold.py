"""A long hold that a monitor watches: when its state is reported, and when the hold is over."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import MonitoredPool

MIN_AGE = 0.02
"""Minimum age of a hold in seconds at its second report, however short its threshold is."""


class WatchedHold:
    """A long hold that is in progress."""

    __slots__ = ("checkout", "due_age", "pool")

    def __init__(self, pool: MonitoredPool, checkout: Checkout) -> None:
        self.pool = pool
        self.checkout = checkout
        self.due_age = max(0.0, checkout.flagged_at - checkout.acquired)
        """Age in seconds at which the state of the hold is reported next."""

    @property
    def is_over(self) -> bool:
        """Whether the connection was released, or dropped by a program that has dropped the pool too."""
        ref: object = self.checkout.slot.ref  # a function if the connection allows no weak references
        return not self.checkout.is_held or (isinstance(ref, weakref.ref) and ref() is None)

    @property
    def due(self) -> float:
        """When the state is reported next, as a reading of the clock."""
        return self.checkout.acquired + self.due_age

    def postpone(self, now: float) -> None:
        """Postpone the next report until the hold's age has doubled."""
        age = now - self.checkout.acquired
        self.due_age = max(2 * self.due_age, age, MIN_AGE)
        while self.due_age <= age:
            self.due_age *= 2
