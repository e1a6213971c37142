"""What tests have seen of telemetry, compared with the registry of the signals, both ways.

A signal that a test sees has to be declared, with its attributes, their types and values; otherwise the test fails.
What the tests of a session have seen is in a file, to which their processes and forked children add. When the whole
suite has run, everything that is declared has to be there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import ExponentialHistogram, Gauge, Histogram

from tests.support.signal_registry import SCOPE, registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.support.otlp_views import LogRecord, MetricPoint
    from tests.support.signal_registry import Signal

SEEN = "PGPOOL_TESTS_SEEN"
"""The variable that names the file of the session."""

TYPES = {bool: "boolean", int: "int", float: "double", str: "string"}
FOR_HANDLERS = "otel.event.name"
"""The attribute of a record that becomes its event name in OpenTelemetry."""

_seen: set[str] = set()


class UndeclaredError(AssertionError):
    """Something is emitted that the registry does not declare so."""


def check_span(span: Any) -> None:
    """Check a span of this package, or of the demo's shop: the SDK's, or one that a receiver has got.

    Raises:
        UndeclaredError: the span, an event, a link or an attribute is not declared.
    """
    spans = registry().of_sort("span")
    kind = getattr(span.kind, "name", span.kind).lower()
    if _scope(span) == SCOPE:
        signal = _declared(spans.get(span.name), f"span {span.name}")
    else:
        (signal,) = (each for each in spans.values() if each.name.startswith("shop.") and each.details["kind"] == kind)
    if signal.details["kind"] != kind:
        raise UndeclaredError(f"span {span.name} of the kind {kind}")
    _check(signal, span.attributes)
    for event in span.events:
        declared = _declared(registry().of_sort("event").get(event.name), f"event {event.name}")
        if declared.details["event_of"] != span.name:
            raise UndeclaredError(f"event {event.name} of the span {span.name}")
        _check(declared, event.attributes)
    for link in span.links:
        links = [each for each in registry().of_sort("links").values() if each.details["link_of"] == span.name]
        fitting = [each for each in links if each.attributes == set(link.attributes)]
        _check(_declared(fitting[0] if fitting else None, f"link of {span.name}: {link.attributes}"), link.attributes)


def check_metric(metric: Any) -> None:
    """Check a metric of the SDK.

    Raises:
        UndeclaredError: the metric, its instrument, its unit or an attribute is not declared.
    """
    instruments = {Histogram: "histogram", ExponentialHistogram: "histogram", Gauge: "gauge"}
    data = metric.data
    instrument = instruments.get(type(data)) or ("counter" if data.is_monotonic else "updowncounter")
    _check_metric(metric.name, instrument, metric.unit, [point.attributes for point in data.data_points])


def check_point(point: MetricPoint) -> None:
    """Check a point of a metric that a receiver has got.

    Raises:
        UndeclaredError: the metric, its instrument, its unit or an attribute is not declared.
    """
    instruments = {"sum": "counter" if point.monotonic else "updowncounter", "exponential_histogram": "histogram"}
    _check_metric(point.name, instruments.get(point.type, point.type), point.unit, [point.attributes])


def _check_metric(name: str, instrument: str, unit: str, points: Iterable[Any]) -> None:
    signal = _declared(registry().of_sort("metric").get(name), f"metric {name}")
    declared = signal.details["instrument"], signal.details["unit"]
    if declared != (instrument, unit):
        raise UndeclaredError(f"metric {name} as {(instrument, unit)}, not {declared}")
    for attributes in points:
        _check(signal, attributes)


def check_record(attributes: Mapping[str, Any], level: str) -> None:
    """Check the attributes and the level of a record of the standard library; a record without an event has neither.

    Raises:
        UndeclaredError: the event or an attribute is not declared.
    """
    own = dict(attributes)
    name = own.pop(FOR_HANDLERS, None)
    if name is not None:
        signal = _declared(registry().of_sort("log").get(name), f"log {name}")
        if signal.details["level"] != level:
            raise UndeclaredError(f"log {name} with the level {level}")
        _check(signal, own)
    elif SCOPE in " ".join(own):
        raise UndeclaredError(f"record without an event: {own}")


def check_log(record: LogRecord) -> None:
    """Check a log record that a receiver has got. The SDK's handler adds where the record was written.

    Raises:
        UndeclaredError: the event or an attribute is not declared.
    """
    if record.event_name:
        signal = _declared(registry().of_sort("log").get(record.event_name), f"log {record.event_name}")
        added = {name for name in record.attributes if name.startswith("code.")} - signal.attributes
        _check(signal, {name: value for name, value in record.attributes.items() if name not in added})


def _scope(span: Any) -> str:
    scope: str = (span.instrumentation_scope if hasattr(span, "instrumentation_scope") else span.scope).name
    return scope


def _declared(signal: Signal | None, what: str) -> Signal:
    if signal is None:
        raise UndeclaredError(what)
    return signal


def _check(signal: Signal, attributes: Mapping[str, Any] | None) -> None:
    """Check attributes of a signal, and note what was seen."""
    attributes, what = attributes or {}, f"{signal.sort} {signal.name}"
    if missing := signal.required - set(attributes):
        raise UndeclaredError(f"{what} without the required {sorted(missing)}")
    if more := set(attributes) - signal.attributes:
        raise UndeclaredError(f"{what} with {sorted(more)}")
    note([what])
    for name, value in attributes.items():
        _check_value(what, name, value)
        note([f"{what}, attribute {name}"])


def _check_value(what: str, name: str, value: Any) -> None:
    declared, members = registry().types[name], registry().enums.get(name)
    if not _fits(value, declared):
        raise UndeclaredError(f"{what}: {name} is {value!r}, not of the type {declared}")
    if members is not None:
        if value not in members:
            raise UndeclaredError(f"{what}: {name} is {value!r}, none of {sorted(members)}")
        note([f"value {name} = {value}"])


def _fits(value: Any, declared: str) -> bool:
    if isinstance(value, (list, tuple)):
        return declared.endswith("[]") and all(_fits(item, declared.removesuffix("[]")) for item in value)
    return next(name for kind, name in TYPES.items() if isinstance(value, kind)) == declared


# The record of the session


def note(keys: Iterable[str]) -> None:
    """Add to the file of the session what this process has not added yet."""
    new = {*keys} - _seen
    _seen.update(new)
    if new and (path := os.environ.get(SEEN)):
        number = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(number, "".join(f"{key}\n" for key in sorted(new)).encode())
        finally:
            os.close(number)


def never_seen() -> list[str]:
    """Return what is declared and has been seen by no process of the session."""
    seen = Path(os.environ[SEEN]).read_text(encoding="utf-8").splitlines()
    return sorted(registry().keys.difference(seen))


def own_metrics(data: Any) -> Iterator[Any]:
    """Yield the metrics of this package in what a reader of the SDK has collected."""
    for resource in () if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            if scope.scope.name == SCOPE:
                yield from scope.metrics
