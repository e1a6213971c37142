"""The dashboard's, the rules' and the runbook's expressions, asked of a real Prometheus with a real pool's metrics."""

from __future__ import annotations

import json
import math
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.documents import read
from tests.support.external_programs import find_program
from tests.support.metric_history import STEP, History, play_history
from tests.support.metric_names import WAIT_BOUNDS
from tests.support.prometheus import Prometheus
from tests.support.stack_files import ROOT, load
from tests.support.told_history import KINDS, Told, ToldByKind, backfill, has_figures
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

EXTRAPOLATED = 0.1
"""By how much rates of classic and native series may differ, as Prometheus extrapolates them in different ways."""

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


@pytest.fixture(scope="module")
def told_by_kind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToldByKind]:
    find_program("prometheus")  # before anything is done in vain
    with ToldByKind(play_history(end=time.time() - 120), tmp_path_factory.mktemp("prometheus")) as told_by_kind:
        yield told_by_kind


@pytest.fixture
def told(told_by_kind: ToldByKind) -> Told:
    return told_by_kind.of_kind("classic")


@pytest.fixture(params=KINDS)
def each_told(told_by_kind: ToldByKind, request: pytest.FixtureRequest) -> Told:
    """Let a test ask a Prometheus for each kind of histograms."""
    return told_by_kind.of_kind(request.param)


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


def test_every_expression_gives_data(each_told: Told) -> None:
    empty = []
    for place, expression in expressions():
        if not has_figures(each_told.over_time(expression)):
            empty.append((place, expression))
    assert empty == []


def test_every_verdict_is_a_figure_or_nothing(each_told: Told) -> None:
    """Of the process in trouble alone too, in which no hold ends for as long as it is exhausted."""
    for panel in PANELS:
        if panel["type"] == "stat":
            (target,) = panel["targets"]
            found = each_told.over_time(filled_in(target["expr"].replace("$instance", "shop-1")))
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
        assert labels["answer"] == f"{labels['postgresql_state']}, {labels['postgresql_wait_event_type']}"
        values = {float(at): float(value) for at, value in found["values"]}
        shown[labels["postgresql_state"], labels["postgresql_wait_event_type"]] = values
    for reason in (("idle in transaction", "Client"), ("active", "Lock")):
        times = [at for at, value in shown[reason].items() if value > 0]
        first, second = ([at for at in times if (at > begin) is late] for late in (False, True))
        assert first
        assert max(first) <= calm + 5 * 60 + STEP
        assert second
        assert max(second) <= end + 5 * 60 + STEP


@pytest.mark.parametrize(("wait", "shown"), [("Lock", "active, Lock"), ("none", "active"), ("", "active")])
def test_the_panel_names_no_wait_of_a_session_that_does_not_wait(told: Told, wait: str, shown: str) -> None:
    """Our Collectors say none of it, and others may leave the label out."""
    (panel,) = [panel for panel in PANELS if panel["title"] == "Why are long holds long?"]
    before, _, rest = panel["targets"][0]["expr"].partition("sum by")
    states = 'label_replace(vector(1), "postgresql_state", "active", "", "")'
    answer = f'label_replace({states}, "postgresql_wait_event_type", "{wait}", "", "")'
    _counted, joined, after = rest.partition(', "answer", ", "')
    (found,) = told.over_time(f"{before}{answer}{joined}{after}")
    assert found["metric"]["answer"] == shown


def without_suffix(name: str) -> str:
    """Return the name of the histogram whose classic series has a name, or that name."""
    return re.sub(r"(_time_seconds)_(bucket|sum|count)$", r"\1", name)


def test_every_metric_that_is_asked_for_exists(each_told: Told) -> None:
    """In expressions that give nothing while all is well, too; of a histogram, classic or native series."""
    span = {"start": each_told.history.begin, "end": each_told.history.end}
    there = map(without_suffix, each_told.prometheus.ask("label/__name__/values", **span))
    asked = [expression for _place, expression in expressions()] + [rule["expr"] for rule in ALERTS.values()]
    names = {without_suffix(name) for expression in asked for name in METRIC.findall(expanded(expression))}
    assert len(names) > 15
    assert names - set(there) == set()


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


