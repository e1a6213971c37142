"""The cost of the instrumentation by the number of pools: of a checkout, a collection, and a pass of its thread."""
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
    """The state of an idle connection, in no transaction."""

    transaction_status = 0
    host = "localhost"
    port = 5432


class Connection:
    """A fake connection, because a server does not accept a thousand real ones."""

    closed = 0
    info = Info()

    def close(self) -> None:
        self.closed = 1

    def get_backend_pid(self) -> int:
        return 1


def measure(contestants: Sequence[str], _dsn: str) -> Round:
    """Measure as many pools of psycopg2 as the contestant's name says, with one connection each."""
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
    """Return the microseconds of one of ``times``, the median of several turns; ``prepare`` is not measured."""
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
        work="1, 100 and 1,000 instrumented pools of psycopg2, with one connection each",
        contestants=tuple(COUNTS),
        columns=(
            Column("checkout", "checkout, us", 1),
            Column("collection", "collection, us for each pool", 1),
            Column("look", "pass of the thread, us for each pool", 2),
        ),
        measure=measure,
        rounds=3,
        targets=(
            Target("a checkout, 1,000 against 100", _growth("checkout"), 1.5),
            Target("a collection for each pool, 1,000 against 100", _growth("collection"), 1.5),
            Target("a pass of the thread for each pool, 1,000 against 100", _growth("look"), 1.5),
        ),
        note="The connections are fakes. Metrics are recorded; spans are not, because no tracer provider is set. The "
        "checkouts go from pool to pool. During the passes of the background thread, one connection of each pool is "
        "checked out, and each pass samples the utilization, which otherwise happens twice a second.",
    ),
)
