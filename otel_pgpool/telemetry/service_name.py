"""The name of the service, which a pool's sessions have on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.semconv.attributes import service_attributes

from otel_pgpool.telemetry.sdk_internals import global_tracer_provider

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


def service_name(provider: TracerProvider | None) -> str | None:
    """Return the ``service.name`` of a tracer provider's resource; None if it has none.

    Args:
        provider: the provider; None for the global one, if that is set.
    """
    resource = getattr(provider or global_tracer_provider(), "resource", None)
    name = None if resource is None else resource.attributes.get(service_attributes.SERVICE_NAME)
    return name if isinstance(name, str) else None