def test_alerts(each_told: Told) -> None:
    """Each begins to fire in the phases that it is for, of the process that is in trouble, and in no other."""
    fired: dict[str, set[tuple[str, str]]] = {}
    for name, rule in ALERTS.items():
        fired[name] = set()
        for found in each_told.over_time(expanded(rule["expr"]), step=EVALUATION):
            times = [at for at, _value in found["values"]]
            begins = firing(times, FOR[rule.get("for")])
            fired[name] |= {(found["metric"].get("instance", ""), each_told.history.phase(at)) for at in begins}
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


def test_needed_connections_are_the_same_in_each_kind(told: Told, each_told: Told) -> None:
    """The sum of a histogram is exact, whatever its buckets are."""
    recorded = RECORDED["job_pool:db_client_connection_used:mean5m"]
    expected = told.figures(recorded)
    assert {dict(labels)["db_client_connection_pool_name"] for labels in expected} == {"orders", "reports"}
    for labels, figures in each_told.figures(recorded).items():
        assert figures == pytest.approx(expected.pop(labels), rel=EXTRAPOLATED)
    assert not expected


@pytest.mark.parametrize("name", [name for name in RECORDED if name.endswith("p99_5m")])
def test_quantiles_of_each_kind(told_by_kind: ToldByKind, each_told: Told, name: str) -> None:
    """Those from native buckets come near to those from classic ones; of a process that has both, they count."""
    classic = told_by_kind.of_kind("classic").figures(RECORDED[name])
    assert len(classic) == len(each_told.figures(RECORDED[name])) == 2
    for labels, figures in each_told.figures(RECORDED[name]).items():
        if each_told.kind in {"classic", "exponential", "converted"}:
            assert all(is_near(classic[labels][at], value) for at, value in figures.items())
            assert each_told.kind != "exponential" or figures != classic[labels]
        else:
            is_native = each_told.kind == "both" or dict(labels)["db_client_connection_pool_name"] == "orders"
            expected = told_by_kind.of_kind("exponential" if is_native else "classic").figures(RECORDED[name])
            assert figures == pytest.approx(expected[labels])


def is_near(classic: float, native: float) -> bool:
    """Return whether a native quantile lies in the classic one's bucket, or at most a factor of two beside it."""
    bounds = [0.0, *WAIT_BOUNDS, math.inf]
    upper = next(bound for bound in bounds if classic <= bound)
    lower = max(bound for bound in bounds if bound < classic or bound == 0)
    return lower / 2 <= native <= upper * 2


def test_quantiles_of_processes_with_either_kind(told_by_kind: ToldByKind) -> None:
    """A panel shows the greater one, so that neither process's trouble is hidden."""
    mixed = told_by_kind.of_kind("mixed")
    (panel,) = [panel for panel in PANELS if panel["title"] == "Hold time, p50 / p95 / p99"]
    for target in panel["targets"]:
        (shown,) = mixed.figures(filled_in(target["expr"])).values()
        expected: dict[float, float] = {}
        for instance in ("shop-1", "shop-2"):
            for figures in mixed.figures(filled_in(target["expr"].replace("$instance", instance))).values():
                expected |= {at: max(value, expected.get(at, 0.0)) for at, value in figures.items()}
        assert shown == expected


def test_the_rules_are_at_work(each_told: Told) -> None:
    """Prometheus itself evaluates them without an error."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in each_told.prometheus.ask("rules")["groups"] for rule in group["rules"]]

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
def test_exemplars_lead_to_traces(each_told: Told, title: str) -> None:
    """The heat maps' exemplars carry the trace under the name by which the data source opens it."""
    if not each_told.prometheus.receives_otlp:
        pytest.skip("this Prometheus has no OTLP receiver, and blocks hold no exemplars")
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    (target,) = panel["targets"]
    assert target["exemplar"]
    asked = each_told.prometheus.ask(
        "query_exemplars", query=filled_in(target["expr"]), start=each_told.history.begin, end=each_told.history.end
    )
    (source,) = [
        each
        for each in load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
        if each["uid"] == "prometheus"
    ]
    (opened,) = source["jsonData"]["exemplarTraceIdDestinations"]
    traces = {exemplar["labels"][opened["name"]] for each in asked for exemplar in each["exemplars"]}
    assert traces
    assert traces <= each_told.history.traces
