"""Telemetry that fails: the collector, the exporter, the queue, a span processor, the sampler."""

from __future__ import annotations

import os
import time
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
from tests.chaos.collector import Answer, Collector, absent
from tests.chaos.ground import Ground, one_server
from tests.chaos.scene import WORKERS, Fault
from tests.chaos.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.util.types import Attributes

    from tests.chaos.scene import Scene

QUEUE = 64
"""Spans that wait to be exported, at most."""
EXPORT_TIMEOUT = 0.5
"""Seconds that an export may take. Its first retry would come later than that, so that it fails at once, and once."""


class BrokenError(Exception):
    """What a broken piece of telemetry raises."""


@dataclass
class Piece:
    """A part of telemetry that can be broken, or held up."""

    broken: bool = False
    flows: Event = field(default_factory=Event)
    lost: int = 0
    """How often it has raised; exact where one thread calls it."""

    def __post_init__(self) -> None:
        self.flows.set()

    def work(self) -> None:
        """Do it, or raise."""
        self.flows.wait()
        if self.broken:
            self.lost += 1
            raise BrokenError

    def shutdown(self) -> None:
        """Nothing to do."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing to do."""
        return True


class Exporter(Piece, SpanExporter):
    """It exports to nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take them, or raise."""
        self.work()
        return SpanExportResult.SUCCESS


class AtEnd(Piece, SpanProcessor):
    """It is there when a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take it, or raise."""
        self.work()


@dataclass
class Refusing(Piece):
    """It is there when a span starts, and can refuse it. Such a span ends nowhere; here it is counted all the same."""

    tally: Tally = field(default_factory=Tally)

    def refuse(self, name: str, *, begun: bool) -> None:
        """Or not."""
        try:
            self.work()
        except BrokenError:
            self.tally.refused(name, begun=begun)
            raise


class AtStart(Refusing, SpanProcessor):
    """A span processor."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Let it start, or raise."""
        self.refuse(span.name, begun=True)


class Choosing(Refusing, Sampler):
    """A sampler."""

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
        """Take it, or raise."""
        self.refuse(name, begun=False)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, *args, **kwargs)

    def get_description(self) -> str:
        """For the SDK."""
        return "choosing"


class Exports(OTLPSpanExporter):
    """Over OTLP; it counts the batches that were not taken."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"{endpoint}/v1/traces", timeout=EXPORT_TIMEOUT)
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them."""
        result = super().export(spans)
        self.lost += result is not SpanExportResult.SUCCESS
        return result


@dataclass
class Told(Ground):
    """A server, and somebody to tell of the checkouts."""

    piece: Piece | Exports = field(default_factory=Piece)
    collector: Collector | None = None


def told(stage: ExitStack, piece: Piece | Exports, *processors: SpanProcessor) -> Told:
    """Provide a server, and processors that receive all spans."""
    ground = one_server(stage)
    return Told(ground.server, ground.dsn, options={"span_processors": processors}, piece=piece)


def batched(exporter: SpanExporter) -> SpanProcessor:
    """As programs export, only sooner."""
    return BatchSpanProcessor(exporter, QUEUE, schedule_delay_millis=20, max_export_batch_size=QUEUE // 2)


def to_a_collector(stage: ExitStack) -> Ground:
    """Over OTLP."""
    collector = stage.enter_context(Collector())
    exports = Exports(collector.endpoint)
    ground = told(stage, exports, batched(exports))
    ground.collector = collector
    return ground


def to_nobody(stage: ExitStack) -> Ground:
    """Over OTLP, to a port where nobody listens."""
    exports = Exports(stage.enter_context(absent()))
    return told(stage, exports, batched(exports))


def by_an_exporter(stage: ExitStack) -> Ground:
    """In batches, to an exporter of the program's own."""
    exporter = Exporter()
    return told(stage, exporter, batched(exporter))


def by_a_processor(stage: ExitStack) -> Ground:
    """To a span processor of the program's own."""
    processor = AtEnd()
    return told(stage, processor, processor)


def by_a_processor_at_the_start(stage: ExitStack) -> Ground:
    """Likewise."""
    processor = AtStart()
    return refused(stage, processor, processor)


def by_a_sampler(stage: ExitStack) -> Ground:
    """By a sampler of the program's own."""
    sampler = Choosing()
    stage.enter_context(patch.object(pools, "TracerProvider", partial(TracerProvider, sampler)))
    return refused(stage, sampler)


def refused(stage: ExitStack, piece: Refusing, *processors: SpanProcessor) -> Told:
    """Provide a server; a slow checkout whose span was refused gets another one, unless none counts as slow."""
    stage.enter_context(patch.object(pools, "Tally", lambda: piece.tally))
    stage.enter_context(patch.dict(os.environ, OTEL_PGPOOL_SLOW="3600"))
    ground = told(stage, piece, *processors)
    ground.options["long_hold"] = None
    return ground


def telling(scene: Scene) -> Told:
    assert isinstance(scene.ground, Told)
    return scene.ground


def piece_of(scene: Scene) -> Piece:
    piece = telling(scene).piece
    assert isinstance(piece, Piece)
    return piece


def collector_answers(scene: Scene, answer: Answer) -> float:
    """For a while, and until something is lost, where the exporter can know of it."""
    collector = telling(scene).collector
    assert collector is not None
    collector.answer = answer
    time.sleep(scene.away)
    if answer is not Answer.GARBAGE:
        something_is_lost(scene)
    collector.answer = Answer.ACCEPTED
    return monotonic()


def collector_absent(scene: Scene) -> float:
    time.sleep(scene.away)
    something_is_lost(scene)
    return monotonic()


def raises(scene: Scene) -> float:
    piece = piece_of(scene)
    piece.broken = True
    time.sleep(scene.away)
    something_is_lost(scene)
    piece.broken = False
    return monotonic()


def something_is_lost(scene: Scene) -> None:
    piece = telling(scene).piece
    scene.wait_for(lambda: piece.lost > 0)


def queue_is_full(scene: Scene) -> float:
    """Let the exporter hang until more was done than its queue can hold."""
    piece = piece_of(scene)
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
            ("no-http", "that is none", "an answer that is no HTTP", Answer.NO_HTTP),
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
    "start-raises": Fault(
        "a span processor that raises at the start",
        "at the start of each span, which so begins nowhere",
        raises,
        ground=by_a_processor_at_the_start,
        ours_alone=True,
    ),
    "sampler-raises": Fault(
        "a sampler that raises", "at each span that it is asked for", raises, ground=by_a_sampler, ours_alone=True
    ),
    "queue-full": Fault(
        "a full batch queue",
        f"the exporter hangs while more than {QUEUE} spans end",
        queue_is_full,
        ground=by_an_exporter,
        ours_alone=True,
    ),
}
