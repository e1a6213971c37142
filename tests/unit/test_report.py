"""The report of a recorded run, from spans of the telemetry's shape; nothing here needs a database or waits."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file import FileMetricExporter, FileSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_pgpool.cli import printing, terminal
from otel_pgpool.cli.answers import Answer, Blocker
from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import Mark, Report, SlowCheckout, Spread, WaitedFor, percentile, read
from otel_pgpool.demo.endpoint import Endpoint, place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opentelemetry.trace import Span

START = 1_700_000_000_000_000_000
POOL = {"db.client.connection.pool.name": "shop"}


def at(seconds: float) -> int:
    return START + round(seconds * 1e9)


class Recorder:
    """Writes checkouts as the telemetry would, at times of our choosing."""

    def __init__(self, folder: Path) -> None:
        self.recording = Recording(folder)
        folder.mkdir()
        for path in self.recording.files:
            path.touch()
        self._provider = TracerProvider(resource=Resource.create({"service.name": "till"}), shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(self.recording.traces)))
        self._tracer = self._provider.get_tracer("otel_pgpool")

    def request(self, name: str, start: float, end: float) -> Span:
        span = self._tracer.start_span(name, start_time=at(start))
        span.end(at(end))
        return span

    def checkout(
        self,
        start: float,
        wait: float,
        hold: float | None,
        *,
        parent: Span | None = None,
        thread: str = "worker-01",
        waited_for: dict[Span, float] | None = None,
        blocked_by: Sequence[Span] = (),
        events: dict[str, tuple[float, dict[str, Any]]] | None = None,
        **attributes: Any,
    ) -> Span:
        context = trace.set_span_in_context(parent) if parent else None
        span = self._tracer.start_span("pool.checkout", context=context, attributes=POOL, start_time=at(start))
        told = {"otel_pgpool.wait_time": float(wait), "otel_pgpool.path": "idle", "thread.name": thread}
        if hold is not None:
            told |= {"otel_pgpool.hold_time": float(hold), "otel_pgpool.outcome": "committed"}
        span.set_attributes(told | {name.replace("__", "."): value for name, value in attributes.items()})
        for name, (time, details) in (events or {}).items():
            span.add_event(name, details, timestamp=at(start + time))
        for blocker in blocked_by:
            span.add_link(blocker.get_span_context(), {"otel_pgpool.relation": "blocked_by"})
        if waited_for is not None:
            links = [
                trace.Link(holder.get_span_context(), {"otel_pgpool.held": held, "otel_pgpool.connection.id": number})
                for number, (holder, held) in enumerate(waited_for.items(), 1)
            ]
            waiting = trace.set_span_in_context(span)
            self._tracer.start_span("pool.wait", context=waiting, links=links, start_time=at(start)).end(
                at(start + wait)
            )
        span.end(at(start + wait + (hold or 0.0)))
        return span

    def counters(self, **totals: dict[tuple[str, str] | None, int]) -> None:
        exporter = FileMetricExporter(self.recording.metrics)
        provider = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)
        meter = provider.get_meter("otel_pgpool")
        for name, points in totals.items():
            counter = meter.create_counter(name.replace("__", "."))
            for attribute, value in points.items():
                counter.add(value, dict([attribute] if attribute else []))
        provider.shutdown()

    def report(self, slowest: int = 3) -> Report:
        self._provider.shutdown()
        return read(self.recording, slowest)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "run")


def drawn(report: Report, width: int = 80, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = terminal.make_console(terminal.Output(stream, "stdout"))
    console.width = width
    printing.print_report(console, report)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


# Figures


@pytest.mark.parametrize(
    ("count", "rank", "expected"),
    [(1, 50, 1), (1, 99, 1), (2, 50, 1), (3, 50, 2), (100, 50, 50), (100, 99, 99), (101, 99, 100), (1000, 99, 990)],
)
def test_percentiles_are_the_nearest_measured_value(count: int, rank: float, expected: float) -> None:
    """Nearest rank over 1..count: the smallest value that so many percent do not exceed."""
    assert percentile([float(value) for value in range(1, count + 1)], rank) == expected


def test_a_spread_needs_no_order_and_nothing_gives_none() -> None:
    """Durations come in any order; without any there is no spread, rather than zeros."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(count=3, p50=2.0, p99=3.0, max=3.0)
    assert Spread.of([]) is None


