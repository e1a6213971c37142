"""The stack in one container, of the image grafana/otel-lgtm: what it is given, and where its links lead.

The image's own files are not here; what is taken from them is what its documents promise to keep: the paths of its
programs' configurations, the variables for more arguments, the names of its data sources, /tmp/ready.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from grafana.tempo import explore, in_tempo, traceql
from otel_pgpool.telemetry import names
from tests.support.docker import Docker
from tests.support.stack_files import ROOT, compose, load

if TYPE_CHECKING:
    from pathlib import Path

SERVICES = compose()
LGTM = SERVICES["lgtm"]
HOME = "/otel-lgtm"
MOUNTS = {target: source for source, target, _ro in (each.split(":") for each in LGTM["volumes"])}
IN_JAEGER = (ROOT / "grafana/dashboards/otel-pgpool.json").read_text(encoding="utf-8")
IN_TEMPO = (ROOT / "grafana/lgtm/otel-pgpool.json").read_text(encoding="utf-8")
KNOWN = {value for name, value in vars(names).items() if name.isupper()}


def links(dashboard: str) -> list[dict[str, Any]]:
    panels = json.loads(dashboard)["panels"]
    return [link for panel in panels for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", ())]


def pane(address: str) -> dict[str, Any]:
    """Return what Explore shows at an address."""
    parts = urlsplit(address)
    assert parts.path == "/explore"
    asked = {name: value for name, (value,) in parse_qs(parts.query, strict_parsing=True).items()}
    assert (asked["schemaVersion"], asked["orgId"]) == ("1", "1")
    (shown,) = json.loads(asked["panes"]).values()
    assert shown["datasource"] == "tempo"
    assert shown["queries"][0]["datasource"] == {"type": "tempo", "uid": "tempo"}
    assert shown["queries"][0]["queryType"] == "traceql"
    return dict(shown)


def test_it_takes_the_place_of_all_that_reads_telemetry() -> None:
    """A profile of its own: the shop and the load as they are, and one container under the name of the Collector."""
    with_profile = {name for name, service in SERVICES.items() if "profiles" in service}
    assert with_profile == {"lgtm", "lgtm-shop", "lgtm-load"}
    assert all(SERVICES[name]["profiles"] == ["lgtm"] for name in with_profile)
    for copy, original in (("lgtm-shop", "shop"), ("lgtm-load", "load")):
        own = {"profiles", "depends_on", "networks"}
        assert {key: value for key, value in SERVICES[copy].items() if key not in own} == {
            key: value for key, value in SERVICES[original].items() if key not in own
        }
        assert set(SERVICES[copy]["depends_on"]) <= {"postgres", "lgtm", "lgtm-shop"}
    assert LGTM["networks"]["default"]["aliases"] == ["collector"]
    assert SERVICES["lgtm-shop"]["networks"]["default"]["aliases"] == ["shop"]
    assert SERVICES["lgtm-shop"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    assert "depends_on" not in LGTM


def test_the_two_publish_the_same_ports() -> None:
    """But for Jaeger's: Tempo is reached through Grafana."""
    each = [port for name in ("collector", "prometheus", "grafana") for port in SERVICES[name]["ports"]]
    assert sorted(LGTM["ports"]) == sorted(each)


def test_its_collector_is_ours() -> None:
    """With our file, whose variables have their values, and an overlay that sends logs to Loki and keeps the counts."""
    assert MOUNTS[f"{HOME}/otelcol-config.yaml"] == "./collector-config/collector.yaml"
    (overlay,) = re.findall(r"--config=file:(\S+)", LGTM["environment"]["OTELCOL_EXTRA_ARGS"])
    assert MOUNTS[overlay] == "./collector-config/lgtm.yaml"
    text = (ROOT / "collector-config/collector.yaml").read_text()
    elsewhere = {"PROMETHEUS_ENDPOINT"}  # the default is where it listens, in the same container
    assert set(re.findall(r"\$\{env:(\w+)", text)) - elsewhere <= set(LGTM["environment"])
    assert "${env:PROMETHEUS_ENDPOINT:-http://127.0.0.1:9090/api/v1/otlp}" in text
    assert LGTM["environment"]["JAEGER_ENDPOINT"] == "127.0.0.1:4417"
    laid_over, ours = load("collector-config/lgtm.yaml"), yaml.safe_load(text)
    (name,) = laid_over["exporters"]
    assert laid_over["service"] == {"pipelines": {"logs": {"exporters": [name, "count"]}}}
    assert name not in ours["exporters"]
    assert ours["service"]["pipelines"]["logs"]["exporters"] == ["debug", "count"]


def test_its_collector_may_start_with_an_empty_folder() -> None:
    """The queues' folder is not in the image."""
    assert load("collector-config/collector.yaml")["extensions"]["file_storage"]["create_directory"] is True


