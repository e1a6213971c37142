"""How full a pool is: utilization as a level that changes only when it stays changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool._observer import CRITICAL_UTILIZATION, HIGH_UTILIZATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool._observer import PoolStats

TICK = 0.5
"""Seconds between two looks at the utilization while a connection is out."""

HYSTERESIS = 0.10
"""How far utilization must fall below a threshold before it counts as left."""


class Level:
    """The utilization's level, which changes when two looks running agree, so that a pool of one does not flap."""

    NAMES = ("normal", "high", "critical")

    def __init__(self, now: float = 0.0) -> None:
        self._level = 0
        self._seen = 0
        self._looked = now

    @property
    def settled(self) -> bool:
        """Whether utilization is, and was at the last look, normal."""
        return self._level == self._seen == 0

    def look(self, now: float, stats: Callable[[], PoolStats]) -> tuple[str, PoolStats] | None:
        """The level's new name, if it has changed, and the figures. Between two ticks it does nothing."""
        if now - self._looked < TICK:
            return None
        self._looked = now
        figures = stats()
        level = self.changed(figures.utilization)
        return None if level is None else (level, figures)

    def changed(self, utilization: float) -> str | None:
        """The level's new name, if it has changed."""
        seen, self._seen = self._seen, self._measure(utilization)
        if self._seen == seen != self._level:
            self._level = seen
            return self.NAMES[seen]
        return None

    def _measure(self, utilization: float) -> int:
        thresholds = (HIGH_UTILIZATION, CRITICAL_UTILIZATION)
        return sum(
            utilization >= threshold - (HYSTERESIS if self._level > rank else 0.0) - 1e-9
            for rank, threshold in enumerate(thresholds)
        )


def level_name(utilization: float) -> str:
    """The name of a level for `PoolStats.status`."""
    if utilization >= CRITICAL_UTILIZATION:
        return "critical"
    return "high" if utilization >= HIGH_UTILIZATION else "ok"
