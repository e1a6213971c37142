"""The recording of a run: three files of OTLP JSON lines, which exporters write, and the report reads."""

from __future__ import annotations

import errno
import json
import stat
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = ("traces.jsonl", "metrics.jsonl", "logs.jsonl")
MAX_SIZE = 1 << 30
"""Maximum size in bytes of a file; the longest demo writes less than half of it."""
MAX_LINE = 1 << 26
"""Maximum size in bytes of a line, which is one batch of an exporter."""
MAX_DEPTH = 8
"""Maximum number of nested lists in an attribute's value."""
MAX_TIME = (1 << 64) - 1
MAX_COUNT = (1 << 63) - 1
LINE_START = '{"resource'
"""The beginning of every line, including one that was cut short."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a span; ``time`` is in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a span: the linked span, and the link's attributes."""

    span_id: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """A recorded span; ``start`` and ``end`` are in nanoseconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()


class Recording:
    """The files ``traces.jsonl``, ``metrics.jsonl`` and ``logs.jsonl`` in one folder."""

    def __init__(self, folder: Path) -> None:
        """Set the paths of the files, without accessing them."""
        self.folder = folder
        self.files = self.traces, self.metrics, self.logs = tuple(folder / name for name in FILES)
        self.cut_short: set[Path] = set()
        """Files with a line cut short, as by a full disk; the content of that line is missing."""

    def spans(self) -> Iterator[Span]:
        """Iterate over the spans, in the order in which they ended."""
        for scope in self._scopes(self.traces, "resourceSpans", "scopeSpans"):
            for span in scope.get("spans", ()):
                yield _parse_span(span)

    def service(self) -> str:
        """Return ``service.name`` of the recorded program; empty if nothing was recorded."""
        for path, resources in zip(self.files, ("resourceSpans", "resourceMetrics", "resourceLogs"), strict=True):
            for batch in self._lines(path):
                for resource in batch.get(resources, ()):
                    return str(_attributes(resource.get("resource", {})).get("service.name", ""))
        return ""

    def totals(self, metric: str, attribute: str = "") -> dict[str, int]:
        """Return the last value of a counter, by the value of one of its attributes (without one: under ``""``)."""
        totals: dict[str, int] = {}
        for found in self._metrics():
            if found["name"] == metric:
                for point in _points(found):
                    totals[str(_attributes(point).get(attribute, ""))] = _number(point)
        return totals

    def traffic(self) -> tuple[int, int] | None:
        """Return when the pool's metrics began, and when they first included all checkouts, in ns since the epoch.

        The result is None if there are no metrics. It does not depend on spans, which a sampler may drop.
        """
        began, ended, most = [], 0, 0
        for found in self._metrics():
            points = _points(found)
            began += [_time(point["startTimeUnixNano"]) for point in points if "startTimeUnixNano" in point]
            if found["name"] == "otel_pgpool.checkouts" and (served := sum(map(_number, points))) > most:
                most, ended = served, max(_time(point["timeUnixNano"]) for point in points)
        return (min(began), ended) if began and ended else None

    def log_events(self) -> dict[str, int]:
        """Return the number of log records for each ``otel_pgpool.event``."""
        events: dict[str, int] = {}
        for scope in self._scopes(self.logs, "resourceLogs", "scopeLogs"):
            for record in scope.get("logRecords", ()):
                name = _attributes(record).get("otel_pgpool.event")
                if name is not None:
                    events[str(name)] = events.get(str(name), 0) + 1
        return events

    def _metrics(self) -> Iterator[dict[str, Any]]:
        for scope in self._scopes(self.metrics, "resourceMetrics", "scopeMetrics"):
            yield from scope.get("metrics", ())

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with _open(path) as lines:
            while line := lines.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise ValueError("a line is too long")
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError:
                        if not LINE_START.startswith(line.rstrip()[: len(LINE_START)]):
                            raise
                        self.cut_short.add(path)

    def _scopes(self, path: Path, resources: str, scopes: str) -> Iterator[dict[str, Any]]:
        for batch in self._lines(path):
            for resource in batch.get(resources, ()):
                yield from resource.get(scopes, ())


def _open(path: Path) -> IO[str]:
    """Open a file of a recording.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: the file is larger than any demo's.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if found.st_size > MAX_SIZE:
        raise ValueError("the file is too large")
    return path.open(encoding="utf-8", errors="replace")


def _parse_span(span: dict[str, Any]) -> Span:
    return Span(
        name=str(span["name"]),
        trace_id=str(span["traceId"]),
        span_id=str(span["spanId"]),
        parent_id=str(span.get("parentSpanId", "")),
        start=_time(span["startTimeUnixNano"]),
        end=_time(span["endTimeUnixNano"]),
        attributes=_attributes(span),
        events=tuple(Event(str(e["name"]), _time(e["timeUnixNano"]), _attributes(e)) for e in span.get("events", ())),
        links=tuple(Link(str(link["spanId"]), _attributes(link)) for link in span.get("links", ())),
    )


def _points(metric: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of a counter or a histogram, which have a start time; no points for other metrics."""
    points: list[dict[str, Any]] = metric.get("sum", metric.get("histogram", {})).get("dataPoints", [])
    return points


def _number(point: dict[str, Any]) -> int:
    number = int(point.get("asInt", point.get("asDouble", 0)))
    if abs(number) > MAX_COUNT:
        raise ValueError("a count is too large")
    return number


def _time(text: str) -> int:
    """Return a time in nanoseconds since the epoch, which OTLP limits to 64 bits."""
    time = int(text)
    if not 0 <= time <= MAX_TIME:
        raise ValueError("a time is out of range")
    return time


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in holder.get("attributes", ())}


def _value(value: dict[str, Any], depth: int = 0) -> Any:
    """Return an attribute's value. OTLP JSON writes 64-bit integers as strings, and the type as the key."""
    if depth > MAX_DEPTH:
        raise ValueError("a value is nested too deeply")
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "doubleValue":
            return float(content)
        if kind == "arrayValue":
            return [_value(item, depth + 1) for item in content.get("values", ())]
        return content
    return None
