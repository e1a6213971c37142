"""Texts that others wrote, on their way to a terminal: none of what is in them is obeyed, and all of it is bounded."""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import otel_pgpool
from otel_pgpool.cli.errors import CommandError
from otel_pgpool.cli.printing import print_recording
from otel_pgpool.cli.recording import CONTENTS
from otel_pgpool.cli.terminal import MAX_TEXT, Output, escape, make_line, warn
from otel_pgpool.demo.live import View

STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""What rich itself writes in colour."""
NASTY = (
    "\x1b]0;title\x07\x1b[2J\r\n\x00\x7f\x85\x9b31m\u202e\u2066\u200b\ufeff\u2028[red]no[/red] :skull: "
    "\ud800e\u0301\u0301\u3164"
)
TEXTS = st.one_of(
    st.text(), st.text(st.characters(categories=("Cc", "Cf", "Cs", "Mn", "Zs", "Zl", "Zp"))), st.just(NASTY)
)
HUGE = st.builds(str.__mul__, st.sampled_from(["x", NASTY, "\u0301", "\x1b[2J", "a b"]), st.just(5_000))
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -1, "1e999", "NaN", "-Infinity", "9" * 5000, 2**64, "1"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(
    st.builds(lambda text: {"stringValue": text}, TEXTS),
    st.builds(lambda number: {"doubleValue": number}, NUMBERS),
    st.builds(lambda number: {"intValue": number}, NUMBERS),
    st.builds(lambda texts: {"arrayValue": {"values": [{"stringValue": text} for text in texts]}}, st.lists(TEXTS)),
    SCALARS,
)
FIELDS = [
    "otel_pgpool.wait_time",
    "otel_pgpool.hold_time",
    "otel_pgpool.outcome",
    "otel_pgpool.path",
    "thread.name",
    "error.type",
    "db.client.connection.pool.name",
    "otel_pgpool.held",
    "otel_pgpool.connection.id",
    "otel_pgpool.transaction.status",
    "otel_pgpool.checked_out_at",
    "otel_pgpool.event",
    "otel_pgpool.reason",
    "service.name",
]


def assert_harmless(text: str) -> None:
    """No character but line ends that a terminal obeys, hides, or turns the others round for."""
    for character in set(STYLE.sub("", text)) - {"\n"}:
        assert character.isprintable(), f"{character!r} is in it"
        assert unicodedata.category(character) not in {"Mn", "Me"}, f"{character!r} is in it"


@given(st.one_of(TEXTS, HUGE), st.integers(20, MAX_TEXT))
def test_what_is_escape(text: str, limit: int) -> None:
    """It is one harmless line, bounded, the same when it goes through again; what was harmless stays as it is."""
    out = escape(text, limit)
    assert_harmless(out)
    assert "\n" not in out
    assert len(out) <= limit
    assert escape(out, limit) == out
    out.encode("utf-8")
    if len(text) <= limit and text.isascii() and text.isprintable():
        assert out == text


@given(st.lists(st.one_of(TEXTS, st.tuples(TEXTS, st.just("bold"))), max_size=5))
def test_a_line(parts: list[str | tuple[str, str]]) -> None:
    """On a terminal the parts stand as they are shown, styled by us alone: markup in them is text."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=10_000)
    console.print(make_line(*parts), soft_wrap=True)
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert_harmless(written)
    plain = "".join(escape(part if isinstance(part, str) else part[0]) for part in parts)
    assert STYLE.sub("", written) == f"{plain}\n"


def test_letters_stay() -> None:
    """Names in any script are shown, accents included, however they were composed."""
    assert escape("Zoë Zoe\u0308 Ελένη 東京 日本語 ├─ 😀") == "Zoë Zoë Ελένη 東京 日本語 ├─ 😀"


def test_the_middle_is_what_is_left_out() -> None:
    """A long error says at its end what it was."""
    out = escape("start " + "x" * 100_000 + " end")
    assert len(out) == MAX_TEXT
    assert out.startswith("start x")
    assert out.endswith("x end")
    assert "x ... x" in out


@given(st.one_of(TEXTS, HUGE))
@example(NASTY)
def test_a_warning(text: str) -> None:
    """Is one line of stderr."""
    with pytest.MonkeyPatch.context() as patch:
        stderr = io.StringIO()
        patch.setattr("sys.stderr", stderr)
        warn(text)
    assert_harmless(stderr.getvalue())
    assert stderr.getvalue().count("\n") == 1
    assert len(stderr.getvalue()) < MAX_TEXT + 20


