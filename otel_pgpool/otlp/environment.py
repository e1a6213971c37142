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


def is_disabled() -> bool:
    """Return whether the environment switches the SDK off."""
    return _value(SDK_DISABLED).lower() == "true"


def otlp_exporters() -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Return the class of the OTLP exporter of each signal that the variables send over OTLP, and warnings.

    A warning names a variable whose value is not supported, the value, and what happens instead.

    Raises:
        ModuleNotFoundError: the exporter of a chosen protocol is not installed.
    """
    warnings: dict[str, None] = {}  # used as an ordered set: a variable may concern all three signals
    protocols = {signal: _protocol(signal, warnings) for signal in _CLASSES}
    exporters = {signal: _exporter_class(signal, protocol) for signal, protocol in protocols.items() if protocol}
    return exporters, list(warnings)


def _exporter_class(signal: str, protocol: str) -> Callable[[], Any]:
    module, name = _CLASSES[signal]
    try:
        exporter: Callable[[], Any] = getattr(importlib.import_module(f"{_PACKAGES[protocol]}.{module}"), name)
    except ModuleNotFoundError as error:
        message = f"OTLP over {protocol} needs {error.name}: install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
        raise ModuleNotFoundError(message, name=error.name) from error
    return exporter


def _protocol(signal: str, warnings: dict[str, None]) -> str | None:
    """Return the protocol in which a signal is sent over OTLP; None if other exporters or none are named."""
    variable = EXPORTERS[signal]
    names = [name.strip().lower() for name in _value(variable).split(",")]
    served = [name for name in names if name in _OTLP]
    if any(name not in _OTLP and name not in ("none", "") for name in names):
        instead = f"{signal} go over OTLP alone" if served else f"no {signal} are exported by it"
        accepted = "otlp, none, and exporters as arguments"
        warnings[f"{variable.name}={_value(variable)}: configure() supports {accepted}; {instead}"] = None
    return (_OTLP[served[0]] or _default_protocol(signal, warnings)) if served else None


def _default_protocol(signal: str, warnings: dict[str, None]) -> str:
    variable = PROTOCOLS[signal] if _value(PROTOCOLS[signal]) else PROTOCOL
    protocol = _value(variable).lower()
    if protocol in _PACKAGES:
        return protocol
    instead = "http/protobuf" if protocol.startswith("http") else PROTOCOL.default
    warnings[f"{variable.name}={protocol}: configure() supports {' and '.join(_PACKAGES)}; {instead} is used"] = None
    return instead


def _value(variable: Variable) -> str:
    return os.environ.get(variable.name, "").strip() or variable.default
