"""The cost of one collection of the metrics, by the number of pools in the process."""
# ruff: noqa: PLC0415 - the SDK is loaded only in the process that measures it

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.row import Column, Round, Row, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

COLLECTIONS = 9
COUNTS = {"1 pool": 1, "100 pools": 100, "1,000 pools": 1_000}
ONE_CLOSED, ALL_CLOSED, NEVER_SEEN = "1 closed", "1,000 closed", "1,000 closed before the first collection"
CLOSED = {ONE_CLOSED: 1, ALL_CLOSED: 1_000, NEVER_SEEN: 1_000}


def measure(contestants: Sequence[str], _dsn: str) -> Round:
    """Measure a collection with as many pools as the contestant's name says; they never connect."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from otel_pgpool.telemetry import metrics as ours

    [name] = contestants
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    pools = make_pools(COUNTS.get(name) or CLOSED[name])
    if name != NEVER_SEEN:
        verify(reader, len(pools))
    if name in CLOSED:
        for pool in pools:
            pool.close()
        ours.KEPT_AFTER_THE_END = 0.0  # the end is exported once, by the collection that verifies it
        verify(reader, 0)
    took = collect(reader)
    return {name: {"ms": took * 1e3, "us_each": took / len(pools) * 1e6}}


def make_pools(count: int) -> list[Any]:
    """Create open pools without a connection."""
    from otel_pgpool import ConnectionPool

    return [ConnectionPool(0, 5, "host=localhost dbname=shop", name=f"shop-{number}") for number in range(count)]


def verify(reader: Any, pools: int) -> None:
    """Raise an error unless exactly this number of pools reports."""
    data = reader.get_metrics_data()
    reported = [
        point
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "db.client.connection.max"
        for point in metric.data.data_points
    ]
    if len(reported) != pools:
        message = f"{len(reported)} pools report, not {pools}"
        raise RuntimeError(message)


def collect(reader: Any) -> float:
    """Return the seconds of one collection, the median of several."""
    took = []
    for _ in range(COLLECTIONS):
        gc.collect()
        began = time.perf_counter()
        reader.get_metrics_data()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _linear(played: Round) -> float:
    return played["1,000 pools"]["us_each"] / played["100 pools"]["us_each"]


def _closed(name: str) -> Any:
    """Return the function that computes the cost of closed pools, in percent of the cost of open ones."""
    return lambda played: 100 * max(0.0, played[name]["ms"] - played[ONE_CLOSED]["ms"]) / played["1,000 pools"]["ms"]


ROWS = (
    Row(
        name="collection",
        work="one collection with 1, 100 and 1,000 pools",
        contestants=(*COUNTS, *CLOSED),
        columns=(Column("ms", "ms", 3), Column("us_each", "us for each pool", 2)),
        measure=measure,
        rounds=3,
        targets=(
            Target("cost for each pool, 1,000 against 100", _linear, 1.5),
            Target(
                "1,000 closed pools, of the cost of 1,000 open",
                _closed(ALL_CLOSED),
                1,
                unit="%",
                reason="At each collection, the SDK iterates over every series that it keeps. It keeps those of the "
                "hundred pools that ended last, so that a new pool with one of their names continues their totals.",
            ),
            Target("the same, closed before the first collection", _closed(NEVER_SEEN), 1, unit="%"),
        ),
        note="Measured with an `InMemoryMetricReader`. The pools have no connections. The closed pools have been "
        "collected before their close, unless their line says otherwise, and once after it.",
    ),
)
