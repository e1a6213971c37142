"""Forty minutes of metrics of two processes and their PostgreSQL, played in a few seconds and exported by the real SDK.

The pools, the server and the faults are real; only the time between two exports is not waited for: holds are made
older by as much, and the exports get the times at which they would have been made.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.telemetry import Telemetry
from otel_pgpool.types import LogEvent
from tests.support.database import ask
from tests.support.internals import core_of
from tests.support.pools import let_lie
from tests.support.servers import ClonedServer
from tests.support.stack_files import load
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.view import Aggregation

    from otel_pgpool.demo.postgres import PostgresServer

STEP = 15.0
"""Seconds between two exports."""
MINUTES = {"calm": 6, "exhaustion": 8, "after it": 7, "leak": 3, "after that": 7, "outage": 3, "at last": 6}
LENGTH = 60 * sum(MINUTES.values())
MAXCONN = 4
CLASSIC, EXPONENTIAL = "histogram", "exponential_histogram"
AGGREGATION: dict[type, Aggregation] = {Histogram: ExponentialBucketHistogramAggregation()}
LOCK = "select pg_advisory_xact_lock(1)"


class Process:
    """A process with a pool and providers of its own."""

    def __init__(self, instance: str, pool: str, dsn: str, minconn: int, **options: Any) -> None:
        resource = Resource({"service.name": "shop", "service.instance.id": instance})
        self.spans = InMemorySpanExporter()
        self._traces = TracerProvider(shutdown_on_exit=False)
        self._traces.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.exponential_reader = InMemoryMetricReader(preferred_aggregation=AGGREGATION)
        readers = [self.reader, self.exponential_reader]
        self._metrics = MeterProvider(readers, resource, shutdown_on_exit=False)
        observer = Telemetry(self._traces, self._metrics, caller=True)
        self.pool = ConnectionPool(minconn, MAXCONN, dsn, name=pool, observer=observer, **options)

    def work(self) -> None:
        """Make a little traffic."""
        for _ in range(5):
            with self.pool.connection() as conn:
                ask(conn, "select 1")

    def failed_connects(self) -> int:
        """How many attempts have failed so far."""
        ended = self.spans.get_finished_spans()
        return sum(span.name == "pool.connect" and not span.status.is_ok for span in ended)

    def close(self) -> None:
        self.pool.close(0)
        self._metrics.shutdown()
        self._traces.shutdown()


class Server:
    """The server as the Collector's postgresql receiver reports it: one gauge, of a resource that is no service."""

    def __init__(self, dsn: str) -> None:
        with ConnectionPool(0, 1, dsn, observer=None) as pool, pool.connection() as conn:
            most = int(ask(conn, "show max_connections"))
        self.reader = InMemoryMetricReader()
        self._metrics = MeterProvider([self.reader], Resource({}), shutdown_on_exit=False)
        self._metrics.get_meter("postgresqlreceiver").create_observable_gauge(
            "postgresql.connection.max", [lambda _options: [Observation(most)]], "{connections}"
        )

    def close(self) -> None:
        self._metrics.shutdown()


class Answers(logging.Handler):
    """What PostgreSQL said of a process's long holds, counted from its log records as the Collectors count them."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        ((name, count),) = load("collector-config/collector.yaml")["connectors"]["count"]["logs"].items()
        self._labels: dict[str, str] = {each["key"]: each.get("default_value", "") for each in count["attributes"]}
        resource = Resource({"service.name": "shop", "service.instance.id": instance})
        self.reader = InMemoryMetricReader()
        self._metrics = MeterProvider([self.reader], resource, shutdown_on_exit=False)
        self._counter = self._metrics.get_meter("countconnector").create_counter(name)
        self.waits: set[str] = set()
        """What the sessions waited for, since the last export."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = vars(record)
        if fields.get("otel_pgpool.event") == LogEvent.DATABASE_STATE:
            labels = {key: str(fields.get(key, default)) for key, default in self._labels.items()}
            self._counter.add(1, labels)
            self.waits.add(labels["postgresql.wait_event_type"])

    def close(self) -> None:
        self._metrics.shutdown()
        super().close()


@dataclass
class History:
    """What was exported, and when; times are seconds since 1970."""

    begin: float
    exports: list[ExportMetricsServiceRequest] = field(default_factory=list)
    """Each of a process has every histogram twice: with classic buckets, and exponential."""
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    traces: set[str] = field(default_factory=set)
    """Of all checkouts, in hexadecimal."""

    @property
    def end(self) -> float:
        return self.begin + LENGTH

    def phase(self, at: float) -> str:
        """Return the phase at a time."""
        return next(name for name, (begin, end) in self.phases.items() if begin <= at <= end)


