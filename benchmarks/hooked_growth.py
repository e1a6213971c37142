"""What the hook costs by the number of pools in the process: a checkout of each, a collection, a look of the watch."""
# ruff: noqa: PLC0415 - the SDK is loaded only in the process that measures it

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.row import Column, Round, Row, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TURNS, CHECKOUTS = 9, 1_000
COUNTS = {"1 pool": 1, "100 pools": 100, "1,000 pools": 1_000}


class Info:
    """Idle, outside any transaction."""

    transaction_status = 0
    host = "localhost"
    port = 5432


class Connection:
    """What a pool looks at: a thousand real ones are more than a server takes."""

    closed = 0
    info = Info()

    def close(self) -> None:
        self.closed = 1

    def get_backend_pid(self) -> int:
        return 1


def measure(contestants: Sequence[str], _dsn: str) -> Round:
    """So many stock pools, of which each has one connection."""
    import psycopg2
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from psycopg2.pool import ThreadedConnectionPool

    from otel_pgpool import PgPoolInstrumentor, instrumentation

    [name] = contestants
    setattr(psycopg2, "connect", lambda *_args, **_kwargs: Connection())  # noqa: B010 - of another type, to be sure
    reader = InMemoryMetricReader()
    instrumentor = PgPoolInstrumentor()
    instrumentor.instrument(meter_provider=MeterProvider([reader]), spans="always")
    pools = [ThreadedConnectionPool(1, 5, f"host=localhost dbname=shop{number}") for number in range(COUNTS[name])]
    session: Any = instrumentation._installed.session  # type: ignore[union-attr]

    def check_out() -> None:
        for _ in range(CHECKOUTS // len(pools)):
            for pool in pools:
                pool.putconn(pool.getconn())

    def tick() -> None:
        for tracker in session.trackers:
            tracker._alarm._sampled_at = 0.0

    played = {
        "checkout": _each(check_out, CHECKOUTS),
        "collection": _each(reader.get_metrics_data, len(pools)),
    }
    for pool in pools:
        pool.getconn()
    return {name: {**played, "look": _each(session.run_once, len(pools), tick)}}


def _each(work: Callable[[], Any], times: int, prepare: Callable[[], None] = lambda: None) -> float:
    """Microseconds of one of ``times``: the median of several turns; what is prepared is outside the clock."""
    took = []
    for _ in range(TURNS):
        prepare()
        gc.collect()
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) / times * 1e6)
    return statistics.median(took)


def _growth(metric: str) -> Callable[[Round], float]:
    return lambda played: played["1,000 pools"][metric] / played["100 pools"][metric]


ROWS = (
    Row(
        name="hooked-growth",
        work="1, 100 and 1,000 hooked stock pools of one connection",
        contestants=tuple(COUNTS),
        columns=(
            Column("checkout", "checkout, us", 1),
            Column("collection", "collection, us for each pool", 1),
            Column("look", "look of the watch, us for each pool", 2),
        ),
        measure=measure,
        rounds=3,
        targets=(
            Target("a checkout, 1,000 against 100", _growth("checkout"), 1.5),
            Target("a collection for each pool, 1,000 against 100", _growth("collection"), 1.5),
            Target("a look of the watch for each pool, 1,000 against 100", _growth("look"), 1.5),
        ),
        note="The connections are stand-ins. Spans and records on; a span goes nowhere, as no provider is set for it. "
        "The pools take turns in checking out. While the watch looks, one connection is out of each, and at each look "
        "the utilization is due, which otherwise is read twice a second.",
    ),
)