def test_waits_are_of_all_checkouts_and_holds_of_those_served(recorder: Recorder) -> None:
    """A checkout that timed out has waited, and held nothing."""
    recorder.checkout(0, 0.1, 0.5)
    recorder.checkout(0, 0.4, None, otel_pgpool__outcome="timeout", error__type="timeout")
    report = recorder.report()
    assert report.wait == Spread(2, 0.1, 0.4, 0.4)
    assert report.hold == Spread(1, 0.5, 0.5, 0.5)
    assert report.outcomes == {"committed": 1, "timeout": 1}
    assert report.errors == {"timeout": 1}


def test_totals_are_the_counters_last_values(recorder: Recorder) -> None:
    """Counters are cumulative: of two collections the later one counts, and attributes keep their series apart."""
    recorder.checkout(0, 0, 0.1)
    recorder.counters(otel_pgpool__retries={None: 1}, otel_pgpool__connections__created={None: 2})
    recorder.counters(
        otel_pgpool__retries={None: 3},
        otel_pgpool__connections__created={None: 7},
        otel_pgpool__connections__discarded={("otel_pgpool.reason", "broken"): 4, ("otel_pgpool.reason", "idle"): 1},
        db__client__connection__timeouts={None: 5},
        otel_pgpool__long_holds={None: 6},
    )
    report = recorder.report()
    assert (report.retries, report.created, report.timeouts, report.long_holds) == (3, 7, 5, 6)
    assert report.discarded == {"broken": 4, "idle": 1}


def test_no_two_figures_have_one_name(recorder: Recorder) -> None:
    """Who waited in the queue is one thing, who was served from it another."""
    holder = recorder.checkout(0, 0, 1.0)
    recorder.checkout(0, 1.0, 0.1, waited_for={holder: 0.5}, otel_pgpool__path="queued")
    recorder.checkout(0, 0.5, None, waited_for={holder: 0.5}, otel_pgpool__path="queued", error__type="timeout")
    recorder.counters(otel_pgpool__checkouts={("otel_pgpool.path", "idle"): 1, ("otel_pgpool.path", "queued"): 1})
    report = recorder.report()
    assert (report.waited, report.paths) == (2, {"idle": 1, "queued": 1})
    lines = drawn(report)
    names = [line.split("  ")[1] for line in lines if line.startswith("  ") and line[2] != " "]
    assert len(names) == len(set(names))
    assert sum(line.count("queued") for line in lines) == 1
    assert "served      2  by path: idle 1 · queued 1" in "\n".join(lines)


def test_an_empty_recording_is_reported_as_such(recorder: Recorder) -> None:
    """No traffic: zeros, no percentiles, no bars, and no crash."""
    report = recorder.report()
    assert (report.checkouts, report.wait, report.slowest) == (0, None, ())
    assert not any("slowest" in line for line in drawn(report))


# The slowest, and whom they waited for


def test_the_slowest_come_first(recorder: Recorder) -> None:
    """By wait and hold together, as many as asked for."""
    for number, hold in enumerate([0.2, 0.9, 0.1, 0.5]):
        recorder.checkout(0, 0.05, hold, thread=f"worker-{number}")
    assert [slow.thread for slow in recorder.report(3).slowest] == ["worker-1", "worker-3", "worker-0"]


