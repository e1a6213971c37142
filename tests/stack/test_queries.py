"""The dashboard's, the rules' and the runbook's expressions, asked of a real Prometheus with a real pool's metrics."""

from __future__ import annotations

import json
import math
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import openmetrics
from tests.support.documents import read
from tests.support.external_programs import find_program
from tests.support.metric_history import STEP, History, play_history
from tests.support.prometheus import Prometheus, promtool
from tests.support.stack_files import ROOT, load
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

DASHBOARD = json.loads((ROOT / "grafana/dashboards/otel-pgpool.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in load("prometheus/rules.yaml")["groups"] for rule in group["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
METRIC = re.compile(
    r"\b(?:db_client_connection|otel_pgpool|postgresql)_(?!pool_name|state|wait_event|path|reason|caller)\w+"
)
CHOSEN = {"$service": "shop", "$instance": ".*", "$pool": ".*", "$__rate_interval": "4m"}
"""What Grafana puts in the place of its variables."""

EVALUATION = 10
EVALUATED_WITHIN = 40.0
FOR = {None: 0, "1m": 60, "5m": 300, "10m": 600}
"""Seconds between two evaluations, the most until Prometheus has made each once, and those that rules wait."""

FIRE: dict[str, set[str]] = {
    "PoolUtilizationHigh": {"exhaustion"},
    "PoolUtilizationCritical": {"exhaustion"},
    "PoolQueueNotEmpty": {"exhaustion", "outage"},
    "PoolTimeouts": {"exhaustion"},
    "PoolHoldTooLong": {"leak"},
    "PoolConnectFailures": {"outage"},
    "PoolChurn": set(),
    "FleetNearMaxConnections": set(),
}
"""In which phases each alert begins to fire."""


class Told:
    """A Prometheus that has been told a history."""

    def __init__(self, prometheus: Prometheus, history: History) -> None:
        self.prometheus, self.history = prometheus, history

    def over_time(self, expression: str, step: float = STEP) -> list[dict[str, Any]]:
        return self.prometheus.over_time(expression, self.history.begin, self.history.end, step)


@pytest.fixture(scope="module")
def history() -> History:
    find_program("prometheus")  # before anything is done in vain
    return play_history(end=time.time() - 120)


@pytest.fixture(scope="module")
def told(history: History, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """By OTLP where it is received, else from the blocks that promtool makes."""
    folder = tmp_path_factory.mktemp("prometheus")
    prometheus = Prometheus(folder)
    if not prometheus.receives_otlp:
        backfill(folder, history)
    with prometheus:
        if prometheus.receives_otlp:
            prometheus.receive(history.exports)
        yield Told(prometheus, history)


def backfill(folder: Path, history: History) -> None:
    """Put a history into the data of a Prometheus that does not run yet."""
    file = folder / "history.txt"
    file.write_text(openmetrics.text(history.exports))
    promtool("tsdb", "create-blocks-from", "openmetrics", file, folder / "data")


def filled_in(expression: str) -> str:
    for variable, value in CHOSEN.items():
        expression = expression.replace(variable, value)
    return expression


def expanded(expression: str) -> str:
    """With what is recorded put in the place of its name, as recording has only begun."""
    for name, recorded in RECORDED.items():
        expression = expression.replace(name, f"({recorded})")
    return expression


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and what it is when Grafana has filled it in."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']}, {target['refId']}", filled_in(target["expr"])
    yield from RECORDED.items()
    assert len(read("docs/operations.md").queries) > 1
    for expression in read("docs/operations.md").queries:
        yield "operations.md", expression


def is_figure(value: str) -> bool:
    return not math.isnan(float(value))


def test_every_expression_gives_data(told: Told) -> None:
    empty = []
    for place, expression in expressions():
        found = told.over_time(expression)
        if not any(is_figure(value) for each in found for _at, value in each["values"]):
            empty.append((place, expression))
    assert empty == []


def test_every_verdict_is_a_figure_or_nothing(told: Told) -> None:
    """Of the process in trouble alone too, in which no hold ends for as long as it is exhausted."""
    for panel in PANELS:
        if panel["type"] == "stat":
            (target,) = panel["targets"]
            found = told.over_time(filled_in(target["expr"].replace("$instance", "shop-1")))
            assert all(is_figure(value) for each in found for _at, value in each["values"]), panel["title"]


def test_the_panel_says_why_long_holds_are_long(told: Told) -> None:
    """One hold keeps its transaction open, another waits for its lock: once at the beginning, and during the leak.

    Each time until five minutes later, although the totals have no samples in between.
    """
    (panel,) = [panel for panel in PANELS if panel["title"] == "Why are long holds long?"]
    calm, _end = told.history.phases["calm"]
    begin, end = told.history.phases["leak"]
    shown: dict[tuple[str, str], dict[float, float]] = {}
    for found in told.over_time(filled_in(panel["targets"][0]["expr"])):
        labels = found["metric"]
        assert (labels["job"], labels["db_client_connection_pool_name"]) == ("shop", "orders")
        values = {float(at): float(value) for at, value in found["values"]}
        shown[labels["postgresql_state"], labels["postgresql_wait_event_type"]] = values
    for reason in (("idle in transaction", "Client"), ("active", "Lock")):
        times = [at for at, value in shown[reason].items() if value > 0]
        first, second = ([at for at in times if (at > begin) is late] for late in (False, True))
        assert first
        assert max(first) <= calm + 5 * 60 + STEP
        assert second
        assert max(second) <= end + 5 * 60 + STEP


def test_every_metric_that_is_asked_for_exists(told: Told) -> None:
    """In expressions that give nothing while all is well, too."""
    there = told.prometheus.ask("label/__name__/values", start=told.history.begin, end=told.history.end)
    asked = [expression for _place, expression in expressions()] + [rule["expr"] for rule in ALERTS.values()]
    names = {name for expression in asked for name in METRIC.findall(expanded(expression))}
    assert len(names) > 15
    assert names <= set(there), names - set(there)


def test_the_variables_have_their_choices(told: Told) -> None:
    """Services, instances and pools."""
    span = {"start": told.history.begin, "end": told.history.end}
    choices = {}
    for variable in (each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"):
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
        assert match
        chosen = {"match[]": filled_in(match[1])}
        choices[variable["name"]] = told.prometheus.ask(f"label/{match[2]}/values", **chosen, **span)
    assert choices == {"service": ["shop"], "instance": ["shop-1", "shop-2"], "pool": ["orders", "reports"]}


def test_alerts(told: Told) -> None:
    """Each begins to fire in the phases that it is for, of the process that is in trouble, and in no other."""
    fired: dict[str, set[tuple[str, str]]] = {}
    for name, rule in ALERTS.items():
        fired[name] = set()
        for found in told.over_time(expanded(rule["expr"]), step=EVALUATION):
            times = [at for at, _value in found["values"]]
            begins = firing(times, FOR[rule.get("for")])
            fired[name] |= {(found["metric"].get("instance", ""), told.history.phase(at)) for at in begins}
    assert fired == {name: {("shop-1", phase) for phase in phases} for name, phases in FIRE.items()}


def firing(times: list[float], needed: float) -> Iterator[float]:
    """When an alert begins to fire whose expression is true at these times."""
    since, fires = -math.inf, False
    for before, at in pairwise([-math.inf, *times]):
        if at - before > EVALUATION:
            since, fires = at, False
        if not fires and at - since >= needed:
            fires = True
            yield at


def test_the_rules_are_at_work(told: Told) -> None:
    """Prometheus itself evaluates them without an error."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in told.prometheus.ask("rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules()} == {*RECORDED, *ALERTS}
    assert wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), timeout=EVALUATED_WITHIN)
    assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}


def test_both_ways_lead_to_the_same_series(told: Told, tmp_path: Path) -> None:
    """What OpenMetrics is made of for an old Prometheus has the names and labels that OTLP gets in a new one."""
    if not told.prometheus.receives_otlp:
        pytest.skip("this Prometheus has no OTLP receiver to compare with")
    backfill(tmp_path, told.history)
    with Prometheus(tmp_path) as other:
        assert series(other, told.history) == series(told.prometheus, told.history)


def series(prometheus: Prometheus, history: History) -> set[frozenset[tuple[str, str]]]:
    """All of the pools' and the server's."""
    wanted = {"match[]": '{__name__=~"(db_client|otel_pgpool|postgresql)_.*"}'}
    found = prometheus.ask("series", **wanted, start=history.begin, end=history.end)
    return {frozenset(each.items()) for each in found}


@pytest.mark.parametrize("title", ["Wait time", "Hold time"])
def test_exemplars_lead_to_traces(told: Told, title: str) -> None:
    """The heat maps' exemplars carry the trace under the name by which the data source opens it."""
    if not told.prometheus.receives_otlp:
        pytest.skip("this Prometheus has no OTLP receiver, and blocks hold no exemplars")
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    (target,) = panel["targets"]
    assert target["exemplar"]
    asked = told.prometheus.ask(
        "query_exemplars", query=filled_in(target["expr"]), start=told.history.begin, end=told.history.end
    )
    (source,) = [
        each
        for each in load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
        if each["uid"] == "prometheus"
    ]
    (opened,) = source["jsonData"]["exemplarTraceIdDestinations"]
    traces = {exemplar["labels"][opened["name"]] for each in asked for exemplar in each["exemplars"]}
    assert traces
    assert traces <= told.history.traces
