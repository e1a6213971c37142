"""Faults of telemetry: the receiver, the exporter, the queue, a span processor, the sampler."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult

from tests.chaos import pools
from tests.chaos.checks import SpanCounter
from tests.chaos.environment import Environment, one_server
from tests.chaos.otlp_receiver import Answer, ControlledReceiver, closed_endpoint
from tests.chaos.runner import WORKERS, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.util.types import Attributes

    from tests.chaos.runner import FaultRun


QUEUE = 64
"""Spans that wait to be exported, at most."""
EXPORT_TIMEOUT = 0.5
"""Seconds that an export may take: less than the pause before a retry, so that an export fails at once, and once."""


class BrokenError(Exception):
    """Raised by a broken component of telemetry."""


@dataclass
class Component:
    """A component of telemetry that can raise, or block."""

    broken: bool = False
    unblocked: Event = field(default_factory=Event)
    lost: int = 0
    """How often the component has raised; exact if one thread calls it."""

    def __post_init__(self) -> None:
        self.unblocked.set()

    def work(self) -> None:
        """Wait while blocked; raise if broken."""
        self.unblocked.wait()
        if self.broken:
            self.lost += 1
            raise BrokenError

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Do nothing."""
        return True


class Exporter(Component, SpanExporter):
    """An exporter that drops its spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Drop the spans, or raise."""
        self.work()
        return SpanExportResult.SUCCESS


class EndProcessor(Component, SpanProcessor):
    """A span processor that can raise when a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing, or raise."""
        self.work()


@dataclass
class RefusingComponent(Component):
    """A component that can refuse a span at its start. Such a span never ends; here its end is counted all the same."""

    span_counter: SpanCounter = field(default_factory=SpanCounter)

    def work_or_refuse(self, name: str, *, begun: bool) -> None:
        """Work; count a span that is refused."""
        try:
            self.work()
        except BrokenError:
            self.span_counter.refused(name, begun=begun)
            raise


class StartProcessor(RefusingComponent, SpanProcessor):
    """A span processor that can raise when a span starts."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing, or raise."""
        self.work_or_refuse(span.name, begun=True)


class RefusingSampler(RefusingComponent, Sampler):
    """A sampler that can raise."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Attributes = None,
        *args: Any,
        **kwargs: Any,
    ) -> SamplingResult:
        """Sample the span, or raise."""
        self.work_or_refuse(name, begun=False)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, *args, **kwargs)

    def get_description(self) -> str:
        """Return a name for the SDK."""
        return "refusing"


class CountingExporter(OTLPSpanExporter):
    """An OTLP exporter that counts the batches that it could not deliver."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT)
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans."""
        result = super().export(spans)
        self.lost += result is not SpanExportResult.SUCCESS
        return result


@dataclass
class TelemetryEnvironment(Environment):
    """A server, and the component of telemetry that fails."""

    component: Component | CountingExporter = field(default_factory=Component)
    receiver: ControlledReceiver | None = None


def with_telemetry(
    stage: ExitStack, component: Component | CountingExporter, *processors: SpanProcessor
) -> TelemetryEnvironment:
    """Provide a server, and processors that receive all spans."""
    environment = one_server(stage)
    return TelemetryEnvironment(
        environment.server, environment.dsn, options={"span_processors": processors}, component=component
    )


def batched(exporter: SpanExporter) -> SpanProcessor:
    """Return a batch processor as programs use it, with a shorter delay."""
    return BatchSpanProcessor(exporter, QUEUE, schedule_delay_millis=20, max_export_batch_size=QUEUE // 2)


def to_a_receiver(stage: ExitStack) -> Environment:
    """Export over OTLP to a receiver."""
    receiver = stage.enter_context(ControlledReceiver())
    exports = CountingExporter(receiver.endpoint)
    environment = with_telemetry(stage, exports, batched(exports))
    environment.receiver = receiver
    return environment


def to_nobody(stage: ExitStack) -> Environment:
    """Export over OTLP to a port on which nothing listens."""
    exports = CountingExporter(stage.enter_context(closed_endpoint()))
    return with_telemetry(stage, exports, batched(exports))


def by_an_exporter(stage: ExitStack) -> Environment:
    """Export in batches to an exporter of the program's own."""
    exporter = Exporter()
    return with_telemetry(stage, exporter, batched(exporter))


def by_a_processor(stage: ExitStack) -> Environment:
    """Use a span processor of the program's own, which raises at the end of spans."""
    processor = EndProcessor()
    return with_telemetry(stage, processor, processor)