def test_an_expected_hold_is_not_slow(recorder: Recorder) -> None:
    """Only its wait counts, until it has taken longer than was declared."""
    expected = {"otel_pgpool__expected_hold": True, "otel_pgpool__long_hold": False}
    recorder.checkout(0, 0.05, 300, thread="listener", **expected)
    recorder.checkout(0, 0.4, 300, thread="late listener", **expected)
    recorder.checkout(0, 0.05, 200, thread="batch", **{**expected, "otel_pgpool__long_hold": True})
    recorder.checkout(0, 0.05, 0.1, thread="request")
    slowest = [slow.thread for slow in recorder.report(4).slowest]
    assert slowest == ["batch", "late listener", "request", "listener"]


def test_waited_for_names_the_holders_by_the_links_of_the_wait(recorder: Recorder) -> None:
    """Each link leads to the holder's own span: its request, its thread, and how long it held in the end."""
    holders = {
        recorder.checkout(0, 0, 1.5, parent=recorder.request("GET /report", 0, 2), thread="worker-07"): 0.4,
        recorder.checkout(0, 0, 0.9, parent=recorder.request("POST /till", 0, 2), thread="worker-08"): 0.7,
    }
    recorder.checkout(0.4, 1.2, 2.0, parent=recorder.request("GET /stock", 0, 4), waited_for=holders)
    slow = recorder.report().slowest[0]
    assert slow.request == "GET /stock"
    assert slow.waited_for == (
        WaitedFor(connection_id=2, held_then=0.7, held=0.9, request="POST /till", thread="worker-08"),
        WaitedFor(connection_id=1, held_then=0.4, held=1.5, request="GET /report", thread="worker-07"),
    )


def test_a_holder_that_left_no_span_is_named_by_its_connection(recorder: Recorder) -> None:
    """A hold that has not ended is not recorded; the link alone tells what is known."""
    endless = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    recorder.checkout(0, 0.5, 0.1, waited_for={endless: 0.3})
    report = recorder.report()
    assert report.slowest[0].waited_for == (WaitedFor(connection_id=1, held_then=0.3),)
    assert any("connection 1" in line and "300 ms" in line for line in drawn(report))


def test_events_are_marks_at_their_times(recorder: Recorder) -> None:
    """Whatever order they were added in; the flagged hold tells its transaction and its place in the code."""
    flagged = {
        "otel_pgpool.transaction.status": "in_transaction",
        "otel_pgpool.checked_out_at": "/app/stock.py:12 report\n/app/web.py:3 serve",
    }
    recorder.checkout(
        0,
        0.5,
        1.5,
        events={"pool.long_hold": (1.5, flagged), "pool.acquired": (0.5, {"otel_pgpool.path": "queued"})},
    )
    report = recorder.report()
    assert any(line.endswith("events       acquired 500 ms · long_hold 1.50 s") for line in drawn(report))
    slow = report.slowest[0]
    assert slow.marks == (Mark(0.5, "acquired"), Mark(1.5, "long_hold"))
    assert slow.transaction == "in_transaction"
    assert slow.checked_out_at == "/app/stock.py:12 report"


# What PostgreSQL said

BLOCKED = {
    "otel_pgpool.held": 2.0,
    "otel_pgpool.connection.pid": 43,
    "postgresql.state": "active",
    "postgresql.wait_event_type": "Lock",
    "postgresql.wait_event": "transactionid",
    "postgresql.blocking.pids": [42, 41],
    "postgresql.blocking.lock.mode": "ShareLock",
    "postgresql.blocking.lock.relation": "orders",
    "otel_pgpool.blocking.traces": ["a" * 32, ""],
    "otel_pgpool.blocking.checked_out_at": ["/app/pay.py:7 pay", ""],
    "otel_pgpool.blocking.applications": ["shop", "nightly"],
    "otel_pgpool.blocking.states": ["idle in transaction", ""],
    "otel_pgpool.blocking.root.pid": 40,
    "otel_pgpool.blocking.root.trace": "b" * 32,
    "otel_pgpool.blocking.root.checked_out_at": "/app/stock.py:9 count",
    "otel_pgpool.blocking.root.application": "stock",
    "otel_pgpool.blocking.root.state": "idle in transaction",
}


