"""OpenTelemetry for applications that have not set it up: ``configure()`` sets providers that export over OTLP.

This package needs the extra ``otlp``: the OpenTelemetry SDK and its OTLP exporters. ``import otel_pgpool`` does not
import it.
"""

from __future__ import annotations

try:
    from otel_pgpool.otlp.configuration import configure
    from otel_pgpool.otlp.providers import Providers, Undelivered
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("opentelemetry."):
        raise
    message = f"otel_pgpool.otlp needs {error.name}: install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["Providers", "Undelivered", "configure"]