@given(st.one_of(TEXTS, HUGE), st.sampled_from(["otel_pgpool", "opentelemetry.exporter.otlp.proto.grpc"]))
@settings(max_examples=50, deadline=None)
def test_a_log_record_in_a_view(text: str, logger: str) -> None:
    """The view does not print one as it is, nor all of a long one."""
    console = Console(file=io.StringIO(), width=100)
    View(console, 15).emit(_record(logger, text))
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert_harmless(written)
    assert len(written) <= MAX_TEXT + 30


def _record(logger: str, text: str) -> Any:

    return logging.makeLogRecord({"name": logger, "msg": text, "levelno": logging.WARNING, "levelname": "WARNING"})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_without_these_characters(encoding: str) -> None:
    """What its encoding does not have is written as an escape."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    output = Output(stream, "stdout")
    output.write("worker 東京")
    output.check()
    written = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert written == "worker 東京".encode(encoding, "backslashreplace")


# Recordings


@st.composite
def attributes(draw: st.DrawFn, likely: bool = True) -> Any:
    names = draw(st.lists(st.sampled_from(FIELDS), unique=True))
    found = [{"key": name, "value": draw(VALUES)} for name in names]
    if likely and "otel_pgpool.wait_time" not in names:
        found.append({"key": "otel_pgpool.wait_time", "value": {"doubleValue": 0.1}})
        if "db.client.connection.pool.name" not in names:
            found.append({"key": "db.client.connection.pool.name", "value": {"stringValue": draw(TEXTS)}})
    return found


TIMES = st.one_of(st.sampled_from(["1", "1000000001", "5000000000"]), NUMBERS)
EVENTS = st.builds(
    lambda name, time, found: {"name": name, "timeUnixNano": time, "attributes": found},
    st.one_of(TEXTS, st.sampled_from(["pool.acquired", "pool.long_hold"])),
    TIMES,
    attributes(likely=False),
)
LINKS = st.builds(lambda span, found: {"spanId": span, "attributes": found}, st.sampled_from("ab"), attributes())
SPANS = st.builds(
    lambda name, ids, start, end, found, events, links: {
        "name": name,
        "traceId": "t",
        "spanId": ids[0],
        "parentSpanId": ids[1],
        "startTimeUnixNano": start,
        "endTimeUnixNano": end,
        "attributes": found,
        "events": events,
        "links": links,
    },
    st.one_of(st.sampled_from(["pool.checkout", "pool.wait"]), TEXTS),
    st.tuples(st.sampled_from("abc"), st.sampled_from("abc")),
    TIMES,
    TIMES,
    attributes(),
    st.lists(EVENTS, max_size=3),
    st.lists(LINKS, max_size=3),
)
POINTS = st.builds(
    lambda kind, value, found: {kind: value, "attributes": found, "startTimeUnixNano": "1", "timeUnixNano": "9"},
    st.sampled_from(["asInt", "asDouble"]),
    NUMBERS,
    attributes(likely=False),
)
METRICS = st.builds(
    lambda name, points: {"name": name, "sum": {"dataPoints": points}},
    st.sampled_from(["otel_pgpool.checkouts", "otel_pgpool.connections.discarded", "otel_pgpool.retries"]),
    st.lists(POINTS, max_size=3),
)


def reported(files: dict[str, str], *, as_json: bool = False) -> str | None:
    """Return what the command prints about a recording; None if the command refuses it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTENTS:
            Path(folder, name).write_text(files.get(name, ""))
        try:
            print_recording(Path(folder), Output(stream, "stdout"), slowest=10, as_json=as_json)
        except CommandError as error:
            assert_harmless(str(error))
            return None
    written: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return written.decode()


def traces(*spans: Any, **resource: Any) -> str:
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}) + "\n"


def checkout(**changes: Any) -> dict[str, Any]:
    attributes = [
        {"key": "otel_pgpool.wait_time", "value": {"doubleValue": 0.1}},
        {"key": "db.client.connection.pool.name", "value": {"stringValue": "shop"}},
        *changes.pop("more", ()),
    ]
    times = {"startTimeUnixNano": "1", "endTimeUnixNano": "1000000001"}
    return {"name": "pool.checkout", "traceId": "t", "spanId": "a", "attributes": attributes, **times, **changes}