def by_a_processor_at_the_start(stage: ExitStack) -> Environment:
    """Use a span processor of the program's own, which raises at the start of spans."""
    processor = StartProcessor()
    return with_refusals(stage, processor, processor)


def by_a_sampler(stage: ExitStack) -> Environment:
    """Use a sampler of the program's own."""
    sampler = RefusingSampler()
    stage.enter_context(patch.object(pools, "TracerProvider", partial(TracerProvider, sampler)))
    return with_refusals(stage, sampler)


def with_refusals(stage: ExitStack, component: RefusingComponent, *processors: SpanProcessor) -> TelemetryEnvironment:
    """Provide a server; no checkout counts as slow, since a slow one whose span was refused gets another span."""
    stage.enter_context(patch.object(pools, "SpanCounter", lambda: component.span_counter))
    stage.enter_context(patch.dict(os.environ, OTEL_PGPOOL_SLOW="3600"))
    environment = with_telemetry(stage, component, *processors)
    environment.options["long_hold"] = None
    return environment


def telemetry_of(run: FaultRun) -> TelemetryEnvironment:
    assert isinstance(run.environment, TelemetryEnvironment)
    return run.environment


def component_of(run: FaultRun) -> Component:
    component = telemetry_of(run).component
    assert isinstance(component, Component)
    return component


def collector_answers(run: FaultRun, answer: Answer) -> float:
    """Give an answer for a while, and until spans are lost, if the exporter can know of the loss."""
    receiver = telemetry_of(run).receiver
    assert receiver is not None
    receiver.answer = answer
    time.sleep(run.away)
    if answer is not Answer.GARBAGE:
        wait_for_a_loss(run)
    receiver.answer = Answer.ACCEPTED
    return monotonic()


def collector_absent(run: FaultRun) -> float:
    time.sleep(run.away)
    wait_for_a_loss(run)
    return monotonic()


def raises(run: FaultRun) -> float:
    component = component_of(run)
    component.broken = True
    time.sleep(run.away)
    wait_for_a_loss(run)
    component.broken = False
    return monotonic()


def wait_for_a_loss(run: FaultRun) -> None:
    component = telemetry_of(run).component
    run.wait_for(lambda: component.lost > 0)


def queue_is_full(run: FaultRun) -> float:
    """Block the exporter until more spans have ended than its queue can hold."""
    component = component_of(run)
    component.unblocked.clear()
    done = len(run.app.attempts)
    run.wait_for(lambda: len(run.app.attempts) > done + 2 * QUEUE + WORKERS)
    time.sleep(run.away)
    component.unblocked.set()
    return monotonic()


Inject = Callable[["FaultRun"], float]
CASES: tuple[tuple[str, str, str, Inject, Callable[[ExitStack], Environment]], ...] = (
    (
        "collector-absent",
        "no Collector",
        "spans are exported to a port on which nothing listens",
        collector_absent,
        to_nobody,
    ),
    *(
        (name, f"Collector {title}", f"{cause}, for a while", partial(collector_answers, answer=answer), to_a_receiver)
        for name, title, cause, answer in (
            ("collector-refuses", "that refuses", "HTTP 400", Answer.REFUSED),
            ("collector-unavailable", "that is unavailable", "HTTP 503", Answer.UNAVAILABLE),
            ("collector-hangs", "that hangs", "it accepts and never answers", Answer.NONE),
            (
                "collector-garbage",
                "that answers garbage",
                "success, with a body that is no OTLP message",
                Answer.GARBAGE,
            ),
            ("collector-no-http", "that does not speak HTTP", "an answer that is not HTTP", Answer.NO_HTTP),
        )
    ),
    ("exporter-raises", "an exporter that raises", "in a batch processor, at each export", raises, by_an_exporter),
    ("processor-raises", "a span processor that raises", "at the end of each span", raises, by_a_processor),
    (
        "start-raises",
        "a span processor that raises at the start",
        "at the start of each span, so that no span begins",
        raises,
        by_a_processor_at_the_start,
    ),
    ("sampler-raises", "a sampler that raises", "at each span that it is asked for", raises, by_a_sampler),
    (
        "queue-full",
        "a full batch queue",
        f"the exporter hangs while more than {QUEUE} spans end",
        queue_is_full,
        by_an_exporter,
    ),
)
FAULTS = {
    name: Fault(title, cause, inject, environment=environment, ours_alone=True)
    for name, title, cause, inject, environment in CASES
}
