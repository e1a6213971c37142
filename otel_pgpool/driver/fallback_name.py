"""The name of a pool's sessions on the server, for a program that sets none: service and pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from otel_pgpool.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_BYTES = 63
"""Maximum number of bytes of a name on the server."""

UNKNOWN_SERVICE = "unknown_service"
"""The name that OpenTelemetry's specification gives to a service without one."""

KEY = "fallback_application_name"
OWN_NAMES = ("application_name", KEY)
"""Connection parameters with which a program names its sessions itself. libpq reads ``PGAPPNAME`` too."""


def fallback_name(service: object, pool: str) -> str:
    """Return the name of a pool's sessions: ``<service>/<pool>``, printable, and of at most 63 bytes.

    Args:
        service: the service's name; what the environment says if this is not a string, or empty.
        pool: the pool's name.
    """
    name = service if isinstance(service, str) and service else service_name()
    return printable(f"{name}/{pool}").encode()[:LONGEST_BYTES].decode(errors="ignore")


def service_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return the service's name from the variables that OpenTelemetry's specification defines."""
    name = environ.get("OTEL_SERVICE_NAME", "").strip()
    if name:
        return name
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "service.name":
            name = unquote(value.strip())
    return name or UNKNOWN_SERVICE


def is_named(parameters: Mapping[str, Any]) -> bool:
    """Return whether connection parameters name the session."""
    return any(key in parameters for key in OWN_NAMES)
