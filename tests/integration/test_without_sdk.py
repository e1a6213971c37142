"""Programs without the SDK, and programs that set their providers late: each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

BLOCKER = """
import sys

class Blocker:
    "As if the SDK, its exporters and its instrumentations were not installed."
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.instrumentation")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
"""


def run(script: str, dsn: str, **environ: str) -> dict[str, Any]:
    """Run a program in which every warning is an error; return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**inherited, "PYTHONPATH": str(ROOT), "DSN": dsn, **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**told, "stderr": done.stderr}


def test_without_the_sdk(dsn: str) -> None:
    """Where the SDK is not installed the pool works, with its logs, says nothing of it and has imported none of it."""
    told = run(
        BLOCKER
        + """
import json, logging, os, time
from opentelemetry import trace
from otel_pgpool import ConnectionPool, PoolTimeout
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("otel_pgpool").addHandler(handler)
with ConnectionPool(1, 2, os.environ["DSN"], name="shop", long_hold=0.05) as pool:
    with pool.connection() as conn, pool.connection():
        assert not trace.get_current_span().get_span_context().is_valid
        try:
            pool.getconn(timeout=0.1)
        except PoolTimeout:
            pass
        while not records or not pool.stats().long_holds:
            time.sleep(0.01)
        holders = [holder.trace_id for holder in pool.holders()]
    stats = pool.stats()
print(json.dumps({
    "modules": sorted(name for name in sys.modules if name.startswith("opentelemetry.")),
    "events": sorted({vars(record).get("otel_pgpool.event", "") for record in records}),
    "checkouts": sum(stats.checkouts.values()), "timeouts": stats.timeouts, "holders": holders,
}))
""",
        dsn,
    )
    assert not [name for name in told["modules"] if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
    assert {"long_hold", "timeout"} <= set(told["events"])
    assert (told["checkouts"], told["timeouts"], told["holders"]) == (2, 1, [None, None])
    assert told["stderr"] == ""


def test_the_sdk_is_not_imported_by_the_pool(dsn: str) -> None:
    """Where the SDK is installed, the pool does not import it either: that is the program's affair."""
    told = run(
        """
        import json, os, sys
        from otel_pgpool import ConnectionPool
        with ConnectionPool(1, 1, os.environ["DSN"]) as pool, pool.connection():
            pass
        print(json.dumps({"modules": [name for name in sys.modules if name.startswith("opentelemetry.sdk")]}))
        """,
        dsn,
    )
    assert told["modules"] == []


def test_a_remote_parent_without_the_sdk(dsn: str) -> None:
    """Without an SDK the caller's context is handed on as it is: a service between two traced ones breaks no trace."""
    told = run(
        BLOCKER
        + """
import json, os
from opentelemetry import trace
from otel_pgpool import ConnectionPool
parent = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1)))
with ConnectionPool(0, 1, os.environ["DSN"]) as pool, trace.use_span(parent):
    with pool.connection():
        inside = trace.get_current_span().get_span_context()
    after = trace.get_current_span() is parent
print(json.dumps({"inside": [inside.trace_id, inside.span_id], "after": after}))
""",
        dsn,
    )
    assert (told["inside"], told["after"]) == ([0xABC, 0xDEF], True)


def test_providers_set_after_the_pool_was_made(dsn: str) -> None:
    """A pool made before the program sets its providers reports to them from then on."""
    told = run(
        """
        import json, os
        from otel_pgpool import ConnectionPool
        pool = ConnectionPool(1, 1, os.environ["DSN"], name="early")
        with pool.connection():
            pass

        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([reader]))
        with pool.connection():
            pass
        def figure(point):
            return point.count if hasattr(point, "count") else point.value

        points = {
            metric.name: sum(map(figure, metric.data.data_points))
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        pool.close()
        print(json.dumps({
            "spans": [[span.name, span.instrumentation_scope.name] for span in spans.get_finished_spans()],
            "points": points,
        }))
        """,
        dsn,
    )
    assert told["spans"] == [["pool.checkout", "otel_pgpool"]]
    assert told["points"]["db.client.connection.max"] == 1
    assert told["points"]["db.client.connection.wait_time"] == 1
    assert told["points"]["otel_pgpool.checkouts"] == 2
    assert told["points"]["otel_pgpool.connections.created"] == 1
