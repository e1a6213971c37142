"""Telemetry on releases of OpenTelemetry whose private parts have other names than those that the package knows."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from otel_pgpool.telemetry import sdk_internals

ROOT = Path(__file__).parents[2]

# Loads OpenTelemetry with one name replaced everywhere: its own code works, and nobody else finds the name.
RENAMED = """
import re, sys
from importlib.machinery import PathFinder, SourceFileLoader

found = 0

class Loader(SourceFileLoader):
    def get_code(self, fullname):
        global found
        path = self.get_filename(fullname)
        source, number = re.subn(rb"\\bNAME\\b", b"another_name", self.get_data(path))
        found += number
        return self.source_to_code(source, path)

class Finder:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname.partition(".")[0] != "opentelemetry":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec

sys.meta_path.insert(0, Finder)
"""

# Two pools, one of them closed, are reported to a reader; in a forked child the other goes on.
PROGRAM = """
import json, os
from opentelemetry import context, metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry

open_pool, closed_pool = (ConnectionPool(0, 1, os.environ["DATABASE_URL"], name=name) for name in ("open", "closed"))
off = ConnectionPool(0, 1, os.environ["DATABASE_URL"], name="off", observer=Telemetry(spans="off", histograms=[]))

def check_out(pool):
    with pool.connection():
        return trace.get_current_span().is_recording()

is_current_before = check_out(open_pool)
memory, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

def counts():
    data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    found = {metric.name: metric.data.data_points for metric in data}
    waits = {point.attributes["db.client.connection.pool.name"]: point.count
             for point in found["db.client.connection.wait_time"]}
    checkouts = {name: 0 for name in ("open", "closed", "off")}
    for point in found["otel_pgpool.checkouts"]:
        checkouts[point.attributes["db.client.connection.pool.name"]] += point.value
    return waits, checkouts

is_current = [check_out(pool) for pool in (open_pool, closed_pool, off)]
with trace.get_tracer("shop").start_as_current_span("order"):
    check_out(open_pool)
closed_pool.close()
before = counts()
read, write = os.pipe()
if os.fork() == 0:
    check_out(open_pool)
    waits, checkouts = counts()
    os.write(write, json.dumps([waits["open"], checkouts["open"]]).encode())
    os._exit(0)
child = json.loads(os.read(read, 1000))
open_pool.close()
off.close()
print(json.dumps({
    "is_current": [is_current_before, *is_current],
    "spans": sorted(span.name for span in memory.get_finished_spans()),
    "counts": before,
    "after": counts() == before,
    "child": child,
    "found": globals().get("found", 1),
}))
"""

EXPECTED = {
    "is_current": [False, True, True, False],
    "spans": ["order", *["pool.checkout"] * 3, "pool.connect", "pool.wait"],
    "counts": [{"open": 2, "closed": 1}, {"open": 3, "closed": 1, "off": 1}],
    "after": True,
    "child": [1, 1],
}


def private_names() -> set[str]:
    """Return the private names that the module reads from objects of OpenTelemetry."""
    tree = ast.parse(Path(sdk_internals.__file__).read_text(encoding="utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asked = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr")
        if isinstance(node.args[1], ast.Constant) and isinstance(node.args[1].value, str)
    }
    return {name for name in read | asked if name.startswith("_")}


NAMES = sorted({*private_names(), "_SPAN_KEY", "metric_reader"} - {"_batch_processor"})


def run(program: str, environ: dict[str, str]) -> str:
    """Run a program in an environment without other variables of OpenTelemetry; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", program],
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_telemetry_goes_on_without_a_private_part(name: str, dsn: str) -> None:
    """Spans, waits and totals are reported; at most, a forked child's counts begin where its parent's ended."""
    told = json.loads(run(RENAMED.replace("NAME", name) + PROGRAM, {"DATABASE_URL": dsn}))
    assert told.pop("found") > 0, f"OpenTelemetry has no {name} any more"
    assert told.pop("child") in (EXPECTED["child"], [3, 4])
    assert told == {key: value for key, value in EXPECTED.items() if key != "child"}


def test_private_parts_that_are_there_are_used(dsn: str) -> None:
    """In a forked child the counts begin at 0."""
    told = json.loads(run(PROGRAM, {"DATABASE_URL": dsn}))
    assert told == {**EXPECTED, "found": 1}


def test_shutdown_without_the_batch_processor() -> None:
    """The providers of ``configure()`` shut down by the public method, which exports what is queued."""
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_pgpool.otlp import configure
memory = InMemorySpanExporter()
with configure("shop", otlp=False) as providers:
    from otel_pgpool.otlp.providers import OtlpSpanProcessor
    memory.record = lambda: None
    providers.tracer_provider.add_span_processor(OtlpSpanProcessor(memory, lambda: 1000.0))
    trace.get_tracer("shop").start_span("order").end()
print(len(memory.get_finished_spans()))
"""
    assert run(RENAMED.replace("NAME", "_batch_processor") + program, {}) == "1\n"


def test_loggers_are_the_sdks() -> None:
    """The SDK has a logger of each name whose records are limited."""
    program = (
        "import logging, opentelemetry.sdk.metrics, opentelemetry.sdk.trace.export\n"
        "print(*logging.root.manager.loggerDict)"
    )
    assert set(sdk_internals.REPEATING_LOGGERS) <= set(run(program, {}).split())