def test_its_prometheus_has_our_rules() -> None:
    """Our configuration stands beside the rules that it names, and the alerts' links lead to the runbook."""
    assert MOUNTS[f"{HOME}/prometheus.yaml"] == "./prometheus/prometheus.yaml"
    (rules,) = load("prometheus/prometheus.yaml")["rule_files"]
    assert MOUNTS[f"{HOME}/{rules}"] == "./prometheus/rules.yaml"
    arguments = dict(each.split("=", 1) for each in LGTM["environment"]["PROMETHEUS_EXTRA_ARGS"].split())
    assert MOUNTS[f"{arguments['--web.user-assets']}/operations.md"] == "./docs/operations.md"
    assert arguments["--web.external-url"] == "http://127.0.0.1:9090"


def test_its_grafana_has_our_dashboard() -> None:
    """Provisioned beside the image's own; who looks may go to Explore, and Grafana calls nobody."""
    provided = f"{HOME}/grafana/conf/provisioning/dashboards/otel-pgpool.yaml"
    assert MOUNTS[provided] == "./grafana/provisioning/dashboards/dashboards.yaml"
    (provider,) = load(MOUNTS[provided])["providers"]
    assert list((ROOT / MOUNTS[provider["options"]["path"]]).glob("*.json")) == [ROOT / "grafana/lgtm/otel-pgpool.json"]
    shared = {name: value for name, value in SERVICES["grafana"]["environment"].items() if name.startswith("GF_")}
    own = {"GF_AUTH_ANONYMOUS_ORG_ROLE": "Editor", "GF_LOG_MODE": "console"}
    assert {name: value for name, value in LGTM["environment"].items() if name.startswith("GF_")} == {**shared, **own}


def test_the_dashboard_is_the_other_one_with_links_into_tempo() -> None:
    assert in_tempo(IN_JAEGER) == IN_TEMPO
    assert "jaeger" not in IN_TEMPO.lower()
    assert len(links(IN_TEMPO)) == len(links(IN_JAEGER))


@pytest.mark.parametrize("link", links(IN_TEMPO), ids=lambda link: link["title"])
def test_its_links_search_for_what_spans_have(link: dict[str, str]) -> None:
    """In the service of the series and in the time that is shown."""
    shown = pane(link["url"])
    assert shown["range"] == {"from": "${__from}", "to": "${__to}"}
    query = shown["queries"][0]["query"]
    assert re.match(
        r'\{ resource\.service\.name = "\$\{__field\.labels\.job\}" && name = "pool\.(checkout|connect)"', query
    )
    searched = re.findall(r"(?:span|event)\.([\w.]+) = ", query)
    assert set(searched) <= KNOWN
    assert bool(searched) != ("status = error" in query)


def test_a_query_compares_values_of_their_types() -> None:
    """Tempo finds no boolean by a string; an event's attributes and the status have scopes of their own."""
    wanted = {
        names.ATTR_LONG_HOLD: "true",
        names.ATTR_PATH: "queued",
        names.ATTR_WAIT_EVENT_TYPE: "Lock",
        "error": "true",
    }
    assert traceql("pool.checkout", wanted).split(" && ")[2:] == [
        "span.otel_pgpool.long_hold = true",
        'span.otel_pgpool.path = "queued"',
        'event.postgresql.wait_event_type = "Lock"',
        "status = error }",
    ]


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    return Docker(tmp_path)


def test_make_up_starts_it_and_prints_where_to_look(docker: Docker) -> None:
    """The long holds of the shop, in the last hour, in Tempo."""
    docker.publish("lgtm", "127.0.0.1:3001")
    done = docker.make("up", "STACK=lgtm")
    assert docker.asked[1] == "compose up --build --detach --wait lgtm lgtm-shop lgtm-load"
    assert set(docker.profiles) == {"lgtm"}
    shop, found, dashboard, alerts = re.findall(r"http://\S+", done.stdout)
    assert [urlsplit(each).netloc for each in (found, dashboard, alerts)] == ["127.0.0.1:3001"] * 3
    assert shop == "http://127.0.0.1:8000/"
    query = traceql("pool.checkout", {names.ATTR_LONG_HOLD: "true"}).replace("${__field.labels.job}", "shop")
    assert pane(found) == pane(explore(query, "now-1h", "now"))
    assert urlsplit(dashboard).path == f"/d/{json.loads(IN_TEMPO)['uid']}"
    assert urlsplit(alerts).path == "/alerts"
    assert [line for line in docker.asked if " port " in line] == [
        "compose port lgtm-shop 8000",
        "compose port lgtm 3000",
        "compose port lgtm 9090",
    ]


def test_make_up_starts_nothing_of_it_otherwise(docker: Docker) -> None:
    assert docker.make("up").returncode == 0
    assert set(docker.profiles) == {""}
    assert not [line for line in docker.asked if "lgtm" in line]


def test_make_down_ends_it_too(docker: Docker) -> None:
    assert docker.make("down").returncode == 0
    assert set(docker.profiles) == {"lgtm"}


def test_make_up_knows_two_stacks(docker: Docker) -> None:
    """Another name is refused before anything is asked or written."""
    done = docker.make("up", "STACK=elk")
    assert done.returncode != 0
    assert "STACK is 'elk': full or lgtm is accepted" in done.stderr
    assert not docker.settings.exists()
