"""collector-config/measure.py: what it sends is what a fleet would send, and what it counts is right."""

from __future__ import annotations

import re
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.collector import BINARY, FOLDER

if TYPE_CHECKING:
    from types import ModuleType

    from opentelemetry.proto.trace.v1.trace_pb2 import Span


@pytest.fixture
def measure() -> ModuleType:
    """Load the program as a module."""
    spec = spec_from_file_location("measure", FOLDER / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spans(encoded: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(encoded)
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


def test_no_trace_is_sent_twice(measure: ModuleType) -> None:
    """Neither half of a trace's id comes again: tail sampling knows traces by the second."""
    sent = [spans(message.renewed()) for message in measure.messages(2) for _ in range(3)]
    ids = [span.trace_id for each in sent for span in each]
    traces = sum(len({span.trace_id for span in each}) for each in sent)
    assert {len(trace_id) for trace_id in ids} == {16}
    assert len({trace_id[:8] for trace_id in ids}) == traces
    assert len({trace_id[8:] for trace_id in ids}) == traces


def test_a_renewed_message_is_the_same_but_for_the_traces_ids(measure: ModuleType) -> None:
    """A checkout, its query, its wait and the wait's link stay in one trace; 21 spans make ten checkouts."""
    (message,) = measure.messages(1)
    one, other = spans(message.renewed()), spans(message.renewed())
    assert len(one) == len(other) == measure.SPANS_A_MESSAGE
    assert [span.span_id for span in one] == [span.span_id for span in other]
    pairs = {(span.trace_id, its.trace_id) for span, its in zip(one, other, strict=True)}
    assert len(pairs) == len({span.trace_id for span in one}) == len({span.trace_id for span in other})
    trace_of = {span.span_id: span.trace_id for span in one}
    for span in one:
        assert trace_of.get(span.parent_span_id, span.trace_id) == span.trace_id
        assert {link.trace_id for link in span.links} <= {span.trace_id}
    names = Counter(span.name for span in one)
    assert names["pool.checkout"] == pytest.approx(measure.SPANS_A_MESSAGE * 10 / 21, abs=1)


def test_it_reaches_nothing_of_the_machines_own(measure: ModuleType) -> None:
    """Each address that a measured file takes from the environment is given, but for the one that it listens at."""
    given = {*measure.NOWHERE, "JAEGER_ENDPOINT", "OTLP_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD"}
    for name in measure.COUNTED:
        assert set(re.findall(r"\$\{env:(\w+)", (FOLDER / name).read_text())) <= given


@pytest.mark.skipif(not BINARY, reason="OTELCOL names no Collector to measure")
@pytest.mark.parametrize("file", ["collector.yaml", "gateway.yaml"])
def test_it_measures(
    measure: ModuleType, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real Collector, on ports of its own; nothing is refused."""
    monkeypatch.setattr(measure, "WARM_UP", 3.0)
    quick = "processors::tail_sampling::decision_wait: 1s"
    over = ["--over", quick] if file == "gateway.yaml" else []
    monkeypatch.setattr(sys, "argv", ["measure.py", BINARY, "--seconds", "3", "--file", file, *over])
    assert measure.main() == 0
    printed = capsys.readouterr().out
    found = re.match(r"([\d,]+) checkouts a second for .*; (\d+) messages refused$", printed)
    assert found is not None, printed
    assert int(found[1].replace(",", "")) > 0
    assert found[2] == "0"
