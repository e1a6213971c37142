"""Entry spans: which span of this process a request or a job has begun with."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, set_span_in_context

from otel_pgpool.telemetry.entry_spans import EntrySpans

if TYPE_CHECKING:
    from opentelemetry.context import Context

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = (
    SpanKind.INTERNAL,
    SpanKind.SERVER,
    SpanKind.CLIENT,
    SpanKind.PRODUCER,
    SpanKind.CONSUMER,
)
ABOVE = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))))
"""The context of a request from another process."""


class Process:
    """A provider whose spans are watched, and chains of spans from it."""

    def __init__(self, *, is_watched: bool = True, **options: Any) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.entries = EntrySpans()
        if is_watched:
            self.watch()

    def watch(self) -> None:
        self.entries.watch(self.provider)

    def chain(self, *kinds: SpanKind, above: Context | None = None, scope: str = "app") -> list[Span]:
        """Start spans, each the parent of the next one."""
        context, spans = above or contexts.Context(), []
        for kind in kinds:
            spans.append(self.provider.get_tracer(scope).start_span(kind.name, context, kind))
            context = set_span_in_context(spans[-1], context)
        return spans

    def find(self, span: Span) -> Any:
        return self.entries.find(set_span_in_context(span, contexts.Context()))


@pytest.mark.parametrize("above", [None, ABOVE], ids=["new trace", "from another process"])
@pytest.mark.parametrize(
    ("kinds", "entry"),
    [
        ([SERVER], 0),
        ([CONSUMER], 0),
        ([INTERNAL], 0),
        ([SERVER, INTERNAL, INTERNAL], 0),
        ([SERVER, CLIENT], 0),
        ([INTERNAL, INTERNAL, CLIENT], 0),
        ([INTERNAL, SERVER, INTERNAL], 1),
        ([SERVER, CONSUMER, INTERNAL], 1),
        ([CLIENT], None),
        ([PRODUCER, INTERNAL], None),
        ([CLIENT, SERVER, INTERNAL], 1),
    ],
)
def test_the_nearest_server_or_consumer_or_else_the_outermost(
    kinds: list[SpanKind], entry: int | None, above: Context | None
) -> None:
    process = Process()
    spans = process.chain(*kinds, above=above)
    assert process.find(spans[-1]) is (None if entry is None else spans[entry])


def test_a_span_of_the_pool_is_no_entry() -> None:
    process = Process()
    (span,) = process.chain(INTERNAL, scope="otel_pgpool")
    assert process.find(span) is None


def test_an_entry_that_has_ended_does_not_count() -> None:
    """Nor one that nothing refers to any more."""
    process = Process()
    entry, span = process.chain(SERVER, INTERNAL)
    entry.end()
    assert process.find(span) is None
    dropped, span = process.chain(SERVER, INTERNAL)
    del dropped
    gc.collect()
    assert process.find(span) is None


def test_a_span_that_has_ended_leads_to_no_entry() -> None:
    process = Process()
    _entry, span = process.chain(SERVER, INTERNAL)
    span.end()
    assert process.find(span) is None


def test_spans_that_are_not_recorded_lead_to_no_entry() -> None:
    process = Process(sampler=ALWAYS_OFF)
    assert process.find(process.chain(SERVER)[0]) is None
    assert process.find(trace.INVALID_SPAN) is None
    assert process.entries.find(ABOVE) is None
    assert process.entries.find(contexts.Context()) is None


def test_a_span_from_before_is_known_as_far_as_it_shows() -> None:
    """Its kind or the lack of a local parent shows that it is an entry; otherwise only a later child can know."""
    process = Process(is_watched=False)
    server, inner = process.chain(SERVER, INTERNAL)
    process.watch()
    assert process.find(server) is server
    assert process.find(inner) is None
    (child,) = process.chain(INTERNAL, above=set_span_in_context(server))
    assert process.find(child) is server


def test_the_global_provider_may_be_set_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first look-up on that finds no entry, its spans are watched."""
    process = Process(is_watched=False)
    _server, inner = process.chain(SERVER, INTERNAL)
    process.entries.watch(None)
    assert process.find(inner) is None
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", process.provider)
    assert process.find(inner) is None
    server, inner = process.chain(SERVER, INTERNAL)
    assert process.find(inner) is server


def test_a_provider_is_watched_once() -> None:
    process = Process()
    process.watch()
    processors: tuple[object, ...] = process.provider._active_span_processor._span_processors
    assert processors == (process.entries,)


def test_without_the_sdk_nothing_is_watched() -> None:
    """And a span of another implementation, with none of the SDK's attributes, is no entry."""

    class Foreign(NonRecordingSpan):
        def is_recording(self) -> bool:
            return True

    entries = EntrySpans()
    entries.watch(trace.NoOpTracerProvider())
    assert entries.find(set_span_in_context(Foreign(trace.INVALID_SPAN_CONTEXT))) is None


def test_nothing_is_kept_of_ended_spans() -> None:
    process = Process()
    for _ in range(10):
        for span in process.chain(SERVER, INTERNAL):
            span.end()
    del span
    gc.collect()
    assert len(process.entries._entries) == 0
