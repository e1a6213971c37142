"""The recording of a run: three files of OTLP JSON lines, which exporters write, and the report reads."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENTS = {
    "traces.jsonl": ("resourceSpans", "scopeSpans", "spans"),
    "metrics.jsonl": ("resourceMetrics", "scopeMetrics", "metrics"),
    "logs.jsonl": ("resourceLogs", "scopeLogs", "logRecords"),
}
"""Names of the nested lists in a line of each file."""
MAX_LINE = 1 << 26
"""Maximum size in bytes of a line, which is one batch of an exporter."""
MAX_DEPTH = 8
"""Maximum number of nested lists in an attribute's value."""
MAX_DURATION = 1e9
"""Maximum duration in seconds, about 30 years."""
MAX_NUMBER = 1 << 64
"""Maximum time in nanoseconds since the epoch, and maximum count; OTLP limits both."""
LINE_START = '{"resource'
"""The beginning of every line, including one that was cut short."""


class Event(NamedTuple):
    """An event of a span; ``time`` is in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: dict[str, Any]


class Link(NamedTuple):
    """A link of a span: the linked span, and the link's attributes."""

    span_id: str
    attributes: dict[str, Any]


class Span(NamedTuple):
    """A recorded span; ``start`` and ``end`` are in nanoseconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[Link, ...]


class Recording:
    """The files ``traces.jsonl``, ``metrics.jsonl`` and ``logs.jsonl`` in one folder."""

    def __init__(self, folder: Path) -> None:
        """Set the paths of the files, without accessing them."""
        self.folder = folder
        self.files = self.traces, self.metrics, self.logs = tuple(folder / name for name in CONTENTS)
        self.cut_short: set[Path] = set()
        """Files with a line cut short, as by a full disk; the content of that line is missing."""

    def spans(self) -> Iterator[Span]:
        """Iterate over the spans, in the order in which they ended."""
        for span in self._items(self.traces):
            yield Span(
                name=str(span["name"]),
                trace_id=str(span["traceId"]),
                span_id=str(span["spanId"]),
                parent_id=str(span.get("parentSpanId", "")),
                start=_whole(span["startTimeUnixNano"]),
                end=_whole(span["endTimeUnixNano"]),
                attributes=_attributes(span),
                events=tuple(
                    Event(str(event["name"]), _whole(event["timeUnixNano"]), _attributes(event))
                    for event in span.get("events", ())
                ),
                links=tuple(Link(str(link["spanId"]), _attributes(link)) for link in span.get("links", ())),
            )

    def service(self) -> str:
        """Return ``service.name`` of the recorded program; empty if nothing was recorded."""
        resources = (resource for path in self.files for resource in self._resources(path))
        return str(_attributes(next(resources, {}).get("resource", {})).get("service.name", ""))

    def totals(self, metric: str, attribute: str = "") -> dict[str, int]:
        """Return the last value of a counter, by the value of one of its attributes (without one: under ``""``)."""
        return {
            str(_attributes(point).get(attribute, "")): _whole(point.get("asInt", point.get("asDouble", 0)))
            for found in self._items(self.metrics)
            if found["name"] == metric
            for point in found.get("sum", {}).get("dataPoints", ())
        }

    def _items(self, path: Path) -> Iterator[dict[str, Any]]:
        """Iterate over the spans, metrics or log records of a file."""
        _, scopes, items = CONTENTS[path.name]
        for resource in self._resources(path):
            for scope in resource.get(scopes, ()):
                yield from scope.get(items, ())

    def _resources(self, path: Path) -> Iterator[dict[str, Any]]:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with path.open(encoding="utf-8", errors="replace") as lines:
            while line := lines.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise ValueError("a line is too long")
                try:
                    batch = json.loads(line) if line.strip() else {}
                except ValueError:
                    if not LINE_START.startswith(line.rstrip()[: len(LINE_START)]):
                        raise
                    self.cut_short.add(path)
                else:
                    yield from batch.get(CONTENTS[path.name][0], ())


def seconds(value: object) -> float:
    """Validate a recorded duration.

    Raises:
        ValueError: the value is not a duration.
    """
    if not isinstance(value, float | int) or not 0 <= value <= MAX_DURATION:
        raise ValueError("a duration is out of range")
    return float(value)


def _whole(value: str | float) -> int:
    """Return a time or a count; OTLP JSON writes 64-bit integers as strings."""
    number = int(value)
    if abs(number) > MAX_NUMBER:
        raise ValueError("a number is out of range")
    return number


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in holder.get("attributes", ())}


def _value(value: dict[str, Any], depth: int = 0) -> Any:
    """Return an attribute's value. OTLP JSON writes 64-bit integers as strings, and the type as the key."""
    if depth > MAX_DEPTH:
        raise ValueError("a value is nested too deeply")
    for kind, content in value.items():
        if kind == "arrayValue":
            return [_value(item, depth + 1) for item in content.get("values", ())]
        if kind == "intValue":
            return int(content)
        return float(content) if kind == "doubleValue" else content
    return None
