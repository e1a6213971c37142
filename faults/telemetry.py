"""Telemetry that fails: the collector, the exporter, the queue, a span processor."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from faults.collector import Answer, Collector, absent
from faults.ground import Ground, one_server
from faults.scene import WORKERS, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from faults.scene import Scene

QUEUE = 64
"""Spans that wait to be exported, at most."""


class BrokenError(Exception):
    """What a broken piece of telemetry raises."""


@dataclass
class Piece(SpanExporter, SpanProcessor):
    """An exporter and a span processor that can be broken, or held up."""

    broken: bool = False
    flows: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.flows.set()

    def _work(self) -> None:
        self.flows.wait()
        if self.broken:
            raise BrokenError

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - the SDK's signature
        """Take them, or raise."""
        self._work()
        return SpanExportResult.SUCCESS

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 - the SDK's signature
        """Take it, or raise."""
        self._work()

    def shutdown(self) -> None:
        """Nothing to do."""

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the SDK's signature
        """Nothing to do."""
        return True


@dataclass
class Told(Ground):
    """A server, and somebody to tell of the checkouts."""

    piece: Piece = field(default_factory=Piece)
    collector: Collector | None = None

    def tell(self, processor: SpanProcessor) -> Told:
        """Let a processor have all spans."""
        self.options["span_processors"] = [processor]
        return self


def told(stage: ExitStack) -> Told:
    """A server."""
    ground = one_server(stage)
    return Told(ground.server, ground.dsn)


def batched(exporter: SpanExporter) -> SpanProcessor:
    """As programs export, only sooner."""
    return BatchSpanProcessor(exporter, QUEUE, schedule_delay_millis=20, max_export_batch_size=QUEUE // 2)


def to_a_collector(stage: ExitStack) -> Ground:
    """Over OTLP."""
    ground = told(stage)
    ground.collector = stage.enter_context(Collector())
    return ground.tell(batched(OTLPSpanExporter(f"{ground.collector.endpoint}/v1/traces", timeout=1)))


def to_nobody(stage: ExitStack) -> Ground:
    """Over OTLP, to a port where nobody listens."""
    endpoint = stage.enter_context(absent())
    return told(stage).tell(batched(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=1)))


def by_an_exporter(stage: ExitStack) -> Ground:
    """In batches, to an exporter of the program's own."""
    ground = told(stage)
    return ground.tell(batched(ground.piece))


def by_a_processor(stage: ExitStack) -> Ground:
    """To a span processor of the program's own."""
    ground = told(stage)
    return ground.tell(ground.piece)


def telling(scene: Scene) -> Told:
    assert isinstance(scene.ground, Told)
    return scene.ground


def collector_answers(scene: Scene, answer: Answer) -> float:
    """For a while."""
    collector = telling(scene).collector
    assert collector is not None
    collector.answer = answer
    time.sleep(scene.away)
    collector.answer = Answer.ACCEPTED
    return monotonic()


def collector_absent(scene: Scene) -> float:
    time.sleep(scene.away)
    return monotonic()


def raises(scene: Scene) -> float:
    piece = telling(scene).piece
    piece.broken = True
    time.sleep(scene.away)
    piece.broken = False
    return monotonic()


def queue_is_full(scene: Scene) -> float:
    """The exporter hangs until more has been done than the queue can hold."""
    piece = telling(scene).piece
    piece.flows.clear()
    done = len(scene.app.attempts)
    scene.wait_for(lambda: len(scene.app.attempts) > done + 2 * QUEUE + WORKERS)
    time.sleep(scene.away)
    piece.flows.set()
    return monotonic()


FAULTS = {
    "collector-absent": Fault(
        "no collector", "spans are exported to a port that refuses", collector_absent, ground=to_nobody, ours_alone=True
    ),
    **{
        f"collector-{name}": Fault(
            f"collector {title}",
            f"{cause}, for a while",
            partial(collector_answers, answer=answer),
            ground=to_a_collector,
            ours_alone=True,
        )
        for name, title, cause, answer in (
            ("refuses", "that refuses", "HTTP 400", Answer.REFUSED),
            ("unavailable", "that is unavailable", "HTTP 503", Answer.UNAVAILABLE),
            ("hangs", "that hangs", "it accepts and never answers", Answer.NONE),
            ("garbage", "that answers garbage", "success, with a body that is no message", Answer.GARBAGE),
        )
    },
    "exporter-raises": Fault(
        "an exporter that raises",
        "in a batch processor, at each export",
        raises,
        ground=by_an_exporter,
        ours_alone=True,
    ),
    "processor-raises": Fault(
        "a span processor that raises", "at the end of each span", raises, ground=by_a_processor, ours_alone=True
    ),
    "queue-full": Fault(
        "a full batch queue",
        f"the exporter hangs while more than {QUEUE} spans end",
        queue_is_full,
        ground=by_an_exporter,
        ours_alone=True,
    ),
}