def test_the_last_answer_of_postgresql_is_told(recorder: Recorder) -> None:
    """The session, its blockers and the head of the chain; a linked blocker with its request and its thread."""
    payment = recorder.request("POST /payment", 0, 4)
    blocker = recorder.checkout(0, 0, 0.1, parent=payment, thread="worker-07", otel_pgpool__connection__pid=42)
    events = {"pool.long_hold": (1.0, {}), "pool.database_state": (2.0, BLOCKED)}
    recorder.checkout(0, 0, 3.0, blocked_by=[blocker], events=events)
    report = recorder.report(slowest=1)
    first = Blocker(42, "idle in transaction", "shop", "/app/pay.py:7 pay", "a" * 32, "POST /payment", "worker-07")
    second, root = (
        Blocker(41, application="nightly"),
        Blocker(40, "idle in transaction", "stock", "/app/stock.py:9 count", "b" * 32),
    )
    assert report.slowest[0].database == Answer(
        2.0, "active", "Lock", "transactionid", "ShareLock", "orders", (first, second), root
    )
    lines = drawn(report)
    start = next(number for number, line in enumerate(lines) if "in database" in line)
    assert [line.strip() for line in lines[start : start + 8]] == [
        "in database  active, waits for ShareLock on orders, after 2.00 s",
        "blocked by   POST /payment (worker-07), pid 42, idle in transaction",
        "checked out at pay.py:7 pay",
        f"trace {'a' * 32}",
        "blocked by   'nightly', pid 41",
        "chain's head 'stock', pid 40, idle in transaction",
        "checked out at stock.py:9 count",
        f"trace {'b' * 32}",
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"postgresql.state": "idle in transaction", "postgresql.wait_event_type": "Client"}, "waits for the client"),
        ({"postgresql.state": "active"}, "active, after 1.00 s"),
        (
            {"postgresql.state": "active", "postgresql.wait_event_type": "IO", "postgresql.wait_event": "DataFileRead"},
            "active, waits for IO DataFileRead, after 1.00 s",
        ),
        ({}, "state unknown, after 1.00 s"),
        ({"postgresql.blocking.pids": [0]}, "a prepared transaction"),
        ({"postgresql.blocking.pids": [5, 6, 7], "postgresql.state": "active"}, "and 1 more"),
    ],
)
def test_what_is_unknown_is_left_out(recorder: Recorder, told: dict[str, Any], expected: str) -> None:
    """Holds that wait for nobody are told apart; a blocker of which little is known does no harm."""
    recorder.checkout(0, 0, 2.0, events={"pool.database_state": (1.0, {"otel_pgpool.held": 1.0, **told})})
    assert any(expected in line for line in drawn(recorder.report()))


@pytest.mark.parametrize("width", [40, 80])
def test_an_answer_is_told_to_its_end(recorder: Recorder, width: int) -> None:
    """What does not fit the terminal goes on in the next lines, below its beginning; a long word is broken."""
    waits = {
        **BLOCKED,
        "postgresql.blocking.lock.relation": "otel_pgpool_demo_52bb62b6.orders",
        "otel_pgpool.held": 1.0,
    }
    request = recorder.request("POST /orders/{id}/cancellation/of/a/long/name", 0, 3)
    recorder.checkout(0, 0, 2.0, parent=request, thread="worker-07", events={"pool.database_state": (1.0, waits)})
    lines = drawn(recorder.report(), width)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    for told in (
        "POST /orders",
        "worker-07 · waited 0 ms, held 2.00 s, committed",
        "in database  active, waits for ShareLock on otel_pgpool_demo_52bb62b6.orders, after 1.00 s",
        "checked out at pay.py:7 pay",
        f"trace {'b' * 32}",
    ):
        assert "".join(told.split()) in text


