"""collector.yaml in a real Collector: what is sent arrives, without SQL, and though it had to wait."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.trace import Status, StatusCode

from otel_pgpool.telemetry import names
from otel_pgpool.types import LogEvent
from tests.support.collector import BINARY, QUICK, Collector, backend_overlay, wait_until
from tests.support.collector_targets import Targets, open_targets
from tests.support.database_roles import PASSWORDS, make_roles, open_server
from tests.support.otlp_sender import program
from tests.support.receivers import HttpReceiver, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to run")

SECRET = "s3cret"
MAX_CONNECTIONS, BACKENDS = "postgresql.connection.max", "postgresql.backends"
ERROR = f'duplicate key value violates unique constraint "cards_key"\nDETAIL:  Key (card)=({SECRET}) already exists.'


class CardError(Exception):
    """An error of a driver, as its name tells."""


CardError.__module__ = "psycopg2.errors"


@pytest.fixture
def targets() -> Iterator[Targets]:
    with open_targets() as opened:
        yield opened


def test_what_a_program_sends_arrives(targets: Targets, tmp_path: Path) -> None:
    """Traces at Jaeger, metrics at Prometheus, logs in the output; a server that is not there harms nothing."""
    with Collector("collector.yaml", tmp_path, **targets.environ) as collector, program(collector) as sender:
        sent = sender.checkout()
        sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
        sender.log(names.SCOPE, "held for long", LogEvent.LONG_HOLD.attributes)
        sender.flush()
        targets.jaeger.wait_for(lambda r: [span.trace_id for span in r.spans] == [sent])
        targets.prometheus.wait_for(lambda r: [point.name for point in r.metrics] == ["otel_pgpool.sent"])
        wait_until(lambda: "held for long" in collector.log)


def test_no_sql_and_no_parameter_leaves(targets: Targets, tmp_path: Path) -> None:
    """Whatever carries them is removed from spans, events, metrics and logs; what tells of the rest stays."""
    with Collector("collector.yaml", tmp_path, **targets.environ) as collector, program(collector) as sender:
        attributes = {
            "db.system": "postgresql",
            "db.sql": SECRET,
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
        address = f"/cards?number={SECRET}"
        told = {
            "exception.message": ERROR,
            "exception.stacktrace": ERROR,
            "http.target": address,
            "http.url": f"http://shop{address}",
            "url.full": f"http://shop{address}",
            "url.query": f"number={SECRET}",
        }
        request = sender.span("POST /cards", told, scope="flask")
        request.record_exception(CardError(ERROR))
        request.set_status(Status(StatusCode.ERROR, f"CardError: {ERROR}"))
        request.end()
        other = sender.span("GET /cards", {}, scope="flask")
        other.record_exception(ValueError("no page 0"))
        other.set_status(Status(StatusCode.ERROR, "ValueError: no page 0"))
        other.end()
        pool = sender.span(names.SPAN_CHECKOUT, {names.ATTR_DB_SYSTEM_NAME: "postgresql"})
        pool.set_status(Status(StatusCode.ERROR, "no connection within 5 s"))
        pool.end()
        sender.meters.get_meter("dbapi").create_counter("queries").add(1, {"db.query.text": SECRET, "ok": True})
        failure = {"exception.type": "psycopg2.errors.UniqueViolation", "exception.message": ERROR}
        sender.log("sqlalchemy.engine.Engine", f"insert {SECRET}", {})
        sender.log("django.db.backends", f"insert {SECRET}", {"sql": SECRET, "params": SECRET, "duration": 0.1})
        sender.log("shop", "no card", {"exception.type": "pg8000.exceptions.DatabaseError", "exception.message": ERROR})
        sender.log("shop", "no card", {**failure, "exception.stacktrace": ERROR, "db.query.text": SECRET})
        sender.flush()
        targets.jaeger.wait_for(lambda r: len(r.spans) == 4)
        targets.prometheus.wait_for(lambda r: r.metrics)
        wait_until(lambda: "no card" in collector.log)

    assert SECRET not in f"{targets.jaeger.spans}{targets.prometheus.metrics}{collector.log}"
    spans = {span.name: span for span in targets.jaeger.spans}
    assert spans["VALUES"].attributes == {"db.system": "postgresql", "db.query.summary": "INSERT cards"}
    assert spans["VALUES"].events[0].attributes == {"rows": 1}
    urls = {"http.target": "/cards", "http.url": "http://shop/cards", "url.full": "http://shop/cards"}
    assert spans["POST /cards"].attributes == urls
    assert spans["POST /cards"].events[0].attributes["exception.type"] == "psycopg2.errors.CardError"
    assert spans["GET /cards"].events[0].attributes["exception.message"] == "no page 0"
    assert spans["GET /cards"].status_description == "ValueError: no page 0"
    assert spans["pool.checkout"].status_description == "no connection within 5 s"
    assert targets.prometheus.metrics[0].attributes == {"ok": True}


@pytest.mark.parametrize(("file", "overlay"), [("collector.yaml", {}), ("gateway.yaml", QUICK)])
def test_what_could_not_be_delivered_survives_a_kill(
    targets: Targets, tmp_path: Path, file: str, overlay: dict[str, Any]
) -> None:
    targets.jaeger.mode = targets.prometheus.mode = Mode.UNAVAILABLE
    with Collector(file, tmp_path, overlay, **targets.environ) as collector:
        with program(collector) as sender:
            sent = sender.checkout(long_hold=True)
            sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
            sender.flush()
            for target in targets:
                target.wait_for(lambda r: r.requests)
        collector.kill()
    for target in targets:
        target.mode = Mode.ACCEPT
    with Collector(file, tmp_path, **targets.environ):
        targets.jaeger.wait_for(lambda r: sent in [span.trace_id for span in r.spans])
        targets.prometheus.wait_for(lambda r: "otel_pgpool.sent" in [point.name for point in r.metrics])


def test_the_server_tells_its_connections_and_nothing_else(targets: Targets, tmp_path: Path) -> None:
    """How many it allows, and how many there are to each database, by name; and which server it is.

    The Collector logs in as the role that it has in the stack.
    """
    with open_server(max_connections=37) as server:
        assert make_roles(server, PASSWORDS).returncode == 0
        host, port = "127.0.0.1", server.port
        postgres = {
            "POSTGRES_ENDPOINT": f"{host}:{port}",
            "POSTGRES_USER": "collector",
            "POSTGRES_PASSWORD": PASSWORDS["collector"],
        }
        with (
            Collector("collector.yaml", tmp_path, **targets.environ, **postgres) as collector,
            closing(psycopg2.connect(server.dsn, dbname="shop")),
        ):
            targets.prometheus.wait_for(lambda r: len(r.metrics) >= 3)
        assert "permission denied" not in collector.log
    assert {point.name for point in targets.prometheus.metrics} == {MAX_CONNECTIONS, BACKENDS}
    assert {point.value for point in targets.prometheus.metrics if point.name == MAX_CONNECTIONS} == {37}
    databases = {point.attributes["db.namespace"] for point in targets.prometheus.metrics if point.name == BACKENDS}
    assert databases == {"postgres", "shop"}
    servers = {
        (point.attributes["server.address"], point.attributes["server.port"]) for point in targets.prometheus.metrics
    }
    assert servers == {(host, port)}


@pytest.mark.parametrize(("file", "overlay"), [("collector.yaml", {}), ("gateway.yaml", QUICK)])
def test_what_postgresql_said_of_long_holds_is_counted(
    targets: Targets, tmp_path: Path, file: str, overlay: dict[str, Any]
) -> None:
    """By pool, state and kind of wait, as a total that grows from batch to batch; other records count as nothing."""
    blocked = {names.ATTR_STATE: "active", names.ATTR_WAIT_EVENT_TYPE: "Lock"}
    with Collector(file, tmp_path, overlay, **targets.environ) as collector, program(collector) as sender:

        def log(**attributes: Any) -> None:
            event = {**LogEvent.DATABASE_STATE.attributes, names.ATTR_POOL_NAME: "shop"}
            sender.log(names.SCOPE, "connection held", {**event, **attributes})

        def total(labels: dict[str, str]) -> int:
            """Return the last total of a series."""
            labels = {names.ATTR_POOL_NAME: "shop", **labels}
            return max((point.value for point in counted(targets) if point.attributes == labels), default=0)

        log(**blocked)
        log(**blocked, **{names.ATTR_BLOCKING_PIDS: [7]})
        log(**{names.ATTR_STATE: "active"})
        log()
        log(**LogEvent.LONG_HOLD.attributes)
        sender.log("shop", "an order", {})
        sender.flush()
        wait_until(lambda: total(blocked) == 2)
        log(**blocked)
        sender.flush()
        wait_until(lambda: total(blocked) == 3)
        assert total({names.ATTR_STATE: "active", names.ATTR_WAIT_EVENT_TYPE: "none"}) == 1
        assert total({names.ATTR_STATE: "unknown", names.ATTR_WAIT_EVENT_TYPE: "none"}) == 1
        assert len({tuple(sorted(point.attributes.items())) for point in counted(targets)}) == 3


def counted(targets: Targets) -> list[Any]:
    return [point for point in targets.prometheus.metrics if point.name == "otel_pgpool.database_states"]


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
