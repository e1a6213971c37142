"""collector-config/: what each file defines, uses, binds and removes; and ``validate`` where a Collector is at hand."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
import yaml
from opentelemetry.semconv._incubating.attributes import db_attributes

from otel_pgpool.telemetry import names
from otel_pgpool.types import LogEvent
from tests.support.collector import BINARY, FILES, FOLDER, NEEDED, ROOT, TLS, backend_overlay, load
from tests.support.documents import TELEMETRY, table

NETWORK_EXPORTERS = {"loadbalancing", "otlp_grpc", "otlp_http"}
BOUND_TO = "${env:OTLP_HOST:-127.0.0.1}"
SQL = {
    "db.sql",
    db_attributes.DB_STATEMENT,
    db_attributes.DB_QUERY_TEXT,
    f"{db_attributes.DB_QUERY_PARAMETER_TEMPLATE}.0",
    f"{db_attributes.DB_OPERATION_PARAMETER_TEMPLATE}.name",
    "db.statement.parameters",  # the query instrumentation's, with capture_parameters
}

SAMPLES = "query-samples.yaml"

every_file = pytest.mark.parametrize("name", FILES)


def kind(component: str) -> str:
    return component.partition("/")[0]


def exporters(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that need a network."""
    return {name: made for name, made in config["exporters"].items() if kind(name) in NETWORK_EXPORTERS}


def env_variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{env:(\w+)", text))


def policies() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in load("gateway.yaml")["processors"]["tail_sampling"]["policies"]}


@every_file
def test_what_is_defined_is_used_and_what_is_used_is_defined(name: str) -> None:
    config = load(name)
    pipelines = config["service"]["pipelines"].values()
    connectors = set(config.get("connectors", ()))
    for section in ("receivers", "processors", "exporters"):
        used = {used for pipeline in pipelines for used in pipeline[section]}
        between = set() if section == "processors" else connectors
        assert set(config[section]) | between == used
    assert set(config["extensions"]) == set(config["service"]["extensions"])


@every_file
def test_each_signal_has_a_pipeline(name: str) -> None:
    assert {kind(pipeline) for pipeline in load(name)["service"]["pipelines"]} == {"traces", "metrics", "logs"}


