"""A program on a pool, from ``otlp.configure()`` to the wire: all three spans, all seventeen metrics, the logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from psycopg2.extensions import parse_dsn

from otel_pgpool import __version__
from tests.support.metric_names import BOUNDS, GAUGE, HISTOGRAM, LEVEL, METRICS, POOL, TOTAL
from tests.support.receivers import GrpcReceiver, HttpReceiver, Receiver
from tests.support.servers import ClonedServer
from tests.support.telemetry import assert_exactly, served, start_attributes, unserved, waited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.otlp_views import LogRecord, MetricPoint, Span

ROOT = Path(__file__).parents[2]
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
SECRETS = ("lit3ral", "param3ter", "d3tail")

# Every path and every outcome that a program can meet in a second, by real causes.
PROGRAM = """
import json, os, threading, time
import psycopg2
from opentelemetry import trace
from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.internals import core_of
from otel_pgpool.otlp import configure

def until(condition):
    while not condition():
        time.sleep(0.005)

dsn = os.environ["DSN"]
admin = psycopg2.connect(dsn)
admin.autocommit = True

with configure("shop") as providers:
    tracer = trace.get_tracer("shop")
    missing = iter([{"port": 1}])
    pool = ConnectionPool(0, 1, dsn, name="shop", long_hold=60, credentials=lambda: next(missing, {}))
    with tracer.start_as_current_span("order"):
        with pool.connection() as conn:  # one failed attempt, then new
            pid = conn.get_backend_pid()
            with tracer.start_as_current_span("query"), conn.cursor() as cur:
                cur.execute("select 'lit3ral', %s", ["param3ter"])
            waiter = threading.Thread(target=lambda: pool.putconn(pool.getconn()), name="waiter")
            waiter.start()  # queued
            until(lambda: pool.stats().waiting)
            try:
                pool.getconn(timeout=0)
            except PoolTimeout:
                pass
            core_of(pool).holds_now()[0].acquired -= 60  # as if it had been held for a minute
            until(lambda: pool.stats().long_holds)
            time.sleep(0.01)
        waiter.join()
        try:
            with pool.connection() as conn, conn.cursor() as cur:  # idle, and the commit is refused
                cur.execute("create temporary table t (w text unique deferrable initially deferred)")
                cur.execute("insert into t values ('d3tail'), ('d3tail')")
        except psycopg2.IntegrityError:
            pass
        with admin.cursor() as cur:
            cur.execute("select pg_terminate_backend(%s, 10000)", [pid])
        time.sleep(0.06)
        with pool.connection():  # found dead, replaced
            pass
    stats = pool.stats()
    providers.flush()
    pool.close()
    print(json.dumps({"pid": pid, "stats": stats.as_dict(), "flushed": list(providers.undelivered)}))
    providers.shutdown(30)
admin.close()
"""


class Run(NamedTuple):
    """What arrived, and what the program knew."""

    receiver: Receiver
    told: dict[str, Any]
    dsn: str

    def spans(self, name: str) -> list[Span]:
        """In the order of their starts."""
        return sorted((span for span in self.receiver.spans if span.name == name), key=lambda span: span.start)

    def points(self, name: str) -> list[MetricPoint]:
        """Those of the last collection in which the metric was there."""
        points = [point for point in self.receiver.metrics if point.name == name]
        last = max(point.time for point in points)
        return [point for point in points if point.time == last]

    def logs(self, event: str) -> list[LogRecord]:
        return [record for record in self.receiver.logs if record.attributes.get("otel_pgpool.event") == event]


@pytest.fixture(scope="module", params=[GrpcReceiver, HttpReceiver], ids=["grpc", "http"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """One run of the program for each protocol, on a server that asks for a password."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    with ClonedServer() as server, request.param() as receiver:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            # Without the database's state: its query may or may not end within the long hold, and has tests of its own.
            env={
                **inherited,
                **receiver.environ,
                "OTEL_PGPOOL_DATABASE_STATE": "off",
                "PYTHONPATH": str(ROOT),
                "DSN": server.dsn,
            },
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield Run(receiver, json.loads(done.stdout), server.dsn)


def test_checkouts(run: Run) -> None:
    """Five checkouts, each with exactly its attributes, of their types."""
    new, queued, timed_out, refused, replaced = run.spans("pool.checkout")
    pid = run.told["pid"]
    lent = {"connection.id": 1, "connection.pid": pid}
    assert_exactly(new.attributes, served(run.dsn, path="new", retries=1, long_hold=True, **lent))
    assert_exactly(
        queued.attributes, served(run.dsn, path="queued", outcome="released", **lent) | {"thread.name": "waiter"}
    )
    assert_exactly(timed_out.attributes, unserved(run.dsn, "idle", "timeout", "timeout"))
    assert_exactly(refused.attributes, served(run.dsn, outcome="rolled_back", error="23505", **lent))
    assert_exactly(replaced.attributes, served(run.dsn, path="new", retries=1, **{"connection.id": 2}))
    assert {span.kind for span in run.spans("pool.checkout")} == {"INTERNAL"}
    statuses = [span.status for span in (new, queued, timed_out, refused, replaced)]
    assert statuses == ["UNSET", "UNSET", "ERROR", "ERROR", "UNSET"]
    assert timed_out.status_description.startswith("no connection is idle")
    assert "unique constraint" in refused.status_description


