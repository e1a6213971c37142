"""The price of a checkout that names its session by its trace: a statement at the checkout, and one at the release."""
# ruff: noqa: PLC0415 - the package is imported only if its pool is measured

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.checkout import take_turns
from benchmarks.network import slow_network
from benchmarks.recorded import NullExporter, Recorded
from benchmarks.row import Column, Round, Row, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OFF, TRACE = "off", "trace"
OFF_RESET, TRACE_RESET = "off, reset_session", "trace, reset_session"
CONTESTANTS = (OFF, TRACE, OFF_RESET, TRACE_RESET)
NETWORK = 0.001
"""Seconds of a round trip over the slow network."""
COLUMNS = (Column("empty", "us for an empty block", 0), Column("query", "us with one statement", 0))


class Pool:
    """A pool whose checkouts are sampled."""

    def __init__(self, name: str, dsn: str) -> None:
        from otel_pgpool import ConnectionPool, reset_session
        from otel_pgpool.telemetry import Telemetry

        self.recorded = Recorded(BatchSpanProcessor(NullExporter()))
        mode, _, reset = name.partition(", ")
        with patch.dict(os.environ, OTEL_PGPOOL_APPLICATION_NAME=mode):
            self.pool = ConnectionPool(
                1,
                5,
                dsn,
                observer=Telemetry(self.recorded.tracers, self.recorded.meters),
                reset=reset_session if reset else None,
            )

    def spin(self, times: int, statement: str = "") -> None:
        pool = self.pool
        for _ in range(times):
            with pool.connection() as conn:
                if statement:
                    with conn.cursor() as cursor:
                        cursor.execute(statement)

    def close(self) -> None:
        self.pool.close()
        self.recorded.shut_down()


def measure(cycles: int, slices: int, contestants: Sequence[str], dsn: str) -> Round:
    """Measure checkouts without and with a statement."""
    pools = {name: Pool(name, dsn) for name in contestants}

    def settle(_name: str) -> None:
        for pool in pools.values():
            pool.recorded.settle()

    figures: dict[str, Round] = {}
    for metric, statement in (("empty", ""), ("query", "select 1")):
        spins: dict[str, Any] = {name: partial(pool.spin, statement=statement) for name, pool in pools.items()}
        figures[metric] = take_turns(spins, cycles, slices, settle)
    for pool in pools.values():
        pool.close()
    return {name: {metric: each[name]["us"] for metric, each in figures.items()} for name in contestants}


def measure_locally(contestants: Sequence[str], dsn: str) -> Round:
    """Measure over the local socket."""
    return measure(200, 10, contestants, dsn)


def measure_remotely(contestants: Sequence[str], dsn: str) -> Round:
    """Measure over the slow network."""
    with slow_network(dsn, NETWORK) as way:
        return measure(20, 5, contestants, way)


def added(one: str, other: str, metric: str = "query") -> Callable[[Round], float]:
    """Return a function that subtracts the time of one contestant from that of another, in the same round."""
    return lambda played: played[one][metric] - played[other][metric]


ROWS = (
    Row(
        name="application-name",
        work="one thread, sampled checkouts, `OTEL_PGPOOL_APPLICATION_NAME`",
        contestants=CONTESTANTS,
        columns=COLUMNS,
        measure=measure_locally,
        together=True,
        targets=(
            Target("added by `trace`", added(TRACE, OFF), 250, unit="us"),
            Target("added by `trace` to `reset_session`", added(TRACE_RESET, OFF_RESET), 150, unit="us"),
        ),
        note="A block with a statement takes three round trips: BEGIN, the statement, COMMIT. `reset_session` takes "
        "one more. `trace` adds one at the checkout, and one at the release unless a `reset` has restored the name.",
    ),
    Row(
        name="application-name-1ms",
        work="the same, with 1 ms of network for each round trip",
        contestants=CONTESTANTS,
        columns=COLUMNS,
        measure=measure_remotely,
        together=True,
        targets=(
            Target("added by `trace`", added(TRACE, OFF), 3000, unit="us"),
            Target("added by `trace` to `reset_session`", added(TRACE_RESET, OFF_RESET), 1500, unit="us"),
        ),
        note="The network is a process that passes data on, each way after 0.5 ms.",
    ),
)
