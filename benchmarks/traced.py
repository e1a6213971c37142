"""The cost of a checkout with a recorded span and two histograms, and of the same written by hand."""
# ruff: noqa: PLC0415 - the package is imported only if its pool is measured

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from psycopg2.pool import ThreadedConnectionPool

from benchmarks.by_hand import NAME, Textbook, Written
from benchmarks.checkout import EACH, take_turns
from benchmarks.recorded import NullExporter, Recorded
from benchmarks.row import OURS, PSYCOPG2, Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BY_HAND, TEXTBOOK = "by hand", "by hand, start_as_current_span"
CYCLES, SLICES = 500, 15
VARYING = {
    "otel_pgpool.wait_time",
    "otel_pgpool.hold_time",
    "otel_pgpool.connection.pid",  # each has a connection of its own
}
"""Attributes whose values differ from checkout to checkout; all others must be equal."""


class OurPool:
    """The package's pool with its own telemetry."""

    def __init__(self, dsn: str, recorded: Recorded) -> None:
        from otel_pgpool import ConnectionPool
        from otel_pgpool.telemetry import Telemetry

        observer = Telemetry(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
        self.pool = ConnectionPool(1, 5, dsn, name=NAME, observer=observer)

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            with pool.connection():
                pass

    def close(self) -> None:
        self.pool.close()


class Plain:
    """psycopg2's pool without telemetry, for comparison."""

    def __init__(self, dsn: str, _recorded: Recorded) -> None:
        self.pool = ThreadedConnectionPool(1, 5, dsn)

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            connection = pool.getconn()
            pool.putconn(connection)

    def close(self) -> None:
        self.pool.closeall()


MAKERS: dict[str, Callable[[str, Recorded], Any]] = {
    OURS: OurPool,
    BY_HAND: Written,
    TEXTBOOK: Textbook,
    PSYCOPG2: Plain,
}


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """Check that all leave the same telemetry, then measure them."""
    verify_alike(dsn)
    recorded = {name: Recorded(BatchSpanProcessor(NullExporter())) for name in contestants}
    pools = {name: MAKERS[name](dsn, recorded[name]) for name in contestants}

    def settle(_name: str) -> None:
        for each in recorded.values():
            each.settle()

    played = take_turns({name: pool.spin for name, pool in pools.items()}, CYCLES, SLICES, settle)
    for name, pool in pools.items():
        pool.close()
        recorded[name].shut_down()
    return played


def verify_alike(dsn: str) -> None:
    """Raise an error unless all contestants leave the same span and the same records."""
    refuse_differences({name: what_is_left(name, dsn) for name in (OURS, BY_HAND, TEXTBOOK)})


def refuse_differences(left: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise an error unless each contestant left the same telemetry as the first one."""
    (first, expected), *others = left.items()
    for name, found in others:
        if found != expected:
            message = f"not the same telemetry: {first} leaves {expected}, {name} leaves {found}"
            raise RuntimeError(message)


def what_is_left(name: str, dsn: str) -> tuple[Any, ...]:
    """Return the telemetry of one checkout, without that of the connect."""
    exporter = InMemorySpanExporter()
    recorded = Recorded(SimpleSpanProcessor(exporter))
    pool = MAKERS[name](dsn, recorded)
    exporter.clear()  # removes the span of the connect
    pool.spin(1)
    left = telemetry(exporter, recorded)
    pool.close()
    return left


def telemetry(exporter: InMemorySpanExporter, recorded: Recorded) -> tuple[Any, ...]:
    """Return everything about one checkout's span and records that must not differ."""
    [span] = exporter.get_finished_spans()
    attributes = span.attributes or {}
    values = {key: type(value) if key in VARYING else value for key, value in attributes.items()}
    records = recorded.records()
    return span.name, span.kind, span.parent, span.status.status_code, values, span.events, span.links, records


ROWS = (
    Row(
        name="traced",
        work="the same, spans and both histograms recording through a batch processor",
        contestants=(OURS, BY_HAND, TEXTBOOK, PSYCOPG2),
        columns=EACH,
        measure=measure,
        together=True,
        targets=(
            Target("against the same span, attributes and two records by hand", ratio("us", OURS, BY_HAND), 1.15),
        ),
        note="Each contestant has its own `TracerProvider`, with a `BatchSpanProcessor` and an exporter that drops its "
        "spans, and its own `MeterProvider`. Before the measurement, one checkout of each has to leave the same span "
        "and the same records. Queues are flushed between the slices, which is not measured. The target is compared "
        "with the faster hand-written form.",
    ),
)