@given(st.lists(SPANS, max_size=4), st.lists(METRICS, max_size=3), attributes(likely=False), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_recording_is_reported_or_refused(spans: Any, metrics: Any, resource: Any, as_json: bool) -> None:
    """Whatever the values are, the report has nothing harmful in it, or one line says that it cannot be made."""
    metrics = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]})
    out = reported({"traces.jsonl": traces(*spans, attributes=resource), "metrics.jsonl": metrics}, as_json=as_json)
    if out is not None:
        assert_harmless(out)


@given(st.one_of(TEXTS, HUGE), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_name_of_anything_is_reported(text: str, as_json: bool) -> None:
    """A recording with such texts in the place of every name is drawn, harmless and no longer than lines are."""
    named = [
        {"key": name, "value": {"stringValue": text}}
        for name in ("thread.name", "otel_pgpool.outcome", "error.type", "otel_pgpool.path")
    ]
    flagged = [{"key": "otel_pgpool.checked_out_at", "value": {"stringValue": text}}]
    events = [{"name": name, "timeUnixNano": "5", "attributes": flagged} for name in (text, "pool.long_hold")]
    caller = checkout(name=text, spanId="b")
    out = reported(
        {"traces.jsonl": traces(caller, checkout(parentSpanId="b", more=named, events=events))}, as_json=as_json
    )
    assert out is not None
    assert_harmless(out)
    if not as_json:
        assert len(out) < 10_000


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"resourceSpans":' + "[" * 100_000,
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"n","traceId":"t","spanId":"s","startTimeUnixNano":"1",'
        '"endTimeUnixNano":"2","attributes":[{"key":"k","value":'
        + '{"arrayValue":{"values":[' * 300
        + "]}}" * 300
        + "}]}]}]}]}",
    ],
    ids=["lists", "after the opening", "values in values"],
)
def test_depth(line: str) -> None:
    """A recording that is nested too deeply is refused in a line."""
    assert reported({"traces.jsonl": line}) is None


def test_many_events_and_kinds() -> None:
    """A checkout of 20,000 events and a run of as many outcomes are reported at once, in a bounded number of lines."""
    events = [{"name": f"e{n}", "timeUnixNano": str(1 + n)} for n in range(20_000)]
    others = [
        checkout(spanId=f"s{n}", more=[{"key": "otel_pgpool.outcome", "value": {"stringValue": f"o{n}"}}])
        for n in range(20_000)
    ]
    out = reported({"traces.jsonl": traces(checkout(events=events, endTimeUnixNano="2000000001"), *others)})
    assert out is not None
    assert len(out.splitlines()) < 200
    assert "and 19,980 more" in " ".join(out.replace("\xa0", " ").split())


def test_a_file_of_absurd_size(tmp_path: Path) -> None:
    """One that no demo would write, a line without an end, and what is no file at all: each is refused, at once."""
    for name in CONTENTS:
        (tmp_path / name).touch()
    for size, where in ((1 << 40, "traces.jsonl"), ((1 << 26) + 10, "metrics.jsonl")):
        with (tmp_path / where).open("r+b") as file:
            file.truncate(size)  # of zeros that take no room
        with pytest.raises(CommandError, match="does not contain OTLP JSON lines"):
            print_recording(tmp_path, Output(None, "stdout"), slowest=3, as_json=False)
        (tmp_path / where).write_bytes(b"")
    (tmp_path / "traces.jsonl").unlink()
    (tmp_path / "traces.jsonl").symlink_to("/dev/zero")
    with pytest.raises(CommandError, match="cannot be read: not a regular file"):
        print_recording(tmp_path, Output(None, "stdout"), slowest=3, as_json=False)


def test_only_one_place_makes_lines() -> None:
    """One function of the command and the demo makes rich's texts, one prints: there is no other call."""
    package = Path(otel_pgpool.__file__).parent
    modules = [path for folder in ("cli", "demo") for path in (package / folder).glob("*.py")]
    makers = [path.name for path in modules for _ in re.findall(r"\bText[.(]", path.read_text())]
    printers = [path.name for path in modules for _ in re.findall(r"(?<![.\w])print\(", path.read_text())]
    assert (makers, printers) == (["terminal.py"], ["terminal.py"])