@every_file
def test_the_memory_limiter_comes_first(name: str) -> None:
    for pipeline in load(name)["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


@every_file
def test_nothing_that_is_being_removed_is_used(name: str) -> None:
    """The batch processor, and the exporters' names of before 2026."""
    config = load(name)
    assert not [each for each in config["processors"] if kind(each) == "batch"]
    assert not [each for each in config["exporters"] if kind(each) in {"otlp", "otlphttp", "logging"}]


@every_file
def test_every_port_is_bound_to_one_host(name: str) -> None:
    """To the loopback, unless OTLP_HOST says otherwise."""
    config = load(name)
    (reader,) = config["service"]["telemetry"]["metrics"]["readers"]
    assert config["receivers"]["otlp"]["protocols"] == {
        "grpc": {"endpoint": f"{BOUND_TO}:4317"},
        "http": {"endpoint": f"{BOUND_TO}:4318"},
    }
    assert config["extensions"]["health_check"] == {"endpoint": f"{BOUND_TO}:13133"}
    assert reader["pull"]["exporter"]["prometheus"] == {"host": BOUND_TO, "port": 8888}


@every_file
def test_what_cannot_be_delivered_waits_on_disk_and_is_sent_again(name: str) -> None:
    config = load(name)
    sending = exporters(config)
    assert sending
    for exporter in sending.values():
        queue = exporter["sending_queue"]
        assert queue["storage"] in config["service"]["extensions"]
        assert queue["batch"]["max_size"] < 4 << 20
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "30m"


def test_another_backend_is_sent_to_in_the_same_way() -> None:
    (backend,) = backend_overlay()["exporters"].values()
    jaeger = load("collector.yaml")["exporters"]["otlp_grpc/jaeger"]
    assert backend["sending_queue"] == jaeger["sending_queue"]
    assert backend["retry_on_failure"] == jaeger["retry_on_failure"]


def test_prometheus_takes_what_has_waited_as_long() -> None:
    prometheus = yaml.safe_load((ROOT / "prometheus" / "prometheus.yaml").read_text())
    assert prometheus["storage"]["tsdb"]["out_of_order_time_window"] == "30m"


def test_an_agent_waits_at_one_place_only() -> None:
    """The queues of the exporters inside cannot be on disk, so they are off."""
    for exporter in exporters(load("agent.yaml")).values():
        inside = exporter["protocol"]["otlp"]
        assert inside["sending_queue"] == inside["retry_on_failure"] == {"enabled": False}
        assert exporter["sending_queue"]["enabled"]
        assert exporter["retry_on_failure"]["enabled"]


def test_an_agent_sends_a_trace_to_one_gateway_and_a_process_to_one() -> None:
    config = load("agent.yaml")
    keys = {
        signal: [config["exporters"][each]["routing_key"] for each in pipeline["exporters"]]
        for signal, pipeline in config["service"]["pipelines"].items()
    }
    assert keys == {"traces": ["traceID"], "metrics": ["resource"], "logs": ["resource"]}


def test_compose_sets_what_the_collector_reads() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    environment = compose["services"]["collector"]["environment"]
    assert env_variables((FOLDER / "collector.yaml").read_text()) == set(environment) - {"GOMEMLIMIT"}


@pytest.mark.parametrize("name", [*FILES, *TLS.values()])
def test_the_readme_names_every_variable(name: str) -> None:
    readme = (FOLDER / "README.md").read_text()
    assert not [variable for variable in env_variables((FOLDER / name).read_text()) if f"`{variable}`" not in readme]


@every_file
def test_a_collector_of_the_tests_reaches_nothing_that_it_is_not_given(name: str) -> None:
    """Each address that a file takes from the environment has a value here: the default may be a real one's."""
    no_addresses = {"OTLP_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD"}
    assert env_variables((FOLDER / name).read_text()) - no_addresses <= set(NEEDED)


@pytest.mark.parametrize(("name", "overlay"), TLS.items())
def test_what_is_laid_over_a_file_for_tls_changes_what_is_there(name: str, overlay: str) -> None:
    """Each receiver and each exporter between agents and gateways, and nothing else."""
    config = load(name)
    (section,) = load(overlay)
    part = load(overlay)[section]
    if section == "receivers":
        assert set(part["otlp"]["protocols"]) == set(config["receivers"]["otlp"]["protocols"])
    else:
        assert set(part) == set(exporters(config))
        assert [each["protocol"]["otlp"]["tls"]["insecure"] for each in part.values()] == [False, False]


def test_query_samples_are_off_until_an_overlay_switches_them_on() -> None:
    """The overlay changes nothing else, and what samples contain of the query is removed with all other SQL."""
    config, overlay = load("collector.yaml"), load(SAMPLES)
    assert config["receivers"]["postgresql"]["events"] == {"db.server.query_sample": {"enabled": False}}
    assert config["service"]["pipelines"]["logs"]["receivers"] == ["otlp"]
    assert overlay == {
        "receivers": {"postgresql": {"events": {"db.server.query_sample": {"enabled": True}}}},
        "service": {"pipelines": {"logs": {"receivers": ["otlp", "postgresql"]}}},
    }
    assert "transform/sql" in config["service"]["pipelines"]["logs"]["processors"]


def test_sql_is_removed_where_programs_send() -> None:
    """By the collector and by the agents, in the same way, from every signal."""
    collector, agent = load("collector.yaml"), load("agent.yaml")
    assert collector["processors"]["transform/sql"] == agent["processors"]["transform/sql"]
    for config in (collector, agent):
        for pipeline in config["service"]["pipelines"].values():
            if "otlp" in pipeline["receivers"]:
                assert "transform/sql" in pipeline["processors"]


def test_the_attributes_removed_are_those_that_hold_sql() -> None:
    """All of the conventions', and none that the pool writes."""
    text = (FOLDER / "collector.yaml").read_text()
    patterns = set(re.findall(r'delete_matching_keys\(\w+\.attributes, "(\^db[^"]*)"\)', text))
    assert len(patterns) == 1
    (pattern,) = patterns
    assert all(re.search(pattern, attribute) for attribute in SQL)
    kept = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    kept |= {db_attributes.DB_QUERY_SUMMARY, db_attributes.DB_OPERATION_NAME, db_attributes.DB_COLLECTION_NAME}
    assert not [attribute for attribute in kept if re.search(pattern, attribute)]


def test_the_tail_policies_keep_what_the_readme_promises() -> None:
    assert policies() == {
        "long hold": {
            "name": "long hold",
            "type": "boolean_attribute",
            "boolean_attribute": {"key": names.ATTR_LONG_HOLD, "value": True},
        },
        "error": {"name": "error", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}},
        "retries": {
            "name": "retries",
            "type": "numeric_attribute",
            "numeric_attribute": {"key": names.ATTR_RETRIES, "min_value": 1},
        },
        "wait": {
            "name": "wait",
            "type": "ottl_condition",
            "ottl_condition": {"error_mode": "ignore", "span": [f'span.attributes["{names.ATTR_WAIT_TIME}"] > 0.1']},
        },
        "5 % of the rest": {
            "name": "5 % of the rest",
            "type": "probabilistic",
            "probabilistic": {"sampling_percentage": 5},
        },
    }


