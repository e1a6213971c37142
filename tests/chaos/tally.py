"""Spans, counted as they start and end."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_pgpool.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span


class Tally(SpanProcessor):
    """Keeps counts, and the names of those that are open, so that it may go on for hours."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.open: dict[int, str] = {}
        """The names of those that have not ended, by their ids."""
        self.outcomes: Counter[str] = Counter()
        """Of the checkouts that have ended."""
        self.paths: Counter[str] = Counter()
        """Of those that had a connection."""
        self._lock = threading.RLock()  # the garbage collector may end a span while one is counted

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Count one."""
        with self._lock:
            self.started[span.name] += 1
            self.open[span.context.span_id] = span.name

    def refused(self, name: str, *, begun: bool) -> None:
        """Count one that a broken piece has refused, which ends nowhere; ``begun`` where it was counted."""
        with self._lock:
            self.started[name] += not begun
            self.ended[name] += 1

    def on_end(self, span: ReadableSpan) -> None:
        """Count one."""
        attributes = span.attributes or {}
        with self._lock:
            self.ended[span.name] += 1
            self.open.pop(span.context.span_id if span.context else 0, None)
            if span.name == names.SPAN_CHECKOUT:
                self.outcomes[str(attributes[names.OUTCOME])] += 1
                if names.ATTR_HOLD_TIME in attributes:
                    self.paths[str(attributes[names.ATTR_PATH])] += 1