class Recorder:
    """Plays the phases, and records what the processes and the server export."""

    def __init__(self, begin: float, troubled: Process, well: Process, server: Server, answers: Answers) -> None:
        self.history = History(begin)
        self.troubled, self.well, self._server, self._answers = troubled, well, server, answers
        self._now = begin

    @contextmanager
    def phase(self, name: str) -> Iterator[range]:
        """Iterate over the exports of one phase."""
        begin = self._now
        yield range(int(MINUTES[name] * 60 / STEP))
        self.history.phases[name] = begin, self._now

    def export(self) -> None:
        """Let all export, and advance the time. The Collector exports its totals only if they have grown."""
        self._now += STEP
        for hold in core_of(self.well.pool).holds_now():  # the listener's
            hold.acquired -= STEP
        grown = [self._answers.reader] if self._answers.waits else []
        self._answers.waits.clear()
        for process in (self.troubled, self.well):
            export = self._exported(process.reader)
            metrics = self._exported(process.exponential_reader).resource_metrics[0].scope_metrics[0].metrics
            exponential = [metric for metric in metrics if metric.WhichOneof("data") == EXPONENTIAL]
            export.resource_metrics[0].scope_metrics[0].metrics.extend(exponential)
            self.history.exports.append(export)
        self.history.exports += [self._exported(reader) for reader in (self._server.reader, *grown)]

    def _exported(self, reader: InMemoryMetricReader) -> ExportMetricsServiceRequest:
        data = reader.get_metrics_data()
        assert data is not None
        return _dated(encode_metrics(data), self.history.begin, self._now)

    def calm(self, name: str) -> None:
        with self.phase(name) as exports:
            for _ in exports:
                self.troubled.work()
                self.well.work()
                self.export()

    def exhaustion(self) -> None:
        """Hold all connections: callers queue, and some time out."""
        pool = self.troubled.pool
        with self.phase("exhaustion") as exports:
            held = [pool.getconn() for _ in range(MAXCONN)]
            waiting = [in_thread(self.troubled.work) for _ in range(2)]
            assert wait_until(lambda: pool.stats().waiting == len(waiting))
            for _ in exports:
                with suppress(PoolTimeout):
                    pool.getconn(timeout=0)
                self.well.work()
                self.export()
            for conn in held:
                pool.putconn(conn)
            for each in waiting:
                each.result(PATIENCE)

    def leak(self) -> None:
        """Hold one connection, with a lock for which another holder waits, until the hold is reported as long."""
        pool = self.troubled.pool
        noticed = pool.stats().long_holds
        with self.phase("leak") as exports, self.conflict():
            for _ in exports:
                self.troubled.work()
                self.well.work()
                for hold in core_of(pool).holds_now():
                    hold.started -= STEP
                    hold.acquired -= STEP
                assert wait_until(lambda: pool.stats().long_holds > noticed)
                self.export()

    @contextmanager
    def conflict(self) -> Iterator[None]:
        """Hold a lock for which another holder waits, both for so long that PostgreSQL has been asked why."""

        def lock() -> None:
            with self.troubled.pool.connection() as conn:
                ask(conn, LOCK)

        with self.troubled.pool.connection() as conn:
            ask(conn, LOCK)
            blocked = in_thread(lock)
            assert wait_until(lambda: {"Client", "Lock"} <= self._answers.waits)
            yield
        blocked.result(PATIENCE)

    def outage(self, postgres: PostgresServer) -> None:
        """Stop the server and start it again, while a caller waits."""
        with self.phase("outage") as exports:
            postgres.stop()
            let_lie(self.troubled.pool)  # one used within the last 50 ms would be handed out without a check
            waiting = in_thread(self.troubled.work)
            for failures in (1, 2, *[3] * (len(exports) - 2)):
                assert wait_until(lambda least=failures: self.troubled.failed_connects() >= least)
                self.export()
            postgres.start()
            waiting.result(PATIENCE)


def play_history(end: float) -> History:
    """Play the whole history, which ends at a given time."""
    with ExitStack() as running:
        postgres = running.enter_context(ClonedServer())
        troubled = Process("shop-1", "orders", postgres.dsn, minconn=1, long_hold=0.1)
        running.callback(troubled.close)
        well = Process("shop-2", "reports", postgres.dsn, minconn=0, max_idle=None)
        running.callback(well.close)
        listener = running.enter_context(well.pool.connection(expected_hold=None))
        listener.autocommit = True  # otherwise the restart of the server would end a transaction
        server = Server(postgres.dsn)
        running.callback(server.close)
        answers = Answers("shop-1")
        running.callback(answers.close)
        logging.getLogger("otel_pgpool").addHandler(answers)
        running.callback(logging.getLogger("otel_pgpool").removeHandler, answers)
        recorder = Recorder(end - LENGTH, troubled, well, server, answers)
        with recorder.conflict():
            pass
        recorder.calm("calm")
        recorder.exhaustion()
        recorder.calm("after it")
        recorder.leak()
        recorder.calm("after that")
        recorder.outage(postgres)
        recorder.calm("at last")
        for process in (troubled, well):
            contexts = [span.get_span_context() for span in process.spans.get_finished_spans()]
            recorder.history.traces |= {f"{context.trace_id:032x}" for context in contexts if context is not None}
        return recorder.history


def without(kind: str, export: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    """Return an export without the histograms of one kind."""
    left = ExportMetricsServiceRequest()
    left.CopyFrom(export)
    for scope in (scope for resource in left.resource_metrics for scope in resource.scope_metrics):
        kept = [metric for metric in scope.metrics if metric.WhichOneof("data") != kind]
        del scope.metrics[:]
        scope.metrics.extend(kept)
    return left


def _dated(request: ExportMetricsServiceRequest, begin: float, at: float) -> ExportMetricsServiceRequest:
    """As exported at another time."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    point.start_time_unix_nano, point.time_unix_nano = int(begin * 1e9), int(at * 1e9)
                    for exemplar in getattr(point, "exemplars", ()):
                        exemplar.time_unix_nano = point.time_unix_nano
    return request
