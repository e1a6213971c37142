"""Grafana's dashboard: it is what its code writes, whoever reads it at night is told what to do, its links lead on."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from otel_pgpool.telemetry import names
from tests.support.stack_files import ROOT, compose, load

FILE = ROOT / "grafana/dashboards/otel-pgpool.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SOURCES = {source["uid"]: source for source in load("grafana/provisioning/datasources/datasources.yaml")["datasources"]}
VERDICTS = ["Utilization now", "Backlog", "Leak", "Connect failure", "Slow use"]
SPANS = {names.SPAN_CHECKOUT, names.SPAN_CONNECT}
KNOWN = {value for name, value in vars(names).items() if name.isupper()} | {"error"}
"""What spans can be searched for; `error` is how Jaeger shows the status."""

titles = {"argvalues": PANELS, "ids": [panel["title"] for panel in PANELS]}


def links(panel: dict[str, Any]) -> list[dict[str, Any]]:
    return panel["fieldConfig"]["defaults"].get("links", [])


# The SDK would rather write the second version of the format, which only the newest Grafanas import.
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_it_is_what_its_code_writes() -> None:
    """`make dashboard` changes nothing."""
    pytest.importorskip("grafana_foundation_sdk", reason="the SDK of Grafana needs Python 3.11")
    from grafana import dashboard

    assert dashboard.FILE == FILE
    assert dashboard.build() == FILE.read_text(encoding="utf-8")


def test_grafana_finds_it() -> None:
    """It lies where Grafana is told to look, under the address that `make up` shows."""
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = [mount.split(":") for mount in compose()["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"], "ro"] in mounts
    assert DASHBOARD["uid"] == "otel-pgpool"


def test_the_top_row_answers() -> None:
    """Is the pool the problem, and is it backlog, leak, connect failure or slow use? Each by one coloured figure."""
    top = [panel for panel in PANELS if panel["gridPos"]["y"] < ROWS[1]["gridPos"]["y"]]
    assert [panel["title"] for panel in top] == VERDICTS
    for panel in top:
        colors = [step["color"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert colors == ["green", "orange", "red"]
        assert panel["options"]["colorMode"] == "background"
        assert links(panel)
        assert [target["instant"] for target in panel["targets"]] == [True]


@pytest.mark.parametrize("panel", **titles)
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", **titles)
def test_every_query_goes_to_prometheus(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"prometheus"}
    assert SOURCES["prometheus"]["type"] == "prometheus"
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


@pytest.mark.parametrize("panel", **titles)
def test_rates_cover_the_exports_of_two_minutes(panel: dict[str, Any]) -> None:
    """Four times the least step is what $__rate_interval is at least; processes may export once a minute."""
    for target in panel["targets"]:
        if "$__rate_interval" in target["expr"]:
            assert target["interval"] == "1m"


@pytest.mark.parametrize("panel", **titles)
def test_searches_are_for_what_spans_have(panel: dict[str, Any]) -> None:
    """A link opens Jaeger's search page, in the service of the series, which therefore has its label."""
    for link in links(panel):
        address = urlparse(link["url"])
        assert address.path == "${jaeger:raw}/search"
        wanted = {name: value for name, (value,) in parse_qs(address.query, strict_parsing=True).items()}
        assert wanted.pop("operation") in SPANS
        assert set(json.loads(wanted.pop("tags"))) <= KNOWN
        assert wanted == {
            "service": "${__field.labels.job}",
            "start": "${__from}000",
            "end": "${__to}000",
            "lookback": "custom",
        }
        assert all("job" in target["legendFormat"] for target in panel["targets"])


def test_exemplars_open_traces() -> None:
    """Heat maps ask for them, and the data source says where they lead to."""
    for panel in PANELS:
        if panel["type"] == "heatmap":
            assert [(target["exemplar"], target["format"]) for target in panel["targets"]] == [(True, "heatmap")]
    (destination,) = SOURCES["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["url"] == "$JAEGER_UI/trace/$${__value.raw}"  # the second one is for the browser to fill in


def test_the_variables_narrow_one_another() -> None:
    """Service, then instance, then pool; each panel but those of the fleet heeds all three. The fourth is no choice."""
    *variables, jaeger = DASHBOARD["templating"]["list"]
    assert (jaeger["name"], jaeger["type"]) == ("jaeger", "textbox")
    assert [variable["name"] for variable in variables] == ["service", "instance", "pool"]
    for number, variable in enumerate(variables):
        assert set(re.findall(r"\$(\w+)", variable["query"])) == {each["name"] for each in variables[:number]}
        assert variable["multi"]
        assert variable["includeAll"]
    fleet = ROWS[-1]["gridPos"]["y"]
    for panel in PANELS:
        heeded = {"service", "instance", "pool"} if panel["gridPos"]["y"] < fleet else set()
        for target in panel["targets"]:
            assert set(re.findall(r"\$([a-z]\w+)", target["expr"])) == heeded, panel["title"]


def test_panels_stand_beside_one_another() -> None:
    """None over another, none beyond the edge, each with a number and a title of its own."""
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    for key in ("id", "title"):
        assert len({panel[key] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
