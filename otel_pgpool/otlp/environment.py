"""The environment variables that choose the OTLP exporters, which the SDK leaves to the code that builds providers."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from otel_pgpool.environment import EXPORTERS, PROTOCOL, PROTOCOLS, SDK_DISABLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.environment import Variable

_PACKAGES = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
}
_CLASSES = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}

_OTLP = {"otlp": None, "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
"""Values of ``OTEL_<signal>_EXPORTER`` that mean OTLP, with the protocol if the value implies one."""


def otlp_exporters() -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Return the class of the OTLP exporter of each signal that the variables send over OTLP, and warnings.

    There are none if the environment switches the SDK off. A warning names a variable whose value is not supported, the
    value, and what happens instead.

    Raises:
        ModuleNotFoundError: the exporter of a chosen protocol is not installed.
    """
    warnings: list[str] = []
    exporters = {}
    for signal, (module, name) in _CLASSES.items() if _value(SDK_DISABLED).lower() != "true" else ():
        if protocol := _protocol(signal, warnings):
            try:
                exporters[signal] = getattr(importlib.import_module(f"{_PACKAGES[protocol]}.{module}"), name)
            except ModuleNotFoundError as error:
                extra = "install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
                message = f"OTLP over {protocol} needs {error.name}: {extra}"
                raise ModuleNotFoundError(message, name=error.name) from error
    return exporters, list(dict.fromkeys(warnings))  # once each: a variable may concern all three signals


def _protocol(signal: str, warnings: list[str]) -> str | None:
    """Return the protocol in which a signal is sent over OTLP; None if other exporters or none are named."""
    variable = EXPORTERS[signal]
    names = [name.strip().lower() for name in _value(variable).split(",")]
    served = [name for name in names if name in _OTLP]
    if any(name not in _OTLP and name not in ("none", "") for name in names):
        instead = f"it exports {signal} over OTLP only" if served else f"it exports no {signal}"
        accepted = "otlp, none, and exporters as arguments"
        warnings.append(f"{variable.name}={_value(variable)}: configure() supports {accepted}; {instead}")
    return (_OTLP[served[0]] or _default_protocol(signal, warnings)) if served else None


def _default_protocol(signal: str, warnings: list[str]) -> str:
    variable = PROTOCOLS[signal] if _value(PROTOCOLS[signal]) else PROTOCOL
    protocol = _value(variable).lower()
    if protocol in _PACKAGES:
        return protocol
    instead = "http/protobuf" if protocol.startswith("http") else PROTOCOL.default
    warnings.append(f"{variable.name}={protocol}: configure() supports {' and '.join(_PACKAGES)}; {instead} is used")
    return instead


def _value(variable: Variable) -> str:
    return os.environ.get(variable.name, "").strip() or variable.default
