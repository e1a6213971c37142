"""collector-config/ in a real Collector: what is sent arrives, though late, without SQL, and sampled by the tail."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import psycopg2
import pytest
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from psycopg2.extensions import parse_dsn

from otel_pgpool.cli.postgres import PostgresServer
from otel_pgpool.telemetry import names
from tests.receivers import GrpcReceiver, HttpReceiver, Mode
from tests.stack.collectors import BINARY, Collector, backend_overlay, wait_until
from tests.stack.senders import program, trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to run")

SECRET = "s3cret"
MAX_CONNECTIONS, BACKENDS = "postgresql.connection.max", "postgresql.backends"
QUICK = {"processors": {"tail_sampling": {"decision_wait": "1s"}}}
ERROR = f'duplicate key value violates unique constraint "cards_key"\nDETAIL:  Key (card)=({SECRET}) already exists.'


class CardError(Exception):
    """An error of a driver, as its name tells."""


CardError.__module__ = "psycopg2.errors"


class Targets(NamedTuple):
    """What stands for Jaeger and for Prometheus."""

    jaeger: GrpcReceiver
    prometheus: HttpReceiver

    @property
    def environ(self) -> dict[str, str]:
        return {
            "JAEGER_ENDPOINT": self.jaeger.endpoint.removeprefix("http://"),
            "PROMETHEUS_ENDPOINT": self.prometheus.endpoint,
        }


@pytest.fixture
def targets() -> Iterator[Targets]:
    with GrpcReceiver() as jaeger, HttpReceiver() as prometheus:
        yield Targets(jaeger, prometheus)


def wait_until_judged(gateway: Collector, traces: int) -> None:
    name = "otelcol_processor_tail_sampling_global_count_traces_sampled(_total)?"
    wait_until(lambda: gateway.own_metric(name) >= traces)


def test_what_a_program_sends_arrives(targets: Targets, tmp_path: Path) -> None:
    """Traces at Jaeger, metrics at Prometheus, logs in the output; a server that is not there harms nothing."""
    with Collector("collector.yaml", tmp_path, **targets.environ) as collector, program(collector) as sender:
        sent = sender.checkout()
        sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
        sender.log(names.SCOPE, "held for long", {names.EVENT: "long_hold"})
        sender.flush()
        targets.jaeger.wait_for(lambda r: [span.trace_id for span in r.spans] == [sent])
        targets.prometheus.wait_for(lambda r: [point.name for point in r.metrics] == ["otel_pgpool.sent"])
        wait_until(lambda: "held for long" in collector.log)


def test_no_sql_and_no_parameter_leaves(targets: Targets, tmp_path: Path) -> None:
    """Whatever carries them is removed from spans, events, metrics and logs; what tells of the rest stays."""
    with Collector("collector.yaml", tmp_path, **targets.environ) as collector, program(collector) as sender:
        attributes = {
            "db.system": "postgresql",
            "db.statement": SECRET,
            "db.statement.parameters": SECRET,
            "db.query.text": SECRET,
            "db.query.parameter.0": SECRET,
            "db.operation.parameter.card": SECRET,
            "db.query.summary": "INSERT cards",
        }
        query = sender.span(f"VALUES('{SECRET}')", attributes, scope="opentelemetry.instrumentation.psycopg2")
        query.add_event("query", {"db.query.text": SECRET, "rows": 1})
        query.set_status(Status(StatusCode.ERROR, ERROR))
        query.end()
        request = sender.span("POST /cards", {}, scope="flask")
        request.record_exception(CardError(ERROR))
        request.set_status(Status(StatusCode.ERROR, f"CardError: {ERROR}"))
        request.end()
        other = sender.span("GET /cards", {}, scope="flask")
        other.record_exception(ValueError("no page 0"))
        other.set_status(Status(StatusCode.ERROR, "ValueError: no page 0"))
        other.end()
        pool = sender.span(names.CHECKOUT, {names.DB_SYSTEM_NAME: "postgresql"})
        pool.set_status(Status(StatusCode.ERROR, "no connection within 5 s"))
        pool.end()
        sender.meters.get_meter("dbapi").create_counter("queries").add(1, {"db.query.text": SECRET, "ok": True})
        failure = {"exception.type": "psycopg2.errors.UniqueViolation", "exception.message": ERROR}
        sender.log("sqlalchemy.engine.Engine", f"insert {SECRET}", {})
        sender.log("django.db.backends", f"insert {SECRET}", {"sql": SECRET, "params": SECRET, "duration": 0.1})
        sender.log("shop", "no card", {**failure, "exception.stacktrace": ERROR, "db.query.text": SECRET})
        sender.flush()
        targets.jaeger.wait_for(lambda r: len(r.spans) == 4)
        targets.prometheus.wait_for(lambda r: r.metrics)
        wait_until(lambda: "no card" in collector.log)

    assert SECRET not in f"{targets.jaeger.spans}{targets.prometheus.metrics}{collector.log}"
    spans = {span.name: span for span in targets.jaeger.spans}
    assert spans["VALUES"].attributes == {"db.system": "postgresql", "db.query.summary": "INSERT cards"}
    assert spans["VALUES"].events[0].attributes == {"rows": 1}
    assert spans["POST /cards"].events[0].attributes["exception.type"] == "psycopg2.errors.CardError"
    assert spans["GET /cards"].events[0].attributes["exception.message"] == "no page 0"
    assert spans["GET /cards"].status_description == "ValueError: no page 0"
    assert spans["pool.checkout"].status_description == "no connection within 5 s"
    assert targets.prometheus.metrics[0].attributes == {"ok": True}


@pytest.mark.parametrize("name", ["collector.yaml", "gateway.yaml"])
def test_what_could_not_be_delivered_survives_a_kill(name: str, targets: Targets, tmp_path: Path) -> None:
    targets.jaeger.mode = targets.prometheus.mode = Mode.UNAVAILABLE
    with Collector(name, tmp_path, QUICK if name == "gateway.yaml" else {}, **targets.environ) as collector:
        with program(collector) as sender:
            sent = sender.checkout(long_hold=True)
            sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
            sender.flush()
            for target in targets:
                target.wait_for(lambda r: r.requests)
        collector.kill()
    for target in targets:
        target.mode = Mode.ACCEPT
    with Collector(name, tmp_path, **targets.environ):
        targets.jaeger.wait_for(lambda r: sent in [span.trace_id for span in r.spans])
        targets.prometheus.wait_for(lambda r: "otel_pgpool.sent" in [point.name for point in r.metrics])


def test_a_gateway_keeps_what_tells_something_and_5_percent_of_the_rest(targets: Targets, tmp_path: Path) -> None:
    ordinary = 2_000
    with Collector("gateway.yaml", tmp_path, QUICK, **targets.environ) as gateway, program(gateway) as sender:
        kept = {
            "long hold": sender.checkout(long_hold=True),
            "retries": sender.checkout(retries=2),
            "wait": sender.checkout(wait_time=0.11),
        }
        failed = sender.span(names.CHECKOUT, {names.WAIT_TIME: 0.01, names.RETRIES: 0})  # such a one has no long_hold
        failed.set_status(Status(StatusCode.ERROR))
        failed.end()
        kept["error"] = trace_id(failed)
        deep = sender.span("GET /", {}, scope="flask")  # the checkout is a child, and the whole trace stays
        kept["child"] = sender.checkout(trace.set_span_in_context(deep), wait_time=0.2)
        deep.end()
        for number in range(ordinary):
            sender.checkout()
            if number % 500 == 499:
                sender.flush()
        sender.flush()
        wait_until_judged(gateway, len(kept) + ordinary)
        sampled = gateway.own_metric(
            "otelcol_processor_tail_sampling_global_count_traces_sampled(_total)?", sampled="true"
        )
        targets.jaeger.wait_for(lambda r: len({span.trace_id for span in r.spans}) == sampled)
    arrived = [span.trace_id for span in targets.jaeger.spans]
    assert set(kept.values()) <= set(arrived)
    assert arrived.count(kept["child"]) == 2
    assert 40 < len(set(arrived)) - len(kept) < 160  # 100, give or take six standard deviations


def test_a_long_hold_is_kept_though_its_queries_were_judged_without_it(targets: Targets, tmp_path: Path) -> None:
    """Its checkout's span ends last, and the caller's after it: both stay, though the trace had been let go."""
    with Collector("gateway.yaml", tmp_path, QUICK, **targets.environ) as gateway, program(gateway) as sender:
        requests = [sender.span("GET /report", {}, scope="flask") for _ in range(20)]
        for request in requests:
            sender.span("SELECT", {}, scope="flask", parent=trace.set_span_in_context(request)).end()
        sender.flush()
        wait_until_judged(gateway, len(requests))
        for _ in range(5):
            sender.checkout()
        sender.flush()
        wait_until_judged(gateway, len(requests) + 5)  # the one let go last is remembered until another is let go
        for request in requests:
            sender.checkout(trace.set_span_in_context(request), long_hold=True)
        sender.flush()
        targets.jaeger.wait_for(lambda r: len([span for span in r.spans if span.name == names.CHECKOUT]) == 20)
        for request in requests:
            request.end()
        sender.flush()
        targets.jaeger.wait_for(lambda r: len([span for span in r.spans if span.name == "GET /report"]) == 20)


def test_metrics_are_not_sampled(targets: Targets, tmp_path: Path) -> None:
    with Collector("gateway.yaml", tmp_path, **targets.environ) as gateway, program(gateway) as sender:
        counter = sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent")
        for pool in range(200):
            counter.add(1, {names.POOL_NAME: str(pool)})
        sender.flush()
        targets.prometheus.wait_for(lambda r: len({point.attributes[names.POOL_NAME] for point in r.metrics}) == 200)


def test_from_an_agent_through_a_gateway(targets: Targets, tmp_path: Path) -> None:
    """All three signals pass; without SQL, which the agent removes, and with what the gateway keeps."""
    with Collector("gateway.yaml", tmp_path / "gateway", QUICK, **targets.environ) as gateway:
        port = gateway.grpc.partition(":")[2]
        with Collector("agent.yaml", tmp_path / "agent", GATEWAY_PORT=port) as agent, program(agent) as sender:
            sent = sender.checkout(long_hold=True, sql=0)
            sender.span("SELECT", {"db.statement": SECRET, names.WAIT_TIME: 0.2}, scope="dbapi").end()
            sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
            sender.log(names.SCOPE, "held for long", {names.EVENT: "long_hold"})
            sender.flush()
            targets.jaeger.wait_for(lambda r: len(r.spans) == 2)
            targets.prometheus.wait_for(lambda r: [point.name for point in r.metrics] == ["otel_pgpool.sent"])
            wait_until(lambda: "held for long" in gateway.log)
    assert sent in [span.trace_id for span in targets.jaeger.spans]
    assert SECRET not in str(targets.jaeger.spans)


def test_an_agent_keeps_what_it_cannot_deliver(targets: Targets, tmp_path: Path) -> None:
    """Neither a gateway that is away nor a kill loses anything."""
    with Collector("agent.yaml", tmp_path / "agent") as agent:
        with program(agent) as sender:
            sent = sender.checkout(long_hold=True)
            sender.flush()
            failed = "otelcol_loadbalancer_backend_outcome(_total)?"
            wait_until(lambda: agent.own_metric(failed, success="false"))
        agent.kill()
    with Collector("gateway.yaml", tmp_path / "gateway", QUICK, **targets.environ) as gateway:
        port = gateway.grpc.partition(":")[2]
        with Collector("agent.yaml", tmp_path / "agent", GATEWAY_PORT=port):
            targets.jaeger.wait_for(lambda r: [span.trace_id for span in r.spans] == [sent])


def test_the_server_tells_its_connections_and_nothing_else(targets: Targets, tmp_path: Path) -> None:
    """How many it allows, and how many there are to each database, by name."""
    with PostgresServer(settings={"max_connections": 37}, password="s3cret") as server:
        with closing(psycopg2.connect(server.dsn)) as admin, admin.cursor() as cur:
            admin.autocommit = True
            cur.execute("create database shop")
        dsn = parse_dsn(server.dsn)
        postgres = {
            "POSTGRES_ENDPOINT": f"{dsn['host']}:{dsn['port']}",
            "POSTGRES_USER": dsn["user"],
            "POSTGRES_PASSWORD": dsn["password"],
        }
        with (
            Collector("collector.yaml", tmp_path, **targets.environ, **postgres),
            closing(psycopg2.connect(server.dsn, dbname="shop")),
        ):
            targets.prometheus.wait_for(lambda r: len(r.metrics) >= 3)
    assert {point.name for point in targets.prometheus.metrics} == {MAX_CONNECTIONS, BACKENDS}
    assert {point.value for point in targets.prometheus.metrics if point.name == MAX_CONNECTIONS} == {37}
    databases = {point.attributes["db.namespace"] for point in targets.prometheus.metrics if point.name == BACKENDS}
    assert databases == {"postgres", "shop"}


def test_another_backend_gets_all_three_signals_and_the_key(tmp_path: Path) -> None:
    """By the file that the README lays over collector.yaml."""
    with HttpReceiver() as backend:
        environ = {"BACKEND_ENDPOINT": backend.endpoint, "BACKEND_KEY": "k3y"}
        with Collector("collector.yaml", tmp_path, backend_overlay(), **environ) as collector:
            with program(collector) as sender:
                sender.checkout()
                sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
                sender.log(names.SCOPE, "held for long", {})
                sender.flush()
            backend.wait_for(lambda r: r.spans and r.metrics and r.logs)
        assert {request["api-key"] for request in backend.requests} == {"k3y"}
