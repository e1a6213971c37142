"""The scenario of the demo: short orders, slow reports, a rush, killed backends; each problem with its real cause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from otel_pgpool.cli.database import wait_until
from otel_pgpool.cli.shop import UNAVAILABLE
from otel_pgpool.cli.workers import Scene

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from otel_pgpool import ConnectionPool
    from otel_pgpool.cli.database import Database
    from otel_pgpool.cli.shop import Shop
    from otel_pgpool.cli.workers import Errand, Workers

DAY = 20.0
"""Maximum duration of a day in seconds; a longer run has several days."""
SETTLED = 0.1
"""Seconds after which an idle connection is checked before use, as it is not fresh any more."""
GONE = 1.0
"""Maximum wait in seconds for the end of killed sessions."""
PATIENCE = 5.0
"""Maximum wait in seconds for each of the other steps."""


class Story:
    """The scenario: one or several days of work, which take ``seconds`` together.

    Each step waits for the event that it needs, so that a day takes at least about 3 s.
    """

    def __init__(
        self,
        seconds: float,
        *,
        pool: ConnectionPool,
        database: Database,
        shop: Shop,
        workers: Workers,
        closing: threading.Event,
        tell: Callable[[str], None],
        long_hold: float,
    ) -> None:
        self._days = max(1, round(seconds / DAY))
        self._day = seconds / self._days
        self._pool = pool
        self._database = database
        self._workers = workers
        self._shop = shop
        self._closing = closing
        self._tell = tell
        self._long = max(1.2 * long_hold, 0.11 * self._day)
        self._orders = Scene((shop.browse, shop.browse, shop.order, shop.order, shop.order_status), (0.02, 0.12))
        self._rush = Scene((shop.till,), (0.05, 0.15))

    def play(self) -> None:
        """Play all days."""
        for _ in range(self._days):
            self._play_day()

    def _play_day(self) -> None:
        began = time.monotonic()
        self._scene("short orders", self._orders)
        self._until(began, 0.18)
        self._tell("a report with a slow query")
        self._send(self._report_turnover)
        self._until(began, 0.36)
        reports = self._have_a_rush()
        self._until(began, 0.62)
        self._scene("short orders, while the reports go on", self._orders)
        for report in reports:
            report.done.wait(self._long + PATIENCE)
        self._until(began, 0.72)
        self._kill_idle()
        self._until(began, 0.80)
        self._kill_in_use()
        self._until(began, 0.88)
        self._forget_and_fail()
        self._until(began, 1.0)

    def _have_a_rush(self) -> list[Errand]:
        """Let more customers come than there are connections; two reports are requested meanwhile, and queue."""
        self._scene("rush: everyone at the till", self._rush)
        self._pause(0.2)
        reports = [self._send(self._report_stock)]
        self._pause(0.1)
        reports.append(self._send(self._report_turnover))
        return reports

    def _kill_idle(self) -> None:
        """Pause the work, and end the sessions of all idle connections meanwhile."""
        self._scene("quiet", Scene())
        wait_until(lambda: not self._pool.stats().used, PATIENCE)
        self._pause(SETTLED)
        killed = self._database.kill_idle()
        wait_until(lambda: not self._database.sessions(), GONE)
        self._pause(SETTLED)
        self._scene(f"{killed} idle backends killed; orders go on", self._orders)

    def _kill_in_use(self) -> None:
        """End the session of a forecast in the middle of its query."""
        errand = self._send(self._shop.forecast)
        if wait_until(lambda: self._pid_of(errand) is not None, PATIENCE):
            self._pause(SETTLED)
            pid = self._pid_of(errand)
            if pid is not None:
                self._tell("a backend killed in the middle of a query")
                self._database.kill(pid)
        errand.done.wait(PATIENCE)

    def _forget_and_fail(self) -> None:
        self._tell("a connection forgotten, a commit refused")
        before = self._reclaimed()
        for errand in (self._send(self._shop.export), self._send(self._shop.order_of_deleted_customer)):
            errand.done.wait(PATIENCE)
        wait_until(lambda: self._reclaimed() > before, PATIENCE)

    def _reclaimed(self) -> int:
        return self._pool.stats().discarded.get("reclaimed", 0)

    def _pid_of(self, errand: Errand) -> int | None:
        """Return the process id of the backend that serves an errand, once there is one."""
        if not errand.thread:
            return None
        return next((holder.pid for holder in self._pool.holders() if holder.thread == errand.thread), None)

    def _report_turnover(self) -> int:
        return self._shop.turnover_report(self._long)

    def _report_stock(self) -> int:
        return self._shop.stock_report(1.2 * self._long)

    def _send(self, job: Callable[[], int]) -> Errand:
        """Have a job done by a worker, repeatedly as long as there is no connection."""

        def insist() -> None:
            while job() == UNAVAILABLE and not self._closing.wait(SETTLED):
                pass

        return self._workers.send(insist)

    def _scene(self, title: str, scene: Scene) -> None:
        self._workers.scene = scene
        self._tell(title)

    def _until(self, began: float, part: float) -> None:
        """Wait until a fraction of the day has passed."""
        self._pause(began + part * self._day - time.monotonic())

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._closing.wait(seconds)