def test_parents(run: Run) -> None:
    """A checkout stands under the caller's span, or the block it is nested in; waits, connects, queries under it."""
    (order,), (query,) = run.spans("order"), run.spans("query")
    new, queued, timed_out, refused, replaced = run.spans("pool.checkout")
    assert [span.parent_span_id for span in (new, refused, replaced)] == [order.span_id] * 3
    assert timed_out.parent_span_id == new.span_id
    assert queued.parent_span_id == ""
    assert query.parent_span_id == new.span_id
    assert {wait.parent_span_id for wait in run.spans("pool.wait")} == {new.span_id, queued.span_id, replaced.span_id}
    connects = run.spans("pool.connect")
    assert [connect.parent_span_id for connect in connects] == [new.span_id, new.span_id, replaced.span_id]
    assert {span.trace_id for span in connects} == {order.trace_id}


def test_events(run: Run) -> None:
    """Retries, hand-overs and the long hold, in their order and within their spans."""
    events = [[event.name for event in span.events] for span in run.spans("pool.checkout")]
    assert events == [
        ["pool.retry", "pool.acquired", "pool.long_hold"],
        ["pool.acquired"],
        [],
        [],
        ["pool.retry", "pool.acquired"],
    ]
    for span in run.spans("pool.checkout"):
        times = [span.start, *(event.time for event in span.events), span.end]
        assert times == sorted(times)
    retry, acquired, long_hold = run.spans("pool.checkout")[0].events
    assert_exactly(
        retry.attributes, {"otel_pgpool.attempt": 1, "error.type": "OperationalError", "otel_pgpool.delay": float}
    )
    assert_exactly(acquired.attributes, {"otel_pgpool.path": "new"})
    assert_exactly(
        long_hold.attributes,
        {
            "otel_pgpool.long_hold.threshold": 60.0,
            "otel_pgpool.held": float,
            "otel_pgpool.connection.pid": run.told["pid"],
            "otel_pgpool.transaction.status": "in_transaction",
            "otel_pgpool.checked_out_at": str,
            "code.file.path": str,
            "code.line.number": int,
            "code.function.name": str,
            "code.stacktrace": str,
        },
    )


def test_waits(run: Run) -> None:
    """A checkout that queued behind a holder links to its span; one that waited for a new connection has no link."""
    new, queued = run.spans("pool.checkout")[:2]
    waits = {wait.parent_span_id: wait for wait in run.spans("pool.wait")}
    (link,) = waits[queued.span_id].links
    assert (link.trace_id, link.span_id) == (new.trace_id, new.span_id)
    assert_exactly(link.attributes, {"otel_pgpool.held": float, "otel_pgpool.connection.id": 1})
    assert waits[new.span_id].links == ()
    for wait in waits.values():
        assert wait.kind == "INTERNAL"
        assert_exactly(wait.attributes, waited(len(wait.links)))
    blocker = {name.rpartition(".")[2]: value for name, value in waits[queued.span_id].attributes.items()}
    assert blocker["held"] == link.attributes["otel_pgpool.held"]
    assert (blocker["pid"], blocker["trace_id"]) == (run.told["pid"], new.trace_id)


def test_connects(run: Run) -> None:
    """Each attempt is a CLIENT span; the one that failed says why."""
    failed, second, third = run.spans("pool.connect")
    where = start_attributes(run.dsn)
    assert {span.kind for span in (failed, second, third)} == {"CLIENT"}
    assert_exactly(failed.attributes, {**where, "otel_pgpool.attempt": 1, "error.type": "OperationalError"})
    assert_exactly(second.attributes, {**where, "otel_pgpool.attempt": 2})
    assert_exactly(third.attributes, {**where, "otel_pgpool.attempt": 1})
    assert [span.status for span in (failed, second, third)] == ["ERROR", "UNSET", "UNSET"]
    assert "Connection refused" in failed.status_description


def test_the_seventeen_metrics(run: Run) -> None:
    """Names, units and kinds of all seventeen, as they arrive; each point names its pool."""
    ours = [point for point in run.receiver.metrics if point.scope.name == "otel_pgpool"]
    kinds = {
        ("sum", True): TOTAL,
        ("sum", False): LEVEL,
        ("gauge", None): GAUGE,
        ("histogram", None): HISTOGRAM,
    }
    assert {point.name: (kinds[point.type, point.monotonic], point.unit) for point in ours} == METRICS
    assert all(point.description for point in ours)
    assert {point.attributes[POOL] for point in ours} == {"shop"}


