"""The values that users see, in documents and in the dashboard: they are those of ``otel_pgpool.types``."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote_plus

import pytest

from otel_pgpool.telemetry.logs import UTILIZATION_EVENTS
from otel_pgpool.types import (
    CheckoutPath,
    DiscardReason,
    HealthStatus,
    LevelName,
    LogEvent,
    Outcome,
    OutcomeName,
    PathName,
    PoolErrorType,
    PoolStatus,
    ReasonName,
    StatusName,
    TransactionStatus,
    UtilizationLevel,
)
from tests.support.documents import REFERENCE, ROOT, TELEMETRY, code, table, text_of

if TYPE_CHECKING:
    from enum import Enum

OPERATIONS, MIGRATING = "docs/operations.md", "docs/migrating.md"
PANELS = json.loads((ROOT / "grafana/dashboards/otel-pgpool.json").read_text(encoding="utf-8"))["panels"]
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "otel_pgpool").rglob("*.py")
}


def values(kind: type[Enum]) -> list[str]:
    return [member.value for member in kind]


def one_line(document: str) -> str:
    return " ".join(text_of(document).split())


def described(title: str) -> str:
    """Return the description of a panel of the dashboard."""
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    description: str = panel["description"]
    return description


# Types


@pytest.mark.parametrize(
    ("literal", "kind"),
    [
        (PathName, CheckoutPath),
        (OutcomeName, Outcome),
        (ReasonName, DiscardReason),
        (StatusName, PoolStatus),
        (LevelName, UtilizationLevel),
    ],
)
def test_literals_are_the_values(literal: object, kind: type[Enum]) -> None:
    """What annotations accept is what there is."""
    assert list(get_args(literal)) == values(kind)


# Documents


@pytest.mark.parametrize(
    ("attribute", "kind", "also"),
    [("otel_pgpool.path", CheckoutPath, set()), ("otel_pgpool.outcome", Outcome, {"putconn"})],
)
def test_values_of_a_checkout(attribute: str, kind: type[Enum], also: set[str]) -> None:
    """The table of a checkout's attributes lists every path and every outcome."""
    (cell,) = [row[2] for row in table(TELEMETRY, "attributes of pool.checkout") if code(row[0]) == [attribute]]
    assert set(code(cell)) - also == set(values(kind))


def test_error_types_of_the_pool() -> None:
    """The table names the pool's own values of ``error.type``, and the one for the rest."""
    (cell,) = [row[2] for row in table(TELEMETRY, "attributes of pool.checkout") if code(row[0]) == ["error.type"]]
    assert set(code(cell)) == {*values(PoolErrorType), "_OTHER"}


def test_transaction_statuses() -> None:
    """The text lists every status, in order."""
    (listed,) = re.findall(r"`otel_pgpool\.transaction\.status` is (`idle`.*?)\. `", one_line(TELEMETRY))
    assert code(listed) == values(TransactionStatus)


def test_reasons() -> None:
    """The table lists every reason of a discard; the record of a loss names those that are one."""
    assert sorted(code(row[0])[0] for row in table(TELEMETRY, "reasons")) == sorted(values(DiscardReason))
    (when,) = [row[3] for row in table(TELEMETRY, "logs") if code(row[1]) == [LogEvent.CONNECTION_LOST.value]]
    assert set(code(when)) == {reason.value for reason in DiscardReason if reason.is_loss}


def test_log_events() -> None:
    """The table lists every event, with the level at which the code logs it."""
    logged = r"_write\(\s*logging\.(\w+),\s*LogEvent\.(\w+)"
    written = {
        LogEvent[event].value: level for level, event in re.findall(logged, SOURCES["otel_pgpool/telemetry/logs.py"])
    }
    written |= {event.value: logging.getLevelName(level) for level, event in UTILIZATION_EVENTS.values()}
    direct = r"log_safely\(\s*logging\.(\w+),(?:(?!log_safely).)*?LogEvent\.(\w+)"
    for file in ("driver/exposure.py", "instrumentation/adapters/inherited.py"):
        found = re.findall(direct, SOURCES[f"otel_pgpool/{file}"], re.DOTALL)
        written |= {LogEvent[event].value: level for level, event in found}
    assert {code(event)[0]: level for level, event, *_ in table(TELEMETRY, "logs")} == written
    assert sorted(written) == sorted(values(LogEvent))


def test_statuses_of_a_pool() -> None:
    """The list of the statuses is complete and in order."""
    (listed,) = re.findall(r"`status` is (.*?);", one_line(MIGRATING))
    assert code(listed) == values(PoolStatus)


def test_health_statuses() -> None:
    """The table lists them in the order of their severity."""
    assert [code(row[0])[0] for row in table(REFERENCE, "health")] == values(HealthStatus)


def test_operations() -> None:
    """The reasons and events that the page for the person on call names exist."""
    text = one_line(OPERATIONS)
    (table_of_reasons,) = re.findall(r"\| reason \| cause \|(.*?)###", text)
    rows = table_of_reasons.split(" | ")
    assert {"idle", "expired", "broken"} <= {value for row in rows for value in code(row)} & set(values(DiscardReason))
    records = re.findall(r"(?:record|records) `(\w+)`", text)
    assert records
    assert set(records) <= set(values(LogEvent))


# Dashboard


def test_paths_of_the_dashboard() -> None:
    """The panel of the checkouts explains every path."""
    listed = described("Checkouts").partition("by path: ")[2]
    assert {value for value in values(CheckoutPath) if re.search(rf"\b{value},", listed)} == set(values(CheckoutPath))


def test_reasons_of_the_dashboard() -> None:
    """What the panel of the discarded connections explains are reasons."""
    listed = described("Connections discarded").partition("by reason. ")[2]
    explained = {name for group in re.findall(r"([\w, ]+):", listed) for name in group.strip().split(", ")}
    assert explained
    assert explained <= set(values(DiscardReason))


def test_searches_of_the_dashboard() -> None:
    """A link that searches for a path or an outcome searches for one that exists."""
    tags = unquote_plus(json.dumps(PANELS))
    searched: list[tuple[str, str]] = re.findall(r"otel_pgpool\.(path|outcome)\": \"(\w+)", tags)
    kinds: dict[str, Any] = {"path": values(CheckoutPath), "outcome": values(Outcome)}
    assert searched
    assert all(value in kinds[attribute] for attribute, value in searched)


# Code


def test_reasons_that_the_code_gives() -> None:
    """Each reason for which the pool discards a connection, where it is written as a text, is one of them."""
    texts = "".join(text for path, text in SOURCES.items() if path != "otel_pgpool/types.py")
    given = re.findall(r'(?:_discard|drain|condemn|_drop|evict)\([^\n]*?"(\w+)"', texts)
    assert set(given) <= set(values(DiscardReason))


def test_every_event_is_logged() -> None:
    """Each event is used in the code by its name, and none by its text."""
    texts = "".join(text for path, text in SOURCES.items() if path != "otel_pgpool/types.py")
    assert {event.name for event in LogEvent if f"LogEvent.{event.name}" not in texts} == set()
    assert re.findall(r'otel_pgpool\.event": "', texts) == []


def test_levels_of_utilization() -> None:
    """Each level has an event of its own."""
    assert list(UTILIZATION_EVENTS) == list(UtilizationLevel)
    for level, (_severity, event) in UTILIZATION_EVENTS.items():
        assert event.value == f"utilization_{level.value}"
