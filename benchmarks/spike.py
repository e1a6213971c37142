"""Fifty callers at once while connects are slow: does the pool open connections that it does not need?"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

from benchmarks.delay import Delay
from benchmarks.peers import MAKERS, Peer, Setup, warm
from benchmarks.row import OURS, PSYCOPG, QUEUEPOOL, Column, Round, Row, Target, value

if TYPE_CHECKING:
    from collections.abc import Sequence

CALLERS = 50
HOLD = 0.002
WARM = 5
MAXCONN = 50
CONNECT = 0.150


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """Open some connections, delay further connects, and let all callers check out at once."""
    played: Round = {}
    for name in contestants:
        delay = Delay()
        peer = MAKERS[name](Setup(dsn, WARM, MAXCONN, delay=delay))
        warm(peer, WARM)
        time.sleep(0.1)
        delay.seconds, before = CONNECT, delay.connects
        took = rush(peer)
        time.sleep(2 * CONNECT)  # connects that begin later count too
        played[name] = {"ms": took * 1e3, "new": delay.connects - before}
        peer.close()
    return played


def rush(peer: Peer) -> float:
    """Return the seconds from the start of all callers to the end of the last one."""
    began = []
    start = Barrier(CALLERS, action=lambda: began.append(time.perf_counter()))

    def call() -> float:
        start.wait()
        with peer.connection():
            time.sleep(HOLD)
        return time.perf_counter()

    with ThreadPoolExecutor(CALLERS) as executor:
        ends = [future.result() for future in [executor.submit(call) for _ in range(CALLERS)]]
    return max(ends) - began[0]


ROWS = (
    Row(
        name="spike",
        work=f"{CALLERS} callers at once, {HOLD * 1e3:g} ms hold, {WARM} warm of at most {MAXCONN}, "
        f"every new connect delayed {CONNECT * 1e3:g} ms",
        contestants=(OURS, PSYCOPG, QUEUEPOOL),
        columns=(Column("ms", "all done, ms", 1), Column("new", "new connections")),
        measure=measure,
        targets=(
            Target("all done", value("ms", OURS), 40, unit="ms"),
            Target("new connections, in every round", value("new", OURS), 3, worst=True, unit=""),
        ),
        note="The delay is a sleep before the driver connects: in a `connection_factory` of psycopg2, "
        "and in a `connection_class` of psycopg_pool. A connect that was begun counts as new.",
    ),
)