def test_values(run: Run) -> None:
    """Levels and totals are what stats() said at that moment, and the pool's end is in the totals."""
    stats = run.told["stats"]
    connection = "db.client.connection."

    def value(name: str) -> float | None:
        (point,) = run.points(name)
        return point.value

    def values(name: str, attribute: str) -> dict[str, float | None]:
        return {point.attributes[attribute]: point.value for point in run.points(name)}

    assert values(f"{connection}count", "db.client.connection.state") == {"used": 0, "idle": 1}
    assert (value(f"{connection}max"), value(f"{connection}idle.min"), value(f"{connection}idle.max")) == (1, 0, 1)
    assert value(f"{connection}pending_requests") == 0
    assert value(f"{connection}timeouts") == stats["timeouts"] == 1
    assert value("otel_pgpool.utilization") == 0.0
    assert value("otel_pgpool.oldest_hold") == 0.0
    assert (
        values("otel_pgpool.checkouts", "otel_pgpool.path") == stats["checkouts"] == {"idle": 1, "queued": 1, "new": 2}
    )
    assert value("otel_pgpool.retries") == stats["retries"] == 2
    assert value("otel_pgpool.long_holds") == stats["long_holds"] == 1
    assert value("otel_pgpool.connections.created") == stats["created"] == 2
    assert stats["discarded"] == {"broken": 1}
    assert values("otel_pgpool.connections.discarded", "otel_pgpool.reason") == {"broken": 1, "closed": 1}


def test_durations(run: Run) -> None:
    """Histograms with their boundaries, failures apart from successes, and exemplars that lead to the spans."""
    expected = {
        "wait_time": {None: 4, "timeout": 1},
        "use_time": {None: 4},
        "create_time": {None: 2, "OperationalError": 1},
    }
    for name, counts in expected.items():
        points = run.points(f"db.client.connection.{name}")
        assert {point.attributes.get("error.type"): point.count for point in points} == counts
        assert {point.bounds for point in points} == {BOUNDS[name]}
        spans = run.spans("pool.connect" if name == "create_time" else "pool.checkout")
        first = [point for point in run.receiver.metrics if point.name == f"db.client.connection.{name}"]
        led_to = {exemplar.span_id for point in first for exemplar in point.exemplars}
        assert led_to
        assert led_to <= {span.span_id for span in spans}


def test_series_stop(run: Run) -> None:
    """The collection of the shutdown, after the pool was closed, has its totals and durations, and no level."""
    last = dict.fromkeys((LEVEL, GAUGE, TOTAL, HISTOGRAM), 0)
    for point in run.receiver.metrics:
        kind = METRICS[point.name][0]
        last[kind] = max(last[kind], point.time)
    assert last[LEVEL] == last[GAUGE] < last[TOTAL] == last[HISTOGRAM]


def test_logs(run: Run) -> None:
    """Each record has its severity and its attributes, and is in the trace of its checkout."""
    new, _queued, timed_out, _refused, replaced = run.spans("pool.checkout")
    expected = {
        "outage_started": ("ERROR", None),
        "outage_ended": ("INFO", None),
        "timeout": ("ERROR", timed_out),
        "long_hold": ("WARN", new),
        "long_hold_returned": ("INFO", new),
        "connection_lost": ("WARN", replaced),
    }
    for event, (severity, span) in expected.items():
        (record,) = run.logs(event)
        assert record.severity_text == severity
        assert record.attributes[POOL] == "shop"
        assert str(record.body).startswith("pool shop: ")
        if span is not None:
            assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id), event
    (timeout,) = run.logs("timeout")
    (described,) = timeout.attributes["otel_pgpool.holders"]
    assert f"pid {run.told['pid']}" in described
    assert new.trace_id in described


def test_scope_and_resource(run: Run) -> None:
    """Spans and metrics come from the scope `otel_pgpool` in its version, and from the service of that name."""
    ours = [span for span in run.receiver.spans if span.name.startswith("pool.")]
    points = [point for point in run.receiver.metrics if point.name in METRICS]
    assert {(each.scope.name, each.scope.version, each.scope.schema_url) for each in [*ours, *points]} == {
        ("otel_pgpool", __version__, SCHEMA)
    }
    signals = [*run.receiver.spans, *run.receiver.metrics, *run.receiver.logs]
    assert {each.resource["service.name"] for each in signals} == {"shop"}
    assert {record.scope.name for record in run.receiver.logs} == {"otel_pgpool"}


def test_nothing_secret_on_the_wire(run: Run) -> None:
    """Neither the password nor SQL, parameters or values of rows have left the program."""
    wire = repr([run.receiver.spans, run.receiver.metrics, run.receiver.logs])
    assert "pool.checkout" in wire
    assert [secret for secret in (*SECRETS, parse_dsn(run.dsn)["password"]) if secret in wire] == []