def test_a_long_hold_without_an_answer_says_so(recorder: Recorder) -> None:
    """PostgreSQL was not asked, or the hold ended before its answer."""
    recorder.checkout(0, 0, 2.0, events={"pool.long_hold": (1.0, {})})
    assert "    in database  no answer before the end of the hold" in drawn(recorder.report())


def test_a_checkout_about_which_nobody_asked_has_no_answer(recorder: Recorder) -> None:
    """Neither in the report's values nor in its lines."""
    recorder.checkout(0, 0, 2.0)
    report = recorder.report()
    assert report.slowest[0].database is None
    assert not any("in database" in line for line in drawn(report))


@pytest.mark.parametrize("wrong", [{"otel_pgpool.held": "long"}, {"postgresql.blocking.pids": 7}])
def test_an_answer_of_a_wrong_type_is_refused(recorder: Recorder, wrong: dict[str, Any]) -> None:
    """As any other recording that is none of the pool's."""
    recorder.checkout(0, 0, 2.0, events={"pool.database_state": (1.0, {"otel_pgpool.held": 1.0, **wrong})})
    with pytest.raises((TypeError, ValueError)):
        recorder.report()


# Bars


def slow(wait: float, hold: float | None) -> SlowCheckout:
    return SlowCheckout("GET /", "worker-01", "f" * 32, "committed", wait, hold)


@pytest.mark.parametrize("width", [36, 76, 106])
@pytest.mark.parametrize(("wait", "hold"), [(0.5, 1.5), (0.0, 2.0), (2.0, None), (0.33, 0.77), (0.001, 0.4)])
def test_bars_are_to_scale(width: int, wait: float, hold: float | None) -> None:
    """The edge between wait and hold, and the end, are where they belong, to half a cell."""
    waited, held = printing.cells(slow(wait, hold), 2.0, width)
    assert abs(waited - wait / 2.0 * width) <= 0.5
    assert abs(waited + held - (wait + (hold or 0.0)) / 2.0 * width) <= 0.5


