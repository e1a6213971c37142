"""The data that telemetry keeps with a checkout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace

from otel_pgpool.telemetry.context import detach

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue


class CheckoutState:
    """The data that telemetry keeps with a checkout. Without an ``__init__``, which would double the cost.

    All its times are computed from one reading of both clocks, so that a step of the system's clock, or a thread switch
    between two readings, moves no event before the span's start.
    """

    __slots__ = ("__dict__", "began", "began_ns", "context", "span", "token")

    began: float
    began_ns: int
    context: Context | None
    """Context of the checkout's span; the caller's context if there is no span (yet)."""
    span: Span | None
    token: Any
    """Token of the context while it is current."""
    long_hold: Mapping[str, AttributeValue] | None = None
    """Attributes of the long hold's event."""

    def enter(self) -> None:
        """Make the checkout's span current."""
        if self.context is not None:
            self.token = contexts.attach(self.context)

    def leave(self) -> None:
        """Restore the context that was current before `enter`."""
        if self.token is not None:
            detach(self.token, self.context)
            self.token = None  # last, so that after an interrupt `leave` is repeated

    def at(self, reading: float) -> int:
        """Return the time of day in nanoseconds for a reading of the monotonic clock."""
        passed = reading - self.began
        return self.began_ns + int(passed * 1e9) if passed > 0.0 else self.began_ns

    @property
    def trace_id(self) -> str | None:
        """Trace of the checkout's span, or else of the caller's span, in hexadecimal digits; None if there is none."""
        if self.context is None:
            return None
        span_context = trace.get_current_span(self.context).get_span_context()
        return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else None


SUPPRESSED = CheckoutState()
SUPPRESSED.context = SUPPRESSED.span = SUPPRESSED.token = None
"""The data of every checkout whose caller has suppressed instrumentation: nothing is recorded."""
