"""More threads than ``minconn``: does the pool open and close connections again and again, or keep them?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.contention import HOLD, contend
from benchmarks.peers import MAKERS, Setup
from benchmarks.row import OURS, PSYCOPG, PSYCOPG2, Column, Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

THREADS = 8
MAXCONN = 10
SETUPS = {
    f"{pool}, {minconn} of {MAXCONN}": (pool, minconn)
    for pool, minconn in ((OURS, 1), (OURS, 10), (PSYCOPG2, 1), (PSYCOPG2, 10), (PSYCOPG, 1))
}


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """Let threads compete for the connections of each pool."""
    played: Round = {}
    for name in contestants:
        pool, minconn = SETUPS[name]
        peer = MAKERS[pool](Setup(dsn, minconn, MAXCONN))
        played[name] = contend(peer, THREADS, warm_up=0.3, window=1.0)
        peer.close()
    return played


ROWS = (
    Row(
        name="churn",
        work=f"{THREADS} threads, minconn 1 of {MAXCONN}, each holding for `{HOLD}`",
        contestants=tuple(SETUPS),
        columns=(Column("rate", "checkouts/s"), Column("p99", "wait p99 ms", 1), Column("cpu", "CPU us each")),
        measure=measure,
        rounds=5,
        targets=(
            Target(
                f"checkouts/s against {OURS} with minconn {MAXCONN} of {MAXCONN}",
                ratio("rate", f"{OURS}, 1 of {MAXCONN}", f"{OURS}, 10 of {MAXCONN}"),
                0.95,
                at_least=True,
            ),
        ),
    ),
)
