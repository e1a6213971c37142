"""The scenario of the demo, and the workers that run it: orders, reports, a rush, a lock conflict, killed backends."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.demo.shop import UNAVAILABLE, Shop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_pgpool import ConnectionPool
    from otel_pgpool.demo.database import Database

MIN_REPORT = 1.2
"""Minimum duration of a report in seconds, which makes a long hold."""
ENDLESS = 20.0
"""Seconds that a report would take if its session were not killed."""
CONFLICT = 1.5
"""Duration of the lock conflict, in durations of a report: so long that it is among the slowest checkouts."""
MIN_CONFLICT = 2.5
"""Minimum duration of the lock conflict in seconds. A hold is long after 1 s, and the server is asked once a second."""
MAX_DAY = 20.0
"""Maximum duration of a day in seconds; a longer run has several days."""
CHECKED_AFTER = 0.1
"""Seconds after which an idle connection is checked before use."""
SESSION_END_TIMEOUT = 1.0
"""Maximum wait in seconds for the end of killed sessions."""
STEP_TIMEOUT = 5.0
"""Maximum wait in seconds for each of the other steps."""
IDLE_PAUSE = 0.02
"""Pause in seconds of a worker that has nothing to do."""


class Workload(NamedTuple):
    """The jobs among which the workers choose at random, and the shortest and longest pause after each, in seconds."""

    jobs: Sequence[Callable[[], object]] = ()
    pause: tuple[float, float] = (IDLE_PAUSE, IDLE_PAUSE)


class Workers:
    """Threads that run the jobs of the present workload, until ``closing`` is set, and threads for single jobs."""

    def __init__(self, count: int, closing: threading.Event) -> None:
        self.workload = Workload()
        self.failures: list[BaseException] = []
        """Exceptions of the jobs: none, unless the demo itself has a fault."""
        self._count = count
        self._closing = closing
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads of the workload."""
        for _ in range(self._count):
            self.submit(self._work)

    def submit(self, job: Callable[[], object]) -> threading.Thread:
        """Run a job in a thread of its own, and return the thread."""
        name = f"worker-{len(self._threads) + 1:02}"
        thread = threading.Thread(target=self._run, args=(job,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, timeout: float) -> None:
        """Wait for all workers to end their requests, for at most ``timeout`` seconds."""
        wait_until(lambda: not any(thread.is_alive() for thread in self._threads), timeout)

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - stored, and printed at the end
            self.failures.append(error)

    def _work(self) -> None:
        while not self._closing.is_set():
            jobs, pause = self.workload
            if jobs:
                self._run(random.choice(jobs))  # nosec B311 # chance, no secret
            self._closing.wait(random.uniform(*pause))  # nosec B311 # chance, no secret


class Scenario:
    """One or several days of work, which take ``seconds`` together; each problem in them has a real cause.

    Each step waits for the event that it needs, so that a day takes at least about 4 s.
    """

    def __init__(
        self, seconds: float, pool: ConnectionPool, database: Database, workers: int, show_step: Callable[[str], None]
    ) -> None:
        self._days = max(1, round(seconds / MAX_DAY))
        self._day = seconds / self._days
        self._pool = pool
        self._database = database
        self.closing = threading.Event()
        """Set when the shop closes."""
        self.workers = Workers(workers, self.closing)
        self._shop = shop = Shop(pool, self.closing)
        self._show_step = show_step
        self._report_time = max(MIN_REPORT, 0.11 * self._day)
        self._conflict_time = max(MIN_CONFLICT, CONFLICT * self._report_time)
        self._orders = Workload((shop.browse, shop.browse, shop.order, shop.order, shop.order_status), (0.02, 0.12))
        self._rush = Workload((shop.till,), (0.05, 0.15))

    def run(self) -> None:
        """Run all days."""
        self.workers.start()
        for _ in range(self._days):
            self._run_day()
        self._show_step("closing")

    def close(self, timeout: float) -> None:
        """Let the workers end their requests, for at most ``timeout`` seconds."""
        self.closing.set()
        self.workers.join(timeout)

    def _run_day(self) -> None:
        began = time.monotonic()

        def wait_for(fraction: float) -> None:
            """Wait until a fraction of the day has passed."""
            self._pause(began + fraction * self._day - time.monotonic())

        self._set_workload("short orders", self._orders)
        wait_for(0.18)
        self._show_step("a report with a slow query")
        self._submit(lambda: self._shop.turnover_report(self._report_time))
        wait_for(0.36)
        reports = self._start_rush()
        wait_for(0.62)
        self._set_workload("short orders, while the reports go on", self._orders)
        for report in reports:
            report.join(self._report_time + STEP_TIMEOUT)
        wait_for(0.72)
        self._kill_idle()
        wait_for(0.76)
        conflict = self._start_lock_conflict()
        wait_for(0.82)
        self._kill_in_use()
        wait_for(0.89)
        self._drop_connection_and_fail_commit()
        for request in conflict:
            request.join(self._conflict_time + STEP_TIMEOUT)
        wait_for(1.0)

    def _start_rush(self) -> list[threading.Thread]:
        """Let more customers come than there are connections; two reports requested meanwhile have to queue."""
        self._set_workload("rush: everyone at the till", self._rush)
        self._pause(0.2)
        stock = self._submit(lambda: self._shop.stock_report(1.2 * self._report_time))
        self._pause(0.1)
        return [stock, self._submit(lambda: self._shop.turnover_report(self._report_time))]

    def _kill_idle(self) -> None:
        """Pause the work, and end the sessions of all idle connections meanwhile, as a failover would."""
        self._set_workload("quiet", Workload())
        wait_until(lambda: not self._pool.stats().used, STEP_TIMEOUT)
        self._pause(CHECKED_AFTER)
        killed = self._database.kill(state="idle")
        wait_until(lambda: not self._database.count_sessions(), SESSION_END_TIMEOUT)
        self._pause(CHECKED_AFTER)
        self._set_workload(f"{killed} idle backends killed; orders go on", self._orders)

    def _start_lock_conflict(self) -> list[threading.Thread]:
        """Let two requests need the same row: one locks it for long, the other waits for it in the database."""
        self._show_step("an order is paid slowly, and changed meanwhile")
        locked = threading.Event()
        payment = self._submit(lambda: self._shop.slow_payment(self._conflict_time, locked))
        locked.wait(STEP_TIMEOUT)
        return [payment, self._submit(self._shop.change_order)]

    def _kill_in_use(self) -> None:
        """End the session of a report in the middle of its query."""
        report = self._submit(lambda: self._shop.turnover_report(ENDLESS))
        self._show_step("a backend killed in the middle of a query")
        wait_until(lambda: self._database.kill(state="active", query="%pg_sleep%"), STEP_TIMEOUT)
        report.join(STEP_TIMEOUT)

    def _drop_connection_and_fail_commit(self) -> None:
        self._show_step("a connection dropped, a commit refused")
        before = self._count_reclaimed()
        for request in (self._shop.export, self._shop.order_of_deleted_customer):
            self._submit(request).join(STEP_TIMEOUT)
        wait_until(lambda: self._count_reclaimed() > before, STEP_TIMEOUT)

    def _count_reclaimed(self) -> int:
        return self._pool.stats().discarded.get("reclaimed", 0)

    def _submit(self, request: Callable[[], int]) -> threading.Thread:
        """Let a worker make a request, repeatedly as long as there is no connection."""

        def retry() -> None:
            while request() == UNAVAILABLE and not self.closing.wait(CHECKED_AFTER):
                pass

        return self.workers.submit(retry)

    def _set_workload(self, title: str, workload: Workload) -> None:
        self.workers.workload = workload
        self._show_step(title)

    def _pause(self, seconds: float) -> None:
        self.closing.wait(max(0.0, seconds))


def wait_until(condition: Callable[[], object], timeout: float) -> None:
    """Wait for ``condition()`` to become true, for at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(IDLE_PAUSE)
