"""The registry of the signals in `telemetry/registry`: what the package may emit, and what it says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.documents import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = ROOT / "telemetry/registry"
SCOPE = "otel_pgpool"
LISTS = ("attributes", "attribute_groups", "spans", "events", "metrics", "metric_refinements")

CONVENTIONS = {
    "code.file.path": "string",
    "code.function.name": "string",
    "code.line.number": "int",
    "code.stacktrace": "string",
    "db.client.connection.pool.name": "string",
    "db.client.connection.state": "string",
    "db.collection.name": "string",
    "db.namespace": "string",
    "db.operation.name": "string",
    "db.system.name": "string",
    "error.type": "string",
    "http.request.method": "string",
    "http.response.status_code": "int",
    "http.route": "string",
    "server.address": "string",
    "server.port": "int",
    "thread.name": "string",
}
"""The attributes of the semantic conventions to which the registry refers: Python's package has no types."""

POOL = "db.client.connection.pool.name"
CONVENTIONAL_METRICS = {
    "db.client.connection.count": ("updowncounter", "{connection}", "db.client.connection.state"),
    "db.client.connection.max": ("updowncounter", "{connection}"),
    "db.client.connection.idle.min": ("updowncounter", "{connection}"),
    "db.client.connection.idle.max": ("updowncounter", "{connection}"),
    "db.client.connection.pending_requests": ("updowncounter", "{request}"),
    "db.client.connection.timeouts": ("counter", "{timeout}"),
    "db.client.connection.wait_time": ("histogram", "s"),
    "db.client.connection.use_time": ("histogram", "s"),
    "db.client.connection.create_time": ("histogram", "s"),
}
"""The metrics of the semantic conventions that the registry imports, with instrument, unit and further attributes."""


@dataclass
class Signal:
    """A span, an event of a span, the links of a span, a log event or a metric."""

    sort: str
    name: str
    required: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    details: dict[str, Any] = field(default_factory=dict)
    """What the registry says besides, with the annotations for this package."""

    @property
    def keys(self) -> Iterator[str]:
        """Texts for the signal and each of its attributes."""
        yield f"{self.sort} {self.name}"
        yield from (f"{self.sort} {self.name}, attribute {attribute}" for attribute in self.attributes)


@dataclass
class Registry:
    types: dict[str, str]
    """The type of each attribute, of this package and of the conventions."""
    enums: dict[str, dict[str, str]]
    """The members of each enum, with their descriptions."""
    signals: list[Signal]

    def of_sort(self, sort: str) -> dict[str, Signal]:
        return {signal.name: signal for signal in self.signals if signal.sort == sort}

    @property
    def keys(self) -> set[str]:
        """Texts for all that is declared: signals, their attributes, and members of enums."""
        members = {f"value {name} = {member}" for name, members in self.enums.items() for member in members}
        return members.union(*(signal.keys for signal in self.signals))


def load() -> dict[str, list[dict[str, Any]]]:
    """Return the entries of all files, by the name of their list."""
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in (*LISTS, "imports")}
    for path in sorted(FOLDER.glob("*.yaml")):
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name in LISTS:
            entries[name] += loaded.get(name, [])
        entries["imports"] += [loaded.get("imports", {})]
    return entries


@cache
def registry() -> Registry:
    """Return the registry, with references to groups of attributes resolved."""
    entries = load()
    types, enums = dict(CONVENTIONS), {}
    for each in entries["attributes"]:
        name, kind = each["key"], each["type"]
        if isinstance(kind, dict):
            enums[name] = {member["value"]: member["brief"] for member in kind["members"]}
        types[name] = kind if isinstance(kind, str) else "string"
    groups = {group["id"]: group.get("attributes", []) for group in entries["attribute_groups"]}
    links = [group for group in entries["attribute_groups"] if "link_of" in _own(group)]
    signals = [
        *(_signal("span", each["type"], each, groups) for each in entries["spans"]),
        *(_signal(_sort_of(each), each["name"], each, groups) for each in entries["events"]),
        *(_signal("links", each["id"], each, groups) for each in links),
        *(_signal("metric", each["name"], each, groups) for each in entries["metrics"]),
        *_conventional_metrics(entries, groups),
    ]
    return Registry(types, enums, signals)


def _own(entry: dict[str, Any]) -> dict[str, Any]:
    annotations: dict[str, Any] = entry.get("annotations", {}).get(SCOPE, {})
    return annotations


def _sort_of(event: dict[str, Any]) -> str:
    return "event" if "event_of" in _own(event) else "log"


def _signal(sort: str, name: str, entry: dict[str, Any], groups: dict[str, Any]) -> Signal:
    signal = Signal(sort, name, details={**entry, **_own(entry)})
    for each in entry.get("attributes", []):
        for attribute in groups[each["ref_group"]] if "ref_group" in each else [each]:
            signal.attributes.add(attribute["ref"])
            if attribute["requirement_level"] == "required":
                signal.required.add(attribute["ref"])
    return signal


def _conventional_metrics(entries: dict[str, Any], groups: dict[str, Any]) -> Iterator[Signal]:
    refinements = {each["ref"]: each for each in entries["metric_refinements"]}
    for name in [name for imported in entries["imports"] for name in imported.get("metrics", [])]:
        instrument, unit, *more = CONVENTIONAL_METRICS[name]
        signal = _signal("metric", name, refinements.get(name, {}), groups)
        signal.required |= {POOL, *more}
        signal.attributes |= signal.required
        signal.details |= {"instrument": instrument, "unit": unit}
        yield signal
