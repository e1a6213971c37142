"""Many threads that check out one of a few connections for a short query: fairness, waits and CPU."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.peers import MAKERS, Peer, Setup, warm
from benchmarks.row import OURS, PEERS, PSYCOPG, QUEUEPOOL, Column, Round, Row, Sample, Target, ratio, to_best, value

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = 5
WARM_UP = 0.4
WINDOW = 2.0
HOLD = "select pg_sleep(0.0005)"

Times = list[tuple[float, float]]
"""The times of the request and of the hand-over of each checkout."""


THE_BEST_IS_UNFAIR = (
    "The fastest of the other pools is unfair: in DBUtils and QueuePool, the running thread acquires the connection "
    "that it has just released. This saves the switch of threads that each fair hand-over needs."
)
WHAT_IS_LEFT = (
    "Nearly all of the CPU is used by the switch from the releasing thread to the waiter, and by the driver: with "
    "5 threads on 5 connections, and so without waiters, the same query and commit use 88 us. psycopg_pool was "
    "measured with psycopg's C implementation."
)


@dataclass
class Run:
    """One run of threads that check out again and again; only the time between ``opens`` and ``closes`` counts."""

    opens: float = 0.0
    closes: float = 0.0
    cpu: float = 0.0
    over: bool = False

    def watch(self, warm_up: float, window: float) -> None:
        """Begin to count after the warm-up, stop to count after the window, and end the run."""
        time.sleep(warm_up)
        self.opens, cpu = time.perf_counter(), time.process_time()
        time.sleep(window)
        self.closes, self.cpu = time.perf_counter(), time.process_time() - cpu
        self.over = True

    def served(self, times: Times) -> int:
        """Return the number of hand-overs in the window."""
        return sum(self.opens <= handed <= self.closes for _, handed in times)

    def waits(self, times: Times) -> list[float]:
        """Return the waits in ms that overlap with the window."""
        return [(handed - asked) * 1e3 for asked, handed in times if asked <= self.closes and handed >= self.opens]


def hold(connection: Any) -> None:
    """Run a short query on the connection."""
    with connection.cursor() as cursor:
        cursor.execute(HOLD)


def check_out_until_over(peer: Peer, run: Run) -> Times:
    """Check out again and again, in one thread, until the run is over."""
    times: Times = []
    while not run.over:
        asked = time.perf_counter()
        with peer.connection() as connection:
            times.append((asked, time.perf_counter()))
            hold(connection)
    return times


def contend(peer: Peer, threads: int, warm_up: float = WARM_UP, window: float = WINDOW) -> Sample:
    """Let ``threads`` compete for the connections of a pool."""
    run = Run()
    with ThreadPoolExecutor(threads) as executor:
        futures = [executor.submit(check_out_until_over, peer, run) for _ in range(threads)]
        run.watch(warm_up, window)
        by_thread = [future.result() for future in futures]
    served = [run.served(times) for times in by_thread]
    waits = [wait for times in by_thread for wait in run.waits(times)]
    return {
        "rate": sum(served) / (run.closes - run.opens),
        "p50": median(waits),
        "p99": quantiles(waits, n=100, method="inclusive")[-1],
        "max": max(waits),
        "idlest": min(served),
        "busiest": max(served),
        "unfairness": max(served) / max(1, min(served)),
        "cpu": run.cpu / max(1, sum(served)) * 1e6,
    }


def measure(threads: int, contestants: Sequence[str], dsn: str) -> Round:
    """Measure the contestants with the same number of threads."""
    played: Round = {}
    for name in contestants:
        peer = MAKERS[name](Setup(dsn, CONNECTIONS, CONNECTIONS))
        warm(peer, CONNECTIONS)
        played[name] = contend(peer, threads)
        peer.close()
    return played


COLUMNS = (
    Column("rate", "checkouts/s"),
    Column("p50", "wait p50 ms", 1),
    Column("p99", "p99 ms", 1),
    Column("max", "max ms", 0),
    Column("idlest", "idlest thread"),
    Column("busiest", "busiest thread"),
    Column("cpu", "CPU us each"),
)


def row(threads: int, of_best: float) -> Row:
    """Return the row for a number of threads."""
    return Row(
        name=f"contention-{threads}",
        work=f"{threads} threads on {CONNECTIONS} connections, each holding for `{HOLD}`",
        contestants=(OURS, *PEERS),
        columns=COLUMNS,
        measure=functools.partial(measure, threads),
        rounds=4,
        targets=(
            Target("busiest thread against the idlest", value("unfairness", OURS), 1.1),
            Target("p99 wait against psycopg_pool's", ratio("p99", OURS, PSYCOPG), 1.0),
            Target(
                "checkouts/s against the best peer's",
                to_best("rate", OURS, PEERS),
                of_best,
                at_least=True,
                reason=THE_BEST_IS_UNFAIR,
            ),
            Target(
                "CPU for each checkout against QueuePool's", ratio("cpu", OURS, QUEUEPOOL), 0.9, reason=WHAT_IS_LEFT
            ),
            Target(
                "CPU for each checkout against psycopg_pool's", ratio("cpu", OURS, PSYCOPG), 0.6, reason=WHAT_IS_LEFT
            ),
        ),
        note=f"Counted over {WINDOW:g} s after {WARM_UP:g} s of warm-up. psycopg2's pool cannot wait, so "
        "its callers try again every millisecond. CPU is that of this process, without the server.",
    )


ROWS = (row(64, 0.95), row(256, 1.0))
