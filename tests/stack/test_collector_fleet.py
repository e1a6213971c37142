"""agent.yaml and gateway.yaml in real Collectors: traces are sampled by the tail, and nothing is lost on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from otel_pgpool.telemetry import names
from otel_pgpool.types import LogEvent
from tests.support.collector import BINARY, QUICK, Collector, wait_until
from tests.support.collector_targets import Targets, open_targets
from tests.support.otlp_sender import program, trace_id
from tests.support.receivers import GrpcReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to run")

SECRET = "s3cret"
JUDGED = "otelcol_processor_tail_sampling_global_count_traces_sampled(_total)?"


@pytest.fixture
def targets() -> Iterator[Targets]:
    with open_targets() as opened:
        yield opened


def wait_until_judged(gateway: Collector, traces: int) -> None:
    wait_until(lambda: gateway.own_metric(JUDGED) >= traces)


def test_a_gateway_keeps_what_tells_something_and_5_percent_of_the_rest(targets: Targets, tmp_path: Path) -> None:
    ordinary = 2_000
    with Collector("gateway.yaml", tmp_path, QUICK, **targets.environ) as gateway, program(gateway) as sender:
        kept = {
            "long hold": sender.checkout(long_hold=True),
            "retries": sender.checkout(retries=2),
            "wait": sender.checkout(wait_time=0.11),
        }
        failed = sender.span(
            names.SPAN_CHECKOUT, {names.ATTR_WAIT_TIME: 0.01, names.ATTR_RETRIES: 0}
        )  # such a one has no long_hold
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
        sampled = gateway.own_metric(JUDGED, sampled="true")
        targets.jaeger.wait_for(lambda r: len({span.trace_id for span in r.spans}) == sampled)
    arrived = [span.trace_id for span in targets.jaeger.spans]
    assert set(kept.values()) <= set(arrived)
    assert arrived.count(kept["child"]) == 2
    assert 40 < len(set(arrived)) - len(kept) < 160  # 100, give or take six standard deviations


def test_a_long_hold_is_kept_though_its_queries_have_gone(targets: Targets, tmp_path: Path) -> None:
    """Its checkout's span ends when the trace has been let go; it stays, and the caller's, which ends after it."""
    with Collector("gateway.yaml", tmp_path, QUICK, **targets.environ) as gateway, program(gateway) as sender:
        requests = [sender.span("GET /report", {}, scope="flask") for _ in range(20)]
        for request in requests:
            sender.span("SELECT", {}, scope="flask", parent=trace.set_span_in_context(request)).end()
        sender.flush()
        wait_until_judged(gateway, len(requests))
        for request in requests:
            sender.checkout(trace.set_span_in_context(request), long_hold=True)
        sender.flush()
        targets.jaeger.wait_for(lambda r: len([span for span in r.spans if span.name == names.SPAN_CHECKOUT]) == 20)
        for request in requests:
            request.end()
        sender.flush()
        targets.jaeger.wait_for(lambda r: len([span for span in r.spans if span.name == "GET /report"]) == 20)


def test_metrics_are_not_sampled(targets: Targets, tmp_path: Path) -> None:
    with Collector("gateway.yaml", tmp_path, **targets.environ) as gateway, program(gateway) as sender:
        counter = sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent")
        for pool in range(200):
            counter.add(1, {names.ATTR_POOL_NAME: str(pool)})
        sender.flush()
        targets.prometheus.wait_for(
            lambda r: len({point.attributes[names.ATTR_POOL_NAME] for point in r.metrics}) == 200
        )


def test_from_an_agent_through_a_gateway(targets: Targets, tmp_path: Path) -> None:
    """All three signals pass; without SQL, which the agent removes, and with what the gateway keeps."""
    with Collector("gateway.yaml", tmp_path / "gateway", QUICK, **targets.environ) as gateway:
        port = gateway.grpc.partition(":")[2]
        with Collector("agent.yaml", tmp_path / "agent", GATEWAY_PORT=port) as agent, program(agent) as sender:
            sent = sender.checkout(long_hold=True, sql=0)
            sender.span("SELECT", {"db.statement": SECRET, names.ATTR_WAIT_TIME: 0.2}, scope="dbapi").end()
            sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
            sender.log(names.SCOPE, "held for long", LogEvent.LONG_HOLD.attributes)
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


def test_of_several_gateways_one_gets_a_whole_trace_and_one_a_whole_process(tmp_path: Path) -> None:
    with GrpcReceiver() as one, GrpcReceiver() as other:
        addresses = [receiver.endpoint.removeprefix("http://") for receiver in (one, other)]
        both = {"resolver": {"dns": None, "static": {"hostnames": addresses}}}
        overlay = {"exporters": {"loadbalancing/trace": both, "loadbalancing/process": both}}
        with Collector("agent.yaml", tmp_path, overlay) as agent, program(agent) as sender:
            for _ in range(100):
                request = sender.span("GET /", {}, scope="flask")
                sender.checkout(trace.set_span_in_context(request))
                request.end()
            sender.meters.get_meter(names.SCOPE).create_counter("otel_pgpool.sent").add(1)
            sender.log(names.SCOPE, "held for long", {})
            sender.flush()
            wait_until(lambda: len(one.spans) + len(other.spans) == 200)
            wait_until(lambda: (one.metrics and one.logs) or (other.metrics and other.logs))
        traces = [{span.trace_id for span in receiver.spans} for receiver in (one, other)]
        assert all(traces)
        assert traces[0].isdisjoint(traces[1])
