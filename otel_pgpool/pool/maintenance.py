"""The maintenance of a pool: long holds, dropped connections, idle and aged connections, utilization."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from otel_pgpool.driver.connect_cause import ConnectCause, cause_of
from otel_pgpool.driver.monitor_connection import MonitorSource
from otel_pgpool.pool import monitors
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.core import State
from otel_pgpool.pool.monitor_source import MonitoredPool
from otel_pgpool.pool.shared_threads import end_shared_threads
from otel_pgpool.pool.utilization import SAMPLE_INTERVAL, UtilizationAlarm
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    import weakref

    from psycopg2.extensions import connection

    from otel_pgpool.pool.connect import Connectors
    from otel_pgpool.pool.discard import Discarder
    from otel_pgpool.pool.keepalive import Keepalive
    from otel_pgpool.pool.release import Releaser

MIN_PAUSE = 0.01
"""Minimum number of seconds between two passes."""

RECLAIM_AFTER = 0.05
"""Seconds between the first sight of a dropped connection and its reclaim."""


class Maintenance(Part):
    """The passes of a pool's maintenance, made by a `ParkingThread`.

    While connections are checked out a pass also samples the utilization, every `SAMPLE_INTERVAL` seconds. After a
    `SAMPLE_INTERVAL` without a checkout the thread parks.
    """

    def __init__(
        self, common: Common, discarder: Discarder, releaser: Releaser, connectors: Connectors, keepalive: Keepalive
    ) -> None:
        super().__init__(common)
        self._discarder = discarder
        self._releaser = releaser
        self._connectors = connectors
        self._keepalive = keepalive
        self._source = MonitorSource(common.target)
        self._alarm = UtilizationAlarm(monotonic())
        self._handed_out = 0  # number of checkouts at the last pass
        self._dropped: list[weakref.ref[connection]] = []  # dropped since the last pass

    def run_once(self) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread."""
        core = self._core
        now = monotonic()
        self._releaser.complete_deferred()
        self._reclaim(now)
        for reason, slots in core.evict_expired(now, self._durations.max_idle).items():
            self._discarder.discard(slots, reason)
        self._connectors.abandon_overdue(now)
        self._connectors.start_if_needed()
        self._report(now)
        if core.outage is not None and cause_of(core.outage.error) is ConnectCause.FULL:
            monitors.stay_away(core.name)
        until_ping = self._keepalive.start_if_due(now)
        parked = self._is_quiet() and self._alarm.is_settled and core.park()
        if core.state is State.CLOSED and not core.used:
            end_shared_threads()
            return None
        seconds = min(until_ping, max(0.0, core.next_deadline(self._durations.max_idle) - monotonic()))
        if self._dropped:
            return RECLAIM_AFTER
        # A hold that begins after this pass cannot be long before another `long_hold` has passed.
        return seconds if parked else min(seconds, SAMPLE_INTERVAL, max(core.long_hold, MIN_PAUSE))

    def _is_quiet(self) -> bool:
        """Return whether there was no checkout since the last pass."""
        before, self._handed_out = self._handed_out, sum(self._core.checkouts().values())
        return self._handed_out == before

    def _reclaim(self, now: float) -> None:
        """Reclaim connections dropped before the last pass.

        The delay is for generators: one that is being collected may release its connection right after the drop.
        """
        dropped, self._dropped = self._dropped, list(self._connectors.dropped.drain())
        observer = self._notifier.observer
        for checkout in self._core.reclaim(dropped, now):
            checkout.released = now
            checkout.outcome = Outcome.RECLAIMED.value
            self._connectors.start_if_needed()
            if observer is not None:
                self._notifier.notify(observer.reclaimed, checkout)
        self._discarder.discard(self._core.collect_orphans(now), DiscardReason.RECLAIMED)

    def _report(self, now: float) -> None:
        """Notify the observer of long holds, and of a change of the utilization."""
        overdue = self._core.flag_long_holds(now)
        observer = self._notifier.observer
        if observer is None:
            return
        for checkout in overdue:
            self._notifier.notify(observer.held_long, checkout)
        report = getattr(observer, "database_state", None)  # a `DatabaseObserver` has it
        if overdue and report is not None and self._config.is_monitored:
            pool = MonitoredPool(self._core.name, self._source, partial(self._notifier.notify, report))
            self._notifier.notify(monitors.watch, pool, overdue)
        change = self._alarm.sample(now, self._core.stats)
        if change is not None:
            self._notifier.notify(observer.utilization_changed, *change)
