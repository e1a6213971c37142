"""The maintenance of a pool: long holds, dropped connections, idle and aged connections, utilization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.pool.release import settle
from otel_pgpool.pool.utilization import TICK, Level
from otel_pgpool.runtime.background import Watcher
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    import weakref

    from psycopg2.extensions import connection

    from otel_pgpool.pool.connection_pool import ConnectionPool
    from otel_pgpool.pool.core import Core

LEAST_TICK = 0.01

RECLAIM_AFTER = 0.05
"""Seconds between the first sight of a dropped connection and its reclaim."""


class Maintenance(Watcher["ConnectionPool"]):
    """The maintenance thread of a pool.

    The thread sleeps until the next deadline. While connections are checked out it also samples the utilization every
    `TICK` seconds. After a `TICK` without a checkout it parks: the next checkout wakes it, which costs that checkout
    some 100 us.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(pool, pool._wakeup, "otel_pgpool-maintenance")
        self._level = Level(monotonic())
        self._served = 0  # number of checkouts at the last pass
        self._dropped: list[weakref.ref[connection]] = []  # dropped since the last pass

    def _look(self, pool: ConnectionPool) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread."""
        core = pool._core
        now = monotonic()
        self._settle(pool)
        self._reclaim(pool, now)
        for reason, slots in core.retire(now, pool._config.max_idle).items():
            pool._discard(slots, reason)
        pool._connectors.give_up_overdue(now)
        pool._connectors.kick()
        self._report(pool, now)
        parked = self._is_quiet(core) and self._level.settled and core.park()
        if pool.closed and not core.used:
            return None
        seconds = max(0.0, core.next_deadline(pool._config.max_idle) - monotonic())
        if self._dropped:
            return RECLAIM_AFTER
        # A hold that begins after this pass cannot be long before another `long_hold` has passed.
        return seconds if parked else min(seconds, TICK, max(core.long_hold, LEAST_TICK))

    def _is_quiet(self, core: Core) -> bool:
        """Return whether there was no checkout since the last pass."""
        before, self._served = self._served, sum(core.checkouts().values())
        return self._served == before

    def _settle(self, pool: ConnectionPool) -> None:
        """Complete the returns that happened inside the garbage collector."""
        while pool._deferred:
            checkout, conn, close = pool._deferred.popleft()
            settle(pool, checkout, conn, None, close=close)

    def _reclaim(self, pool: ConnectionPool, now: float) -> None:
        """Reclaim connections dropped before the last pass.

        The delay is for generators: one that is being collected may return its connection right after dropping it.
        """
        dropped, self._dropped = self._dropped, pool._dropped.drain()
        for checkout in pool._core.reclaim(dropped, now):
            checkout.released = now
            checkout.outcome = "reclaimed"
            pool._connectors.kick()
            if pool._observer is not None:
                pool._tell(pool._observer.reclaimed, checkout)
        pool._discard(pool._core.recover(now), "reclaimed")

    def _report(self, pool: ConnectionPool, now: float) -> None:
        overdue = pool._core.flag_long_holds(now)
        observer = pool._observer
        if observer is None:
            return
        for checkout in overdue:
            pool._tell(observer.held_long, checkout)
        change = self._level.look(now, pool.stats)
        if change is not None:
            pool._tell(observer.utilization_changed, *change)
