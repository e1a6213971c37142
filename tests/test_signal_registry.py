"""The registry of the signals: valid for OpenTelemetry Weaver, and the same as the constants and the documents.

That all of it is emitted, and nothing besides, is seen by `tests/support/emitted.py`, and of the demo by its tests.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.semconv._incubating.metrics import db_metrics

from otel_pgpool import types
from otel_pgpool._version import __version__
from otel_pgpool.telemetry import metrics, names
from tests.support import emitted
from tests.support.documents import ROOT, TELEMETRY, code, table
from tests.support.signal_registry import CONVENTIONAL_METRICS, CONVENTIONS, FOLDER, load, registry

if TYPE_CHECKING:
    from typing_extensions import Self

    from tests.support.signal_registry import Signal

FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "manifest.yaml")
MANIFEST = yaml.safe_load((FOLDER / "manifest.yaml").read_text(encoding="utf-8"))
SCHEMA = ROOT / "tests/support/weaver/semconv.schema.v2.json"
"""Weaver's own, of commit afa9700 (after 0.25.1)."""

ENUMS = {
    "otel_pgpool.event": types.LogEvent,
    "otel_pgpool.outcome": types.Outcome,
    "otel_pgpool.path": types.CheckoutPath,
    "otel_pgpool.reason": types.DiscardReason,
    "otel_pgpool.transaction.status": types.TransactionStatus,
}
OF_THE_DEMO = {
    *("db.collection.name", "db.operation.name"),
    *("http.request.method", "http.response.status_code", "http.route"),
}


def constants(prefix: str) -> set[str]:
    return {value for name, value in vars(names).items() if name.startswith(prefix)}


def own(sort: str) -> dict[str, Signal]:
    return {name: signal for name, signal in registry().of_sort(sort).items() if not name.startswith("shop.")}


# The format


def test_it_follows_weavers_schema() -> None:
    """Each file of definitions."""
    command = [Path(sys.executable).with_name("check-jsonschema"), "--schemafile", SCHEMA, *FILES]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_it_depends_on_the_conventions_that_the_package_follows() -> None:
    """The manifest has the version of the package and that of the conventions, whose address is that of its release."""
    assert MANIFEST["schema_url"].endswith(f"/{__version__}")
    (conventions,) = MANIFEST["dependencies"]
    version = conventions["schema_url"].rpartition("/")[2]
    assert f"/v{version}.zip[model]" in conventions["registry_path"]
    assert names.SCHEMA_URL in {None, conventions["schema_url"]}  # None with an older release of the conventions
    assert f"semantic conventions {version.removesuffix('.0')}" in (ROOT / TELEMETRY).read_text(encoding="utf-8")


def test_all_is_described_once() -> None:
    """Names are unique and in Weaver's form, briefs are sentences, and what is required of a text has an example."""
    entries = load()
    for keys in (
        [each["key"] for each in entries["attributes"]],
        [each["name"] for each in entries["events"]],
        [each["name"] for each in entries["metrics"]],
        [each["type"] for each in entries["spans"]],
        [each["id"] for each in entries["attribute_groups"]],
    ):
        assert len(keys) == len(set(keys))
        assert [key for key in keys if not re.fullmatch(r"[a-z][a-z0-9]*([._][a-z0-9]+)*", key)] == []
    for each in [each for name in ("attributes", "events", "metrics", "spans") for each in entries[name]]:
        assert each["brief"].strip().endswith("."), each["brief"]
        assert each.get("examples") or each.get("type") not in ["string", "string[]"], each
    for group in [*entries["attribute_groups"], *entries["events"], *entries["metrics"], *entries["spans"]]:
        for attribute in group.get("attributes", []):
            assert "ref_group" in attribute or "requirement_level" in attribute, (group, attribute)


def test_conventions_are_referred_to() -> None:
    """What the semantic conventions define is not defined again, and what is referred to exists."""
    entries = load()
    used = set().union(*(signal.attributes for signal in registry().signals))
    defined = {each["key"] for each in entries["attributes"]}
    assert used == defined | set(CONVENTIONS)
    assert not defined & set(CONVENTIONS)
    assert not [name for name in defined if not name.startswith(("otel_pgpool.", "postgresql."))]
    assert {name for each in entries["imports"] for name in each.get("metrics", [])} == set(CONVENTIONAL_METRICS)


def test_conventional_metrics() -> None:
    """Instruments and units of imported metrics are those of the conventions' own Python package."""
    made: dict[str, tuple[str, str]] = {}

    def make(instrument: str) -> Any:
        return lambda name, unit="", **_options: made.update({name: (instrument, unit)})

    kinds = {"counter": "counter", "up_down_counter": "updowncounter", "histogram": "histogram"}
    meter = SimpleNamespace(**{f"create_{kind}": make(instrument) for kind, instrument in kinds.items()})
    for name in CONVENTIONAL_METRICS:
        getattr(db_metrics, f"create_{name.replace('.', '_')}")(meter)
    assert made == {name: (instrument, unit) for name, (instrument, unit, *_) in CONVENTIONAL_METRICS.items()}


# The constants


