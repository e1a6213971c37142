"""The context and the data of a checkout.

A context with the checkout's span is created at half the usual cost, and detached in any thread and order.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace

from otel_pgpool.telemetry.sdk_internals import SPAN_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.util.types import AttributeValue


class ContextWithSpan(contexts.Context):
    """The context that is current in the block of a checkout."""

    __slots__ = ("before", "is_over")

    before: contexts.Context
    """The caller's context."""
    is_over: bool
    """Whether the block was left while another context was current; `leave_ended` then returns to `before`."""

    @classmethod
    def of(cls, caller: contexts.Context, span: Any) -> ContextWithSpan:
        """Create the context of a checkout's span."""
        made = cls({**caller, SPAN_KEY: span})
        made.before = caller
        made.is_over = False
        return made


def leave_ended() -> contexts.Context:
    """Leave the contexts of blocks that have ended, maybe in another thread; return the context that is now current."""
    found = current = contexts.get_current()
    while type(current) is ContextWithSpan and current.is_over:
        current = current.before
    if current is not found:
        contexts.attach(current)
    return current


def detach(token: Any, attached: contexts.Context | None) -> None:
    """Undo an ``attach`` if its context is still current; otherwise mark the context for `leave_ended`.

    A block may be left in another thread or context than it was entered in, where ``opentelemetry.context.detach``
    would log an error, or out of order, where it would restore the wrong context. Both are common with generators.
    """
    try:
        _detach(token, attached)
    except BaseException:
        _detach(token, attached)  # again, because an interrupt may have cut the first call short
        raise


def _detach(token: Any, attached: contexts.Context | None) -> None:
    if contexts.get_current() is not attached:
        if type(attached) is ContextWithSpan:
            attached.is_over = True
        return
    if isinstance(token, contextvars.Token):
        try:
            token.var.reset(token)
        except (ValueError, RuntimeError):  # attached in another contextvars.Context, of which this one is a copy
            if type(attached) is ContextWithSpan:
                attached.is_over = True
    else:
        contexts.detach(token)
    leave_ended()


class CheckoutState:
    """The data that telemetry keeps with a checkout. The class has no ``__init__``, which would double the cost.

    All its times are computed from one reading of both clocks, so that a step of the system's clock, or a thread switch
    between two readings, moves no event before the span's start.
    """

    __slots__ = ("__dict__", "began", "began_ns", "context", "span", "token")

    began: float
    began_ns: int
    context: contexts.Context | None
    """Context of the checkout's span; the caller's context if there is no span (yet)."""
    span: trace.Span | None
    token: Any
    """Token of the context while it is current."""
    long_hold: Mapping[str, AttributeValue] | None = None
    """Attributes of the long hold's event."""
    database_states: Sequence[tuple[float, Mapping[str, AttributeValue]]] = ()
    """Times and attributes of the events of the database's side, if there is no span yet."""

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

    @property
    def traceparent(self) -> str | None:
        """The W3C header that names the checkout's span; None if there is no span (yet), or none that is sampled."""
        if self.span is None or not self.span.is_recording():
            return None
        context = self.span.get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


SUPPRESSED = CheckoutState()
SUPPRESSED.context = SUPPRESSED.span = SUPPRESSED.token = None
"""The data of every checkout whose caller has suppressed instrumentation: nothing is recorded."""
