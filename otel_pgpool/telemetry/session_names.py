"""What the names of a pool's sessions on the server consist of: the service, or the trace of a checkout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.semconv.attributes import service_attributes

from otel_pgpool.telemetry.sdk_internals import global_tracer_provider

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


def service_name(provider: TracerProvider | None) -> str | None:
    """Return the ``service.name`` of a tracer provider's resource; None if it has none.

    Args:
        provider: the provider; None for the global one, if that is set.
    """
    resource = getattr(provider or global_tracer_provider(), "resource", None)
    name = None if resource is None else resource.attributes.get(service_attributes.SERVICE_NAME)
    return name if isinstance(name, str) else None


def traceparent(span: Span | None) -> str | None:
    """Return the ``traceparent`` of a span, by which it is found in traces; None if it is not recorded and sampled."""
    if span is None or not span.is_recording():
        return None
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
