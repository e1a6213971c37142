"""The watch over a pool: long holds, dropped connections, idle and aged ones, utilization."""

from __future__ import annotations

import logging
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from otel_pgpool._observer import CRITICAL_UTILIZATION, HIGH_UTILIZATION

if TYPE_CHECKING:
    from otel_pgpool._core import Core
    from otel_pgpool._pool import ConnectionPool

logger = logging.getLogger("otel_pgpool")

TICK = 0.5
"""Seconds between two looks at the utilization while a connection is out."""

LEAST_TICK = 0.01

HYSTERESIS = 0.10
"""How far utilization must fall below a threshold before it counts as left."""


class Maintenance:
    """One daemon thread, started with the first thing to watch. It holds the pool weakly and ends with it.

    It sleeps until the next deadline; while connections are lent it also looks at the utilization every `TICK`. When
    nothing has been out for a `TICK` it parks: the next checkout wakes it, which costs that one some 100 us.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._wakeup = pool._wakeup
        self._pool = weakref.ref(pool, self._wakeup.ring_for)
        self._lock = threading.Lock()  # guards the start of the thread, nothing else
        self._thread: threading.Thread | None = None
        self._level = Level()
        self._measured = monotonic()  # the utilization
        self._served = 0  # checkouts, at the last look

    def wake(self) -> None:
        """Let it look now; start it if it does not run."""
        if not self._runs():
            with self._lock:
                if not self._runs():
                    thread = threading.Thread(target=self._run, name="otel_pgpool-maintenance", daemon=True)
                    thread.start()
                    self._thread = thread
        self._wakeup.ring()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, for at most ``seconds``."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, min(seconds, threading.TIMEOUT_MAX)))

    def _run(self) -> None:
        while True:
            pool = self._pool()
            if pool is None:
                return
            try:
                seconds = self._look(pool)
            except Exception:  # what it looks after must not go unwatched for one bad look
                logger.exception("pool %s: its maintenance failed, and goes on", pool.name)
                seconds = TICK
            if seconds is None:
                return
            del pool
            self._wakeup.wait(seconds)

    def _look(self, pool: ConnectionPool) -> float | None:
        """Do what is due; seconds until the next look, or None to end."""
        core = pool._core
        now = monotonic()
        self._reclaim(pool, now)
        for reason, slots in core.retire(now, pool._config.max_idle).items():
            pool._discard(slots, reason)
        self._report(pool, now)
        parked = self._is_quiet(core) and self._level.settled and core.park()
        if pool.closed and not core.used:
            return None
        seconds = max(0.0, core.next_deadline(pool._config.max_idle) - monotonic())
        # A hold that begins after this look cannot be long before another `long_hold` has passed.
        return seconds if parked else min(seconds, TICK, max(core.long_hold, LEAST_TICK))

    def _is_quiet(self, core: Core) -> bool:
        """Whether nobody has checked out since the last look."""
        before, self._served = self._served, sum(core.checkouts().values())
        return self._served == before

    def _reclaim(self, pool: ConnectionPool, now: float) -> None:
        for checkout in pool._core.reclaim(pool._dropped.drain(), now):
            checkout.released = now
            checkout.outcome = "reclaimed"
            pool._connectors.kick()
            if pool._observer is not None:
                pool._tell(pool._observer.reclaimed, checkout)
        pool._discard(pool._core.recover(now), "reclaimed")
        for slot, conn, reason in pool._core.settle_deferred():
            slot.conn = conn
            pool._discard([slot], reason)

    def _report(self, pool: ConnectionPool, now: float) -> None:
        overdue = pool._core.flag_long_holds(now)
        observer = pool._observer
        if observer is None:
            return
        for checkout in overdue:
            pool._tell(observer.held_long, checkout)
        if now - self._measured >= TICK:
            self._measured = now
            level = self._level.changed(pool.stats().utilization)
            if level is not None:
                pool._tell(observer.utilization_changed, level, pool.stats())


class Level:
    """The utilization's level, which changes when two looks running agree, so that a pool of one does not flap."""

    NAMES = ("normal", "high", "critical")

    def __init__(self) -> None:
        self._level = 0
        self._seen = 0

    @property
    def settled(self) -> bool:
        """Whether utilization is, and was at the last look, normal."""
        return self._level == self._seen == 0

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
