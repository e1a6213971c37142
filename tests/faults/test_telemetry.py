"""Telemetry that fails under load: the application sees nothing, no connection is lost, and it is said once."""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from benchmarks.row import OURS
from faults.collector import Answer, Collector, absent
from faults.scene import play
from faults.telemetry import FAULTS, Piece
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry
from tests.faults.programs import run
from tests.integration.helpers import in_thread
from tests.integration.telemetry_helpers import until

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.mark.parametrize("name", FAULTS)
def test_the_application_goes_on(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """No error, nobody waits for telemetry, and each checkout has ended one span; at most one lament of the pool's."""
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    caplog.handler.setLevel(logging.DEBUG)  # set_level has set it too
    outcome = play(FAULTS[name], OURS, 0.2)
    assert (outcome.wrongs(), outcome.errors) == ([], {})
    assert outcome.longest_work < 1 + outcome.longest_stall
    laments = [record for record in caplog.records if "telemetry is being lost" in record.getMessage()]
    assert len(laments) == (name == "processor-raises")


def test_a_callback_that_raises(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A program's own observable callback that raises costs the pool none of its sixteen metrics."""
    caplog.set_level(logging.CRITICAL, "opentelemetry")
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


def test_a_simple_processor_whose_exporter_hangs(dsn: str) -> None:
    """It holds up who gives back, whose connection is free already, and no other borrower."""
    piece = Piece()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(piece))
    quiet = TracerProvider(shutdown_on_exit=False)
    with (
        ConnectionPool(1, 2, dsn, name="held up", timeout=5, observer=Telemetry(tracers)) as pool,
        ConnectionPool(1, 2, dsn, name="free", timeout=5, observer=Telemetry(quiet)) as other,
    ):

        def work(pool: ConnectionPool) -> None:
            with pool.connection():
                pass

        piece.flows.clear()
        stuck = in_thread(work, pool)
        until(lambda: pool.stats().checkouts["idle"] == 1 and pool.stats().used == 0)
        for _ in range(10):
            work(other)
        conn = pool.getconn()  # its span has begun, and is not exported yet
        assert not stuck.done()
        piece.flows.set()
        stuck.result(5)
        pool.putconn(conn)
        assert pool.stats().used == 0


PROGRAM = """
import json, sys, threading, time
from otel_pgpool import ConnectionPool
from otel_pgpool.otlp import configure

with configure("shop") as providers:
    pool = ConnectionPool(2, 4, sys.argv[1], name="shop", timeout=10)
    errors = []

    def work():
        try:
            for _ in range(100):
                with pool.connection() as conn:
                    conn.cursor().execute("select 1")
        except Exception as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stats = pool.stats()
    pool.close()
    began = time.monotonic()
    providers.shutdown(1)
    took = time.monotonic() - began
print(json.dumps({
    "errors": errors, "served": sum(stats.checkouts.values()), "levels": [stats.used, stats.idle - stats.size],
    "undelivered": providers.undelivered.spans, "took": took,
}))
"""
SLACK = 3.0
SETTINGS = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "OTEL_BSP_SCHEDULE_DELAY": "20",
    "OTEL_BSP_MAX_QUEUE_SIZE": "1024",  # more than there are checkouts: `queue-full` is a fault of its own
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
    "OTEL_METRIC_EXPORT_INTERVAL": "100",
}


@pytest.mark.parametrize("answer", [None, *Answer], ids=lambda answer: getattr(answer, "name", "ABSENT"))
def test_a_program_that_exports(dsn: str, monkeypatch: pytest.MonkeyPatch, answer: Answer | None) -> None:
    """By `otlp.configure()`: every checkout is served, the exit is bounded, and a loss is said once for each signal."""
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    with ExitStack() as stack:
        if answer is None:
            endpoint = stack.enter_context(absent())
        else:
            collector = stack.enter_context(Collector())
            collector.answer = answer
            endpoint = collector.endpoint
        for variable, value in {**SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}.items():
            monkeypatch.setenv(variable, value)
        ended = run(PROGRAM, dsn)
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    assert (told["errors"], told["served"], told["levels"]) == ([], 800, [0, 0])
    assert told["took"] < 1 + SLACK
    said = [line for line in ended.stderr.splitlines() if not line.startswith("pool shop: ")]
    if answer in (Answer.ACCEPTED, Answer.GARBAGE):
        assert said == []
    else:
        assert told["undelivered"] >= 800
        assert 1 <= len(said) <= 3, said  # each of the three exporters
        assert len(set(said)) == len(said)
