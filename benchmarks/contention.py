"""Many threads on few connections, each holding one for a short query: who is served, how soon, at what cost."""

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
"""When a connection was asked for, and when it was handed over."""


THE_BEST_IS_UNFAIR = (
    "The best peer is an unfair one: DBUtils and QueuePool let the running thread take the connection "
    "that it has just given back, which saves the switch of threads that each fair hand-off is made of."
)
WHAT_IS_LEFT = (
    "Nearly all of it is the switch from the returning thread to the waiting one and the driver's own "
    "work: the same query and commit by 5 threads on 5 connections, nobody waiting, already cost 88 us. "
    "psycopg_pool runs here on psycopg's C build."
)


@dataclass
class Run:
    """Threads borrow until it is over; what counts is what happened in the window."""

    opens: float = 0.0
    closes: float = 0.0
    cpu: float = 0.0
    over: bool = False

    def watch(self, warm_up: float, window: float) -> None:
        """Open the window after the warm-up, close it, and end the run."""
        time.sleep(warm_up)
        self.opens, cpu = time.perf_counter(), time.process_time()
        time.sleep(window)
        self.closes, self.cpu = time.perf_counter(), time.process_time() - cpu
        self.over = True

    def served(self, times: Times) -> int:
        """Checkouts handed over in the window."""
        return sum(self.opens <= handed <= self.closes for _, handed in times)

    def waits(self, times: Times) -> list[float]:
        """Waits in ms that were going on in the window, those that it cut short included."""
        return [(handed - asked) * 1e3 for asked, handed in times if asked <= self.closes and handed >= self.opens]


def hold(connection: Any) -> None:
    """Keep the connection busy for a moment."""
    with connection.cursor() as cursor:
        cursor.execute(HOLD)


def borrow(peer: Peer, run: Run) -> Times:
    """One thread's work."""
    times: Times = []
    while not run.over:
        asked = time.perf_counter()
        with peer.connection() as connection:
            times.append((asked, time.perf_counter()))
            hold(connection)
    return times


def contend(peer: Peer, threads: int, warm_up: float = WARM_UP, window: float = WINDOW) -> Sample:
    """Let ``threads`` compete for what the peer has."""
    run = Run()
    with ThreadPoolExecutor(threads) as executor:
        futures = [executor.submit(borrow, peer, run) for _ in range(threads)]
        run.watch(warm_up, window)
        taken = [future.result() for future in futures]
    served = [run.served(times) for times in taken]
    waits = [wait for times in taken for wait in run.waits(times)]
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
    """Let the contestants meet the same crowd."""
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
    """The row for so many threads."""
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
        note=f"Counted over {WINDOW:g} s after {WARM_UP:g} s of warm-up. The stock pool cannot wait: "
        "its callers ask again each millisecond. CPU is this process's, the server's left out.",
    )


ROWS = (row(64, 0.95), row(256, 1.0))
