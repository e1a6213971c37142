"""The environment variables that choose exporters, which the SDK leaves to the code that builds providers.

Exporters are found by their entry points, as ``opentelemetry-instrument`` finds them.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from otel_pgpool.environment import EXPORTERS, PROTOCOL, PROTOCOLS, SDK_DISABLED
from otel_pgpool.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.environment import Variable

_ENTRY_POINTS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
"""The exporters that send over OTLP, by protocol."""

_OTLP = {"otlp": None, **{name: protocol for protocol, name in _ENTRY_POINTS.items()}}
"""Values of ``OTEL_<signal>_EXPORTER`` that mean OTLP, with the protocol if the value implies one."""


def otlp_exporters(warnings: list[str]) -> dict[str, Callable[[], Any]]:
    """Return the class of the OTLP exporter of each signal that the variables send over OTLP.

    Args:
        warnings: gets a text for each variable whose value is not supported: the value, and what happens instead.

    Raises:
        ModuleNotFoundError: the exporter of a chosen protocol is not installed.
    """
    exporters = {}
    for signal in EXPORTERS:
        names = [name for name in _names(signal) if name in _OTLP]
        if names:
            exporters[signal] = _otlp_exporter(signal, _OTLP[names[0]] or _protocol(signal, warnings))
    return exporters


def other_exporters(warnings: list[str]) -> dict[str, list[Any]]:
    """Create the other exporters that the variables name, such as that of the console, by signal.

    For metrics, an exporter may be a reader, as Prometheus's is. One that is not installed, or fails, is left out.

    Args:
        warnings: as for `otlp_exporters`.
    """
    exporters: dict[str, list[Any]] = {signal: [] for signal in EXPORTERS}
    for signal, created in exporters.items():
        for name in _names(signal):
            if name in _OTLP:
                continue
            try:
                created.append(_load(signal, name)())
            except Exception as error:  # noqa: BLE001 - another's code, which may find its port taken
                value, problem = _value(EXPORTERS[signal]), printable(str(error) or type(error).__name__)
                rest = ", ".join(other for other in _names(signal) if other != name)
                instead = f"it exports {signal} to {rest} only" if rest else f"it exports no {signal}"
                warnings.append(
                    f"{EXPORTERS[signal].name}={value}: configure() cannot use {name!r}: {problem}; {instead}"
                )
    return exporters


def _names(signal: str) -> list[str]:
    """Return the exporters that a variable names; none if the environment switches the SDK off."""
    if _value(SDK_DISABLED).lower() == "true":
        return []
    names = [name.strip() for name in _value(EXPORTERS[signal]).lower().split(",")]
    return [name for name in dict.fromkeys(names) if name not in ("none", "")]


def _otlp_exporter(signal: str, protocol: str) -> Callable[[], Any]:
    try:
        return _load(signal, _ENTRY_POINTS[protocol])
    except (LookupError, ModuleNotFoundError) as error:
        missing = getattr(error, "name", None) or f"opentelemetry.exporter.{_ENTRY_POINTS[protocol].replace('_', '.')}"
        message = f"OTLP over {protocol} needs {missing}: install the extra 'otlp' (pip install 'otel-pgpool[otlp]')"
        raise ModuleNotFoundError(message, name=missing) from error


def _load(signal: str, name: str) -> Callable[[], Any]:
    """Load the class of an exporter.

    Raises:
        LookupError: none of this name is installed.
    """
    for entry_point in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        loaded: Callable[[], Any] = entry_point.load()
        return loaded
    raise LookupError(f"no such exporter is installed for {signal}")


def _protocol(signal: str, warnings: list[str]) -> str:
    variable = PROTOCOLS[signal] if _value(PROTOCOLS[signal]) else PROTOCOL
    protocol = _value(variable).lower()
    if protocol in _ENTRY_POINTS:
        return protocol
    instead = "http/protobuf" if protocol.startswith("http") else PROTOCOL.default
    warnings.append(
        f"{variable.name}={protocol}: configure() supports {' and '.join(_ENTRY_POINTS)}; {instead} is used"
    )
    return instead


def _value(variable: Variable) -> str:
    return os.environ.get(variable.name, "").strip() or variable.default