def test_a_bar_is_never_empty_nor_longer_than_the_scale() -> None:
    """A microsecond is seen beside a minute, and a run of zeros does not divide by zero."""
    assert printing.cells(slow(0.0, 1e-6), 60.0, 40) == (0, 1)
    assert printing.cells(slow(0.0, 0.0), 0.0, 40) == (0, 1)
    assert sum(printing.cells(slow(30.0, 30.0), 60.0, 40)) == 40


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", "░" * 9 + "█" * 27), ("ascii", "." * 9 + "#" * 27)])
def test_wait_and_hold_differ_without_colour(recorder: Recorder, encoding: str, expected: str) -> None:
    """By character, in Unicode and where the terminal has ASCII only."""
    recorder.checkout(0, 0.5, 1.5)
    assert f"    {expected}" in drawn(recorder.report(), 40, encoding)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (4e-7, "<0.01 ms"),
        (1.2e-5, "0.01 ms"),
        (0.00123, "1.23 ms"),
        (0.0456, "46 ms"),
        (0.99949, "999 ms"),
        (0.9996, "1.00 s"),
        (61.0, "61.00 s"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Two or three digits, and the unit that suits."""
    assert terminal.duration(seconds) == text


@pytest.mark.parametrize("width", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_report_fits_the_terminal(recorder: Recorder, width: int, encoding: str) -> None:
    """No line is wider than the terminal (40 at least), nor wider than is good to read."""
    holder = recorder.checkout(0, 0, 1.5, parent=recorder.request("GET /a/rather/long/route", 0, 2))
    recorder.checkout(0.4, 1.2, 2.0, waited_for={holder: 0.4}, events={"pool.acquired": (1.2, {})})
    lines = drawn(recorder.report(), width, encoding)
    assert max(map(len, lines)) <= max(40, min(width, terminal.MAX_WIDTH))
    if width >= 40:
        assert [line for line in lines if line != line.rstrip()] == []
    if encoding == "ascii":
        assert all(line.isascii() for line in lines)


def test_the_report_is_plain_json(recorder: Recorder) -> None:
    """Every figure survives JSON."""
    recorder.checkout(0, 0.1, 0.2)
    stream = io.StringIO()
    printing.print_json(terminal.Output(stream, "stdout"), recorder.report(), {"workers": 3})
    document = json.loads(stream.getvalue())
    assert document["slowest"][0]["hold"] == 0.2
    assert (document["service"], document["workers"]) == ("till", 3)


# The files


def test_a_line_that_was_cut_short_is_left_out(recorder: Recorder) -> None:
    """By a full disk or a kill; the rest counts, and the recording knows. What is no OTLP JSON at all is refused."""
    recorder.checkout(0, 0.1, 0.5)
    recorder.report()
    recording = recorder.recording
    line = recording.traces.read_text()
    recording.traces.write_text(f"{line[:-30]}{line}{line}{line[:5]}")
    assert read(recording).checkouts == 1
    assert recording.cut_short == {recording.traces}
    recording.traces.write_text("of an earlier run\n")
    with pytest.raises(ValueError, match="Expecting value"):
        read(recording)


# Where to look next


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        ("http://localhost:4318", "", "http/protobuf"),
        ("http://localhost:4317", "", "grpc"),
        ("https://otlp.example:443/", "", "grpc"),
        ("http://localhost:4317", "http/protobuf", "http/protobuf"),
        ("http://localhost:4318", "grpc", "grpc"),
    ],
)
def test_the_protocol_is_the_variables_else_the_ports(url: str, protocol: str, expected: str) -> None:
    """OTEL_EXPORTER_OTLP_PROTOCOL decides; unset, 4318 means HTTP."""
    assert Endpoint.parse(url, {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}).protocol == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:4317",
        "grpc://localhost:4317",
        "http://localhost",
        "http://:4317",
        "http://localhost:port",
        "http://localhost:99999",
        "http://localhost:4318/v1/traces",
        "http://localhost:4318?x=1",
        "http://local host:4318",
        "http://me:hunter2@localhost:4318",
    ],
)
def test_other_urls_are_refused_without_their_passwords(url: str) -> None:
    """The message says what is expected."""
    with pytest.raises(ValueError, match="expected http://host:port or https://host:port") as refusal:
        Endpoint.parse(url, {})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:4317", "http://localhost:4317"),
        ("https://host:4317/v1/?api-key=w0rd", "https://host:4317"),
        ("https://host:4317/?api-key=w0rd@host", ""),
        ("https://host/#w0rd", "https://host"),
        ("http://a:w0rd@host:4317/w0rd", "http://host:4317"),
        ("http://a:w0rd@[::1]:4317", "http://[::1]:4317"),
        ("http://a:w0rd/w0rd@host:4317", ""),
        ("http://a:1/w0rd@host:4317", ""),
        ("http://a:1?w0rd@host:4317", ""),
        ("ftp://a@b:w0rd@host", "ftp://host"),
        ("w0rd", ""),
        ("w0rd:4317", ""),
        ("", ""),
    ],
)
def test_what_is_shown_of_an_endpoint(url: str, expected: str) -> None:
    """Scheme, host, port and path; nothing at all where a secret may reach into them."""
    assert place(url) == expected
    with pytest.raises(ValueError, match="expected http://host:port") as refusal:
        Endpoint.parse(f"{url}?w0rd", {})
    assert "w0rd" not in str(refusal.value)


def test_the_jaeger_url_searches_for_long_holds() -> None:
    """On the endpoint's host, for the service and the searchable attribute; IPv6 hosts keep their brackets."""
    url = Endpoint.parse("http://[::1]:4317", {}).jaeger_search("my shop")
    assert url == (
        "http://[::1]:16686/search?service=my%20shop&tags=%7B%22otel_pgpool.long_hold%22%3A%22true%22%7D"
        "&lookback=1h&limit=20"
    )
