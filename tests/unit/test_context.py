"""A context that holds a checkout's span, made in one step."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span, set_span_in_context

from otel_pgpool.telemetry.context import ContextWithSpan


def test_a_context_made_in_one_step_is_what_the_api_makes() -> None:
    """It holds the span, in the place of the caller's, and what else the caller's context held."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    callers, span = tracer.start_span("order"), tracer.start_span("pool.checkout")
    caller = set_span_in_context(callers, Context({"tenant": "north"}))
    made = ContextWithSpan.of(caller, span)
    assert made == set_span_in_context(span, caller)
    assert get_current_span(made) is span
    assert get_current_span(caller) is callers
