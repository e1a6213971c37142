"""Telemetry that fails under load: the application sees no error, no connection is lost, the loss is logged once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from benchmarks.row import OURS
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry
from tests.chaos.monitors import Monitor
from tests.chaos.runner import TIMEOUT, WORKERS, play
from tests.chaos.telemetry import EXPORT_TIMEOUT, FAULTS, Exporter, TelemetryEnvironment
from tests.support.loss_messages import CALLBACK_FAILED, EXPORT_FAILED, LOST, PERIOD, QUEUE_FULL
from tests.support.telemetry import until
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from tests.chaos.environment import Environment

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
SDK = "opentelemetry.sdk"
BATCHES = f"{SDK}._shared_internal"


@dataclass(eq=False)
class Said(logging.Handler):
    """The log records of level WARNING and above, which a program without a logging set-up sees on stderr."""

    records: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)
        self._began = time.time()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def periods(self) -> int:
        return int(time.time() // PERIOD - self._began // PERIOD) + 1

    def count(self) -> Counter[str]:
        """Count the records by logger, and those of the SDK's batch processors and of our pool by message too."""
        return Counter(
            next((text for text in (EXPORT_FAILED, QUEUE_FULL, LOST) if text in record.getMessage()), record.name)
            for record in self.records
            if not vars(record).get("otel_pgpool.event")  # a long hold, on a machine that stood still
        )


@pytest.fixture
def said() -> Iterator[Said]:
    """Collect records as in a new process: the SDK's filters of repeated records are reset before."""
    for each in logging.getLogger(BATCHES).filters:
        vars(each).pop("last_log", None)
    handler = Said()
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "otel_pgpool")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


class Standstill(Monitor):
    """Measures the time in which no thread of this process ran, by a thread that sleeps for 20 ms at a time."""

    total = 0.0
    """Seconds."""

    def _watch(self) -> None:
        slept, used = time.monotonic(), time.process_time()
        while not self._over.wait(0.02):
            now, cpu = time.monotonic(), time.process_time()
            self.total += max(0.0, now - slept - (cpu - used) - 0.05)
            slept, used = now, cpu


@pytest.mark.parametrize("name", FAULTS)
def test_the_application_goes_on(name: str, said: Said) -> None:
    """There is no error, no caller waits for telemetry, no connection is lost, and the loss is logged.

    The pool logs it once. The SDK's batch processors log the same message once in 20 s, except for threads that log at
    the same time, and for two messages in turn. The SDK's OTLP exporter, without `otlp.configure()`, logs it once for
    each batch. If an answer means success, the loss is not known.
    """
    fault, environments = FAULTS[name], []

    def environment(stage: ExitStack) -> Environment:
        environments.append(fault.environment(stage))
        return environments[0]

    with Standstill() as standstill:
        outcome = play(replace(fault, environment=environment), OURS, 0.2)
    stood = standstill.total > TIMEOUT / 2  # then callers may be served, or time out, later than the run excuses
    assert [wrong for wrong in outcome.failures() if not (stood and wrong.startswith("the longest wait"))] == []
    assert set(outcome.errors) <= ({"PoolTimeout"} if stood else set())
    assert outcome.longest_work < 1 + standstill.total
    (told,) = environments
    assert isinstance(told, TelemetryEnvironment)
    lost, counted = told.component.lost, said.count()
    full = counted.pop(QUEUE_FULL, 0)
    assert full <= WORKERS * said.periods
    if name == "queue-full":
        assert full >= 1
        assert counted == {}
    elif name == "exporter-raises":
        assert counted.keys() == {EXPORT_FAILED}
        assert 1 <= counted[EXPORT_FAILED] <= said.periods + full
        assert lost >= counted[EXPORT_FAILED]
    elif name in {"processor-raises", "start-raises", "sampler-raises"}:
        assert lost > 1
        assert counted == {LOST: 1}
    else:
        assert counted == +Counter({EXPORTER: lost})
        if name != "collector-garbage":
            assert lost >= 1
        elif standstill.total < EXPORT_TIMEOUT / 2:
            assert lost == 0


def test_a_callback_that_raises(dsn: str, said: Said) -> None:
    """If a program's own observable callback raises, all sixteen metrics of the pool are still collected.

    The SDK logs the error of each callback at each collection, which by default is once a minute.
    """
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    def raise_at_once(_options: CallbackOptions) -> Iterable[Observation]:
        raise ZeroDivisionError

    def raise_midway(_options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(1)
        raise ZeroDivisionError

    meter = meters.get_meter("shop")
    meter.create_observable_gauge("shop.before", [raise_at_once, raise_midway])
    with ConnectionPool(1, 2, dsn, name="shop", observer=Telemetry(meter_provider=meters)) as pool:
        meter.create_observable_gauge("shop.after", [raise_at_once, raise_midway])
        for _ in range(2):
            with pool.connection():
                data = reader.get_metrics_data()
            assert data is not None
            scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics]
            ours = [metric for scope in scopes if scope.scope.name == "otel_pgpool" for metric in scope.metrics]
            (count,) = [metric for metric in ours if metric.name == "db.client.connection.count"]
            assert {point.value for point in count.data.data_points} == {0, 1}
        assert pool.stats().used == 0
    meters.shutdown()
    assert [record.getMessage() for record in said.records if record.name.startswith(SDK)] == [
        f"{CALLBACK_FAILED} shop.{name}." for _ in range(2) for name in ("before", "before", "after", "after")
    ]


def test_a_simple_processor_whose_exporter_raises(dsn: str, said: Said) -> None:
    """The SDK logs the error at each span, so `otlp.configure()` uses no such processor; the holder sees no error."""
    exporter = Exporter(broken=True)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with ConnectionPool(1, 2, dsn, timeout=5, observer=Telemetry(tracers)) as pool:
        for _ in range(10):
            with pool.connection():
                pass
        assert pool.stats().used == 0
    assert exporter.lost == 11  # the first connection's is one
    assert said.count() == {EXPORT_FAILED: 11}


def test_a_simple_processor_whose_exporter_hangs(dsn: str) -> None:
    """The exporter delays the releasing thread, whose connection is free already, and no other caller."""
    exporter = Exporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    quiet = TracerProvider(shutdown_on_exit=False)
    with (
        ConnectionPool(1, 2, dsn, name="held up", timeout=5, observer=Telemetry(tracers)) as pool,
        ConnectionPool(1, 2, dsn, name="free", timeout=5, observer=Telemetry(quiet)) as other,
    ):

        def work(pool: ConnectionPool) -> None:
            with pool.connection():
                pass

        exporter.unblocked.clear()
        stuck = in_thread(work, pool)
        until(lambda: pool.stats().checkouts["idle"] == 1 and pool.stats().used == 0)
        for _ in range(10):
            work(other)
        conn = pool.getconn()  # its span has begun, and is not exported yet
        assert not stuck.done()
        exporter.unblocked.set()
        stuck.result(5)
        pool.putconn(conn)
        assert pool.stats().used == 0
