"""The utilization level of a pool, which changes only if the utilization stays changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.stats import CRITICAL_UTILIZATION, HIGH_UTILIZATION, PoolStats
from otel_pgpool.types import PoolStatus, UtilizationLevel

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_INTERVAL = 0.5
"""Seconds between two samples of the utilization while a connection is checked out."""

HYSTERESIS = 0.10
"""Amount by which the utilization must fall below a threshold before the level is left."""


class UtilizationAlarm:
    """The utilization level of one pool.

    The level changes when two consecutive samples agree, so that a pool with one connection does not flap.
    """

    NAMES = tuple(UtilizationLevel)

    def __init__(self, now: float = 0.0) -> None:
        self._level = 0
        self._last_seen = 0
        self._sampled_at = now

    @property
    def is_settled(self) -> bool:
        """Whether the level is normal and the last sample was normal too."""
        return self._level == self._last_seen == 0

    def sample(self, now: float, stats: Callable[[], PoolStats]) -> tuple[str, PoolStats] | None:
        """Sample the utilization, once per `SAMPLE_INTERVAL`; return a new level and the figures, or None."""
        if now - self._sampled_at < SAMPLE_INTERVAL:
            return None
        self._sampled_at = now
        figures = stats()
        level = self.update(figures.utilization)
        return None if level is None else (level, figures)

    def update(self, utilization: float) -> str | None:
        """Update the level by a sample; return the name of the new level, or None if the level has not changed."""
        before, self._last_seen = self._last_seen, self._measure(utilization)
        if self._last_seen == before != self._level:
            self._level = before
            return self.NAMES[before]
        return None

    def _measure(self, utilization: float) -> int:
        thresholds = (HIGH_UTILIZATION, CRITICAL_UTILIZATION)
        return sum(
            utilization >= threshold - (HYSTERESIS if self._level > rank else 0.0) - 1e-9
            for rank, threshold in enumerate(thresholds)
        )


def status_of(utilization: float) -> PoolStatus:
    """Return the status of an open pool whose server is reached."""
    if utilization >= CRITICAL_UTILIZATION:
        return PoolStatus.CRITICAL
    return PoolStatus.HIGH if utilization >= HIGH_UTILIZATION else PoolStatus.OK
