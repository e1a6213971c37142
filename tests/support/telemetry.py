"""What a pool emits, kept in memory: spans from their start on, metrics when asked for, log records with their trace.

with Signals() as signals, signals.pool(1, 2, dsn) as pool:
    with pool.connection():
        ...
    span = signals.checkout()
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.semconv.schemas import Schemas
from psycopg2 import extensions

from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry, logs
from tests.support.emitted import UndeclaredError, check_metric, check_record, check_span, own_metrics
from tests.support.internals import connectors_of
from tests.support.signal_registry import SCOPE
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.sdk.trace.sampling import Sampler
    from typing_extensions import Self

NAME = "shop"
SCHEMA = "https://opentelemetry.io/schemas/1.44.0" if hasattr(Schemas, "V1_44_0") else ""
"""The schema of spans and metrics; older semantic conventions do not know it."""
MOMENT = 0.1  # s: how far clocks read by a thread on a busy machine may be apart


class Spans(SpanProcessor):
    """Every span from its start on, so that one which never ends is seen too."""

    def __init__(self) -> None:
        self.started: list[Span] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


class Record(NamedTuple):
    """A log record, and the span that was current when it was written."""

    record: logging.LogRecord
    span_context: trace.SpanContext

    @property
    def event(self) -> str | None:
        return vars(self.record).get("otel_pgpool.event")

    @property
    def attributes(self) -> dict[str, Any]:
        """What the record carries beyond the fields of the standard library."""
        own = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}  # those behind are a formatter's
        return {name: value for name, value in vars(self.record).items() if name not in own}


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[Record] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(Record(record, trace.get_current_span().get_span_context()))


class CheckedRecords(Records):
    """Records of the package. They are compared with the registry at once, because a forked child may write them."""

    def __init__(self) -> None:
        super().__init__()
        self.undeclared: list[UndeclaredError] = []

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        try:
            check_record(self.all[-1].attributes, record.levelname)
        except UndeclaredError as problem:
            self.undeclared.append(problem)


class Signals:
    """Providers of its own.

    As a context manager, it fails when OpenTelemetry itself had something to complain of, when something is emitted
    that the registry of the signals does not declare, and unless those checkouts say that they queued which have a
    wait.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.spans = Spans()
        self.tracer_provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self.spans)
        self.tracer = self.tracer_provider.get_tracer("test")
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.records = CheckedRecords()
        self.complaints = Records()

    def __enter__(self) -> Self:
        logs._logged_again.clear()  # another test's pool of this name may have been refused within the minute
        logger = logging.getLogger("otel_pgpool")
        self._level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self.records)
        self.complaints.setLevel(logging.WARNING)
        logging.getLogger("opentelemetry").addHandler(self.complaints)
        return self

    def __exit__(self, exc_type: object, *_exc: object) -> None:
        logger = logging.getLogger("otel_pgpool")
        logger.removeHandler(self.records)
        logger.setLevel(self._level)
        logging.getLogger("opentelemetry").removeHandler(self.complaints)
        if exc_type is None:
            self._assert_that_all_is_declared()
        self.meter_provider.shutdown()
        self.tracer_provider.shutdown()
        if exc_type is None:
            assert [complaint.record.getMessage() for complaint in self.complaints.all] == []
            self._assert_that_waits_are_those_of_paths()

    def _assert_that_all_is_declared(self) -> None:
        assert self.records.undeclared == []
        self.metrics()
        for span in list(self.spans.ended):
            if span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE:
                check_span(span)

    def _assert_that_waits_are_those_of_paths(self) -> None:
        waited = {span.parent.span_id for span in self.named("pool.wait") if span.parent is not None}
        for span in self.named("pool.checkout"):
            path = (span.attributes or {}).get("otel_pgpool.path")
            has_waited = span.context is not None and span.context.span_id in waited
            assert path in {"queued", "new"} if has_waited else path != "queued", (path, has_waited)

    def telemetry(self, **options: Any) -> Telemetry:
        return Telemetry(self.tracer_provider, self.meter_provider, **options)

    @contextmanager
    def pool(
        self, minconn: int, maxconn: int, *args: Any, telemetry: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[ConnectionPool]:
        """Make a pool that is observed by these signals, and leave nothing of it behind."""
        settings: dict[str, Any] = {"name": NAME, "timeout": PATIENCE, "long_hold": None, **options}
        pool = ConnectionPool(minconn, maxconn, *args, observer=self.telemetry(**(telemetry or {})), **settings)
        try:
            yield pool
        finally:
            pool.close(0)
            all_connects_told(pool)

    # Spans

    def named(self, name: str) -> list[ReadableSpan]:
        """Those that have ended."""
        return [span for span in list(self.spans.ended) if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def checkout(self) -> ReadableSpan:
        return self.one("pool.checkout")

    def live(self, name: str = "pool.checkout") -> list[Span]:
        """Those that have begun and not ended."""
        return [span for span in list(self.spans.started) if span.name == name and span.end_time is None]

    # Logs

    def logged(self, event: str) -> list[Record]:
        return [record for record in list(self.records.all) if record.event == event]

    # Metrics

    def metrics(self) -> dict[str, Any]:
        """Every metric of the next collection, by name."""
        data = self.reader.get_metrics_data()
        for metric in own_metrics(data):
            check_metric(metric)
        scopes = [] if data is None else [scope for each in data.resource_metrics for scope in each.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str, pool_name: str = NAME) -> list[Any]:
        metric = self.metrics().get(name)
        points = [] if metric is None else list(metric.data.data_points)
        return [point for point in points if point.attributes["db.client.connection.pool.name"] == pool_name]

    def values(self, name: str, pool_name: str = NAME) -> dict[tuple[str, ...], float]:
        """Return a metric's values, by the attributes other than the pool's name."""
        return {_rest(point): point.value for point in self.points(name, pool_name)}

    def value(self, name: str, *rest: str, pool_name: str = NAME) -> float:
        return self.values(name, pool_name)[rest]

    def everything(self) -> str:
        """All that was emitted, as one text: what must not be in it is in none of the three signals."""
        spans = [span.to_json() for span in list(self.spans.ended)]
        spans += [f"{dict(span.attributes or {})} {span.events}" for span in list(self.spans.started)]
        logs = [f"{record.record.getMessage()} {record.attributes}" for record in list(self.records.all)]
        exceptions = [str(record.record.exc_info) for record in list(self.records.all) if record.record.exc_info]
        metrics = [metric.to_json() for metric in self.metrics().values()]
        return "\n".join([*spans, *logs, *exceptions, *metrics])


def _rest(point: Any) -> tuple[str, ...]:
    return tuple(value for name, value in point.attributes.items() if name != "db.client.connection.pool.name")


def server_attributes(dsn: str) -> dict[str, Any]:
    parameters = extensions.parse_dsn(dsn)
    return {"server.address": parameters["host"], "server.port": int(parameters["port"])}


def start_attributes(dsn: str, name: str = NAME) -> dict[str, Any]:
    """Return the attributes that a checkout's span has from its start."""
    return {
        "db.system.name": "postgresql",
        "db.namespace": extensions.parse_dsn(dsn)["dbname"],
        "db.client.connection.pool.name": name,
        **server_attributes(dsn),
    }


def served(dsn: str, **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that was served; a keyword replaces ``otel_pgpool.<keyword>``."""
    error = {"error.type": changes.pop("error")} if "error" in changes else {}
    return {
        **start_attributes(dsn),
        "otel_pgpool.wait_time": float,
        "otel_pgpool.hold_time": float,
        "otel_pgpool.retries": 0,
        "otel_pgpool.path": "idle",
        "otel_pgpool.long_hold": False,
        "otel_pgpool.outcome": "committed",
        "otel_pgpool.connection.id": int,
        "otel_pgpool.connection.pid": int,
        "thread.name": str,
        **{f"otel_pgpool.{name}": value for name, value in changes.items()},
        **error,
    }


def unserved(dsn: str, path: str, outcome: str, error: str, **changes: Any) -> dict[str, Any]:
    """All attributes of a checkout that failed."""
    return {
        **start_attributes(dsn),
        "otel_pgpool.wait_time": float,
        "otel_pgpool.retries": changes.get("retries", 0),
        "otel_pgpool.path": path,
        "otel_pgpool.outcome": outcome,
        "thread.name": str,
        "error.type": error,
    }


def waited(links: int, name: str = NAME) -> dict[str, Any]:
    """All attributes of a wait for so many holders; without one that none of them has a known trace."""
    blocked = {
        "otel_pgpool.blocker.held": float,
        "otel_pgpool.blocker.connection.pid": int,
        "otel_pgpool.blocker.checked_out_at": str,
        "otel_pgpool.blocker.trace_id": str,
    }
    return {
        "db.client.connection.pool.name": name,
        "otel_pgpool.blocker.count": links,
        **(blocked if links else {}),
    }


def assert_exactly(attributes: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> None:
    """Check for these keys and no others; a type stands for any value of exactly that type."""
    actual = dict(attributes or {})
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    for name, wanted in expected.items():
        value = actual[name]
        if isinstance(wanted, type):
            assert type(value) is wanted, (name, value)
        else:
            assert (type(value), value) == (type(wanted), wanted), (name, value, wanted)


def status_of(span: ReadableSpan) -> tuple[str, str | None]:
    return span.status.status_code.name, span.status.description


def is_child(span: ReadableSpan, parent: ReadableSpan | Span) -> bool:
    context = parent.get_span_context()
    assert context is not None
    if span.parent is None or span.context is None:
        return False
    return (span.parent.span_id, span.context.trace_id) == (context.span_id, context.trace_id)


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for a condition and return what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, what or "not in time"
        time.sleep(0.002)
    return result


def all_connects_told(pool: ConnectionPool) -> None:
    """Wait until no connect goes on: one is told only when its connection may have been used, and returned, already."""
    connectors_of(pool).join(PATIENCE)


@contextmanager
def queued(pool: ConnectionPool, work: Callable[[], object], name: str = "worker") -> Iterator[Future[Any]]:
    """Run work, which asks for a connection, in a thread, and go on once it queues."""
    waiting = pool.stats().waiting
    worker = in_thread(work, name=name)
    until(lambda: pool.stats().waiting > waiting or worker.done(), "the worker does not queue")
    yield worker
    worker.result(PATIENCE)
