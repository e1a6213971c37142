"""Addresses of Jaeger's search page, in a real Jaeger: each shows the checkouts that it is printed for."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from otel_pgpool.demo.endpoint import Endpoint
from otel_pgpool.telemetry import names
from tests.support.docker import Docker
from tests.support.jaeger import BINARY, Jaeger
from tests.support.otlp_sender import trace_id
from tests.support.stack_files import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NONE: dict[str, dict[str, object]] = {"defaults": {}}
"""The links of a row."""

pytestmark = pytest.mark.skipif(not BINARY, reason="JAEGER names no Jaeger to run")


@pytest.fixture
def jaeger(tmp_path: Path) -> Iterator[Jaeger]:
    with Jaeger(tmp_path) as running:
        yield running


def send(jaeger: Jaeger) -> set[str]:
    """Checkouts of two services, of which some are long holds: the trace of the shop's."""
    long = set()
    for service in ("shop", "another"):
        provider = TracerProvider(resource=Resource.create({"service.name": service}))
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=jaeger.otlp, insecure=True)))
        for held_long in (True, False):
            span = provider.get_tracer(names.SCOPE).start_span(
                names.SPAN_CHECKOUT, attributes={names.ATTR_LONG_HOLD: held_long}
            )
            span.end()
            if service == "shop" and held_long:
                long.add(trace_id(span))
        provider.shutdown()
    return long


def test_what_make_up_prints_shows_the_long_holds(jaeger: Jaeger, tmp_path: Path) -> None:
    sent = send(jaeger)
    docker = Docker(tmp_path)
    docker.publish("jaeger", jaeger.ui)
    (address,) = re.findall(rf"http://{re.escape(jaeger.ui)}\S+", docker.make("up").stdout)
    assert jaeger.search(address) == sent


def test_what_the_demo_prints_shows_the_long_holds(jaeger: Jaeger) -> None:
    sent = send(jaeger)
    address = Endpoint.parse(f"http://{jaeger.otlp}", {}).jaeger_search("shop")
    assert jaeger.search(urlsplit(address)._replace(netloc=jaeger.ui).geturl()) == sent


def test_what_the_dashboard_links_to_shows_the_long_holds(jaeger: Jaeger) -> None:
    """With its holes filled in as Grafana does, in the time that is shown and no other."""
    sent = send(jaeger)
    now = int(time.time() * 1000)
    for since, found in ((now - 3_600_000, sent), (now - 7_200_000, set())):
        assert jaeger.search(linked(jaeger, "Jaeger: long holds", since)) == found


def test_what_the_dashboard_links_to_shows_the_holds_that_waited_for_a_lock(jaeger: Jaeger) -> None:
    """By an attribute of the event, which Jaeger searches as it does those of the span."""
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=jaeger.otlp, insecure=True)))
    sent = {}
    for wait in ("Lock", "Client"):
        span = provider.get_tracer(names.SCOPE).start_span(names.SPAN_CHECKOUT)
        span.add_event(names.EVENT_DATABASE_STATE, {names.ATTR_WAIT_EVENT_TYPE: wait})
        span.end()
        sent[wait] = trace_id(span)
    provider.shutdown()
    since = int(time.time() * 1000) - 3_000_000
    assert jaeger.search(linked(jaeger, "Jaeger: holds that waited for a lock", since)) == {sent["Lock"]}


def linked(jaeger: Jaeger, title: str, since: int) -> str:
    """Return the address of a link of the dashboard, for the shop and the hour from ``since`` on, in milliseconds."""
    dashboard = json.loads((ROOT / "grafana/dashboards/otel-pgpool.json").read_text())
    links = [
        link for panel in dashboard["panels"] for link in panel.get("fieldConfig", NONE)["defaults"].get("links", ())
    ]
    (address,) = {link["url"] for link in links if link["title"] == title}
    filled = {"jaeger:raw": f"http://{jaeger.ui}", "__field.labels.job": "shop"}
    filled |= {"__from": str(since), "__to": str(since + 3_600_000)}
    for hole, value in filled.items():
        address = address.replace(f"${{{hole}}}", value)
    assert "$" not in address
    return address


def test_a_search_without_a_time_is_refused(jaeger: Jaeger) -> None:
    """So the two above would fail without one."""
    with pytest.raises(AssertionError, match="400"):
        jaeger.search(f"http://{jaeger.ui}/search?service=shop")