def test_the_tail_policies_name_attributes_of_the_type_that_they_read() -> None:
    types = {row[0].strip("`"): row[1] for row in table(TELEMETRY, "attributes of pool.checkout")}
    assert (types[names.ATTR_LONG_HOLD], types[names.ATTR_RETRIES], types[names.ATTR_WAIT_TIME]) == (
        "bool",
        "int",
        "double",
    )


def test_a_trace_that_was_let_go_is_forgotten() -> None:
    """Else a long hold's span, which ends late, would be thrown after its queries."""
    sampling = load("gateway.yaml")["processors"]["tail_sampling"]
    assert sampling["sampling_strategy"] == "span-ingest"
    assert "non_sampled_cache_size" not in sampling["decision_cache"]


def test_only_traces_are_sampled() -> None:
    pipelines = load("gateway.yaml")["service"]["pipelines"]
    sampled = {name for name, pipeline in pipelines.items() if "tail_sampling" in pipeline["processors"]}
    assert sampled == {"traces"}


def test_what_is_counted_is_what_the_pool_logs() -> None:
    """Both Collectors that deliver count the answers of PostgreSQL by attributes of which each has few values."""
    collector, gateway = load("collector.yaml"), load("gateway.yaml")
    assert collector["connectors"] == gateway["connectors"]
    ((metric, count),) = collector["connectors"]["count"]["logs"].items()
    assert metric == "otel_pgpool.database_states"
    event, *_more = LogEvent.DATABASE_STATE.attributes.items()
    assert count["conditions"] == ['log.attributes["{}"] == "{}"'.format(*event)]
    counted = [attribute["key"] for attribute in count["attributes"]]
    assert counted == [names.ATTR_POOL_NAME, names.ATTR_STATE, names.ATTR_WAIT_EVENT_TYPE]
    for config in (collector, gateway):
        pipelines = config["service"]["pipelines"]
        assert "count" in pipelines["logs"]["exporters"]
        assert pipelines["metrics/database_states"]["receivers"] == ["count"]
        assert pipelines["metrics/database_states"]["exporters"] == pipelines["metrics"]["exporters"]
        assert config["processors"]["deltatocumulative"] == collector["processors"]["deltatocumulative"]


def test_another_backend_gets_the_counts_too() -> None:
    """The overlay replaces the exporters of each pipeline, and keeps the connector."""
    pipelines = backend_overlay()["service"]["pipelines"]
    assert set(pipelines) == set(load("collector.yaml")["service"]["pipelines"])
    assert "count" in pipelines["logs"]["exporters"]


@pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to validate with")
@pytest.mark.parametrize(
    "names", [*((name,) for name in FILES), ("collector.yaml", SAMPLES), ("collector.yaml", "lgtm.yaml")]
)
def test_the_collector_finds_it_valid(names: tuple[str, ...]) -> None:
    command = [BINARY, "validate", *(f"--config={FOLDER / name}" for name in names)]
    done = subprocess.run(command, env={**os.environ, **NEEDED}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