def test_constants() -> None:
    """Each name has a constant, and each constant is a declared name."""
    attributes = set(registry().types) - OF_THE_DEMO
    assert constants("ATTR_") | {"otel_pgpool.event"} == attributes
    assert constants("SPAN_") == set(own("span"))
    assert constants("EVENT_") == set(own("event"))
    assert constants("METRIC_") == set(own("metric"))
    assert {event.attributes[emitted.FOR_HANDLERS] for event in types.LogEvent} == set(own("log"))


def test_values() -> None:
    """The members of the enums are the values of the package, with the same descriptions."""
    enums = dict(registry().enums)
    assert set(enums.pop("otel_pgpool.relation")) == {names.VALUE_BLOCKED_BY}
    assert enums == {name: {value.value: value.description for value in kind} for name, kind in ENUMS.items()}


class Recorder(NoOpMeter, NoOpMeterProvider):
    """A meter, and its provider, that keeps the instruments that are made."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.made: dict[str, tuple[str, str, str]] = {}

    def get_meter(self, *_args: object, **_options: object) -> Self:
        return self

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("create_"):
            return found

        def create(*args: Any, **options: Any) -> Any:
            given = inspect.signature(found).bind(*args, **options).arguments
            kind = name.removeprefix("create_").removeprefix("observable_").replace("_", "")
            self.made[given["name"]] = (kind, given["unit"], given["description"])
            return found(*args, **options)

        return create


def test_instruments() -> None:
    """Each metric has the instrument and the unit of the code, and our own have its description."""
    recorder = Recorder()
    metrics.instruments(recorder)
    declared = {name: signal.details for name, signal in own("metric").items()}
    assert {name: (kind, unit) for name, (kind, unit, _) in recorder.made.items()} == {
        name: (details["instrument"], details["unit"]) for name, details in declared.items()
    }
    briefs = {name: details["brief"] for name, details in declared.items() if "brief" in details}
    assert briefs == {name: text for name, (_, _, text) in recorder.made.items() if name.startswith("otel_pgpool.")}


# The tables of docs/telemetry.md


def test_table_of_spans() -> None:
    """The table lists each span with its kind."""
    told = {code(row[0])[0]: row[1] for row in table(TELEMETRY, "spans")}
    assert told == {name: span.details["kind"] for name, span in own("span").items()}


@pytest.mark.parametrize(
    ("sort", "name"), [("span", "pool.checkout"), ("span", "pool.wait"), ("event", "pool.database_state")]
)
def test_tables_of_attributes(sort: str, name: str) -> None:
    """The table lists each attribute with its type."""
    told = {code(row[0])[0]: row[1].replace("bool", "boolean") for row in table(TELEMETRY, f"attributes of {name}")}
    assert told == {attribute: registry().types[attribute] for attribute in own(sort)[name].attributes}


def test_table_of_events() -> None:
    """The table lists each event of a span with its attributes; one has a table of its own."""
    told = {code(row[0])[0]: set(code(row[1])) for row in table(TELEMETRY, "events")}
    told["pool.database_state"] = own("event")["pool.database_state"].attributes
    assert told == {name: event.attributes for name, event in own("event").items()}


def test_table_of_metrics() -> None:
    """The table lists each metric with its instrument, its unit and the attributes beside the pool's name."""
    told: dict[str, tuple[str, str, list[str]]] = {}
    for name, written, unit, more in [*table(TELEMETRY, "metrics"), *table(TELEMETRY, "metrics by caller")]:
        instrument = written.removeprefix("observable ").replace("up-down ", "updown")
        _, _, known = told.get(code(name)[0], ("", "", []))
        told[code(name)[0]] = (instrument, code(unit)[0], known + code(more)[:1])
    assert told == {
        name: (
            metric.details["instrument"],
            metric.details["unit"],
            sorted(metric.attributes - {names.ATTR_POOL_NAME}),
        )
        for name, metric in own("metric").items()
    }


def test_table_of_reasons() -> None:
    """The table lists each reason of a discard."""
    assert {code(row[0])[0] for row in table(TELEMETRY, "reasons")} == set(registry().enums["otel_pgpool.reason"])


LEVELS = {
    f"otel_pgpool.{each}"
    for each in ("size", "used", "idle", "connecting", "waiting", "max", "utilization", "oldest_hold")
}


def test_table_of_logs() -> None:
    """The table lists each log event with its level and its attributes, if need be by those of another event."""
    common = {"otel_pgpool.event", names.ATTR_POOL_NAME}
    rows = {code(event)[0]: (level, cell) for level, event, cell, _ in table(TELEMETRY, "logs")}
    told: dict[str, tuple[str, set[str]]] = {}
    latest: set[str] = set()
    for event, (level, cell) in rows.items():
        attributes = set(code(cell)) - set(rows) | common
        if cell == "the same":
            attributes = latest
        elif cell.startswith("as "):
            attributes = told[f"otel_pgpool.{code(cell)[0]}"][1]
        elif "of the span event" in cell:
            attributes |= own("event")[f"pool.{event}"].attributes
        elif "the levels" in cell:
            attributes |= LEVELS
        told[f"otel_pgpool.{event}"] = (level, attributes)
        latest = attributes
    assert told == {name: (log.details["level"], log.attributes) for name, log in own("log").items()}
