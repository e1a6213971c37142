"""The entry spans of callers: which span of this process a request or a job has begun with."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from otel_pgpool.runtime.by_identity import WeakIdentityDict
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.sdk_internals import SPAN_KEY, global_tracer_provider

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

ENTRIES = SpanKind.SERVER, SpanKind.CONSUMER


class EntrySpans:
    """A span processor that finds the entry span of each span when it starts, because a span does not know its parent.

    The entry span is the nearest one of the kinds in `ENTRIES`; if there is none, the outermost span of this process
    that is internal. Spans of the kinds client and producer are no entry: they belong to a call that leaves the
    process. Nor is a pool's span.
    """

    def __init__(self) -> None:
        self._entries: WeakIdentityDict[weakref.ref[Any]] = WeakIdentityDict()  # by span
        self._watched: WeakIdentityDict[bool] = WeakIdentityDict()  # by provider

    def watch(self, provider: TracerProvider | None) -> None:
        """Watch the spans of a provider, or of the global one if it is set, from now on. A second call does nothing.

        Without the SDK there is nothing to watch.
        """
        provider = global_tracer_provider() if provider is None else provider
        add = getattr(provider, "add_span_processor", None)
        if add is not None and provider not in self._watched:
            self._watched[provider] = True
            add(self)

    def find(self, context: Context) -> Any:
        """Return the entry span of a context; None if there is none, it is not recorded or not known."""
        span: Any = context.get(SPAN_KEY)
        if span is None or not span.is_recording():
            return None
        entry = self._known(span)
        if entry is None:
            self.watch(None)  # the global provider may have been set since the last call
        return entry if entry is not None and entry.is_recording() else None

    def _known(self, span: Any) -> Any:
        """Return the entry span of a span; None if there is none, or if its parent is not known."""
        known = self._entries.get(span)
        return self._of(span, None) if known is None else known()

    def _of(self, span: Any, parent: Any) -> Any:
        """Return the entry span of a span with this parent; None as the parent if that is not known."""
        kind = getattr(span, "kind", None)
        if kind in ENTRIES:
            return span
        context = getattr(span, "parent", None)
        if context is None or context.is_remote:
            scope = getattr(span, "instrumentation_scope", None)
            is_entry = kind is SpanKind.INTERNAL and getattr(scope, "name", None) != names.SCOPE
            return span if is_entry else None
        if parent is not None and parent.get_span_context().span_id == context.span_id:
            return self._known(parent)
        return None

    # What the SDK calls

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Note the entry span of a span."""
        entry = self._of(span, trace.get_current_span(parent_context))
        if entry is not None:
            self._entries[span] = weakref.ref(entry)

    def _on_ending(self, span: Any) -> None:
        pass

    def on_end(self, span: Any) -> None:
        """Do nothing: a span is forgotten with its last reference."""

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        """Do nothing; return True."""
        return True


entry_spans = EntrySpans()
"""The entry spans of this process."""
