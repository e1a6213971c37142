"""The OTLP endpoint of the demo: its URL and protocol, and the address of Jaeger's user interface."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

ACCEPTED = "http://host:port or https://host:port"
HTTP_PORT = 4318
JAEGER_PORT = 16686
PROTOCOLS = ("grpc", "http/protobuf")
_PLACE = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^/?#]*@)?(?P<rest>(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d*)?)"
    r"(?=[/?#]|$)",
    re.IGNORECASE,
)
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL_VARIABLE = "OTEL_EXPORTER_OTLP_PROTOCOL"


@dataclass(frozen=True)
class Endpoint:
    """An OTLP endpoint."""

    url: str
    host: str
    protocol: str

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str], *, strict: bool = True) -> Endpoint:
        """Parse a URL. The protocol is the environment's, or else depends on the port: 4318 is OTLP over HTTP.

        Args:
            url: the URL; unless ``strict``, the port may be omitted and a path may follow, as the SDK allows.
            environ: the environment.
            strict: whether host and port are required, and a path is not allowed.

        Raises:
            ValueError: the URL is not an accepted one, or the protocol is not one of `PROTOCOLS`.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if (
            not host
            or parts.scheme not in {"http", "https"}
            or parts.username is not None
            or parts.query
            or parts.fragment
            or not url.isprintable()
            or " " in url
            or (strict and (port is None or parts.path not in {"", "/"}))
        ):
            safe = place(url)
            raise ValueError(f"expected {ACCEPTED}{safe and f', not {safe!r}'}")
        protocol = environ.get(PROTOCOL_VARIABLE, "").strip()
        if protocol and protocol not in PROTOCOLS:
            raise ValueError(f"{PROTOCOL_VARIABLE} must be {' or '.join(PROTOCOLS)}, not {protocol!r}")
        return cls(url.rstrip("/"), host, protocol or ("http/protobuf" if port == HTTP_PORT else "grpc"))

    def export_to(self, environ: MutableMapping[str, str]) -> None:
        """Set the variables that the SDK's exporters read.

        The variables for single signals are removed, because they would take precedence.
        """
        for signal in ("TRACES", "METRICS", "LOGS"):
            environ.pop(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", None)
            environ.pop(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", None)
        environ[ENDPOINT_VARIABLE] = self.url
        environ[PROTOCOL_VARIABLE] = self.protocol

    def jaeger_search(self, service: str) -> str:
        """Return the URL of Jaeger's search for long holds, assuming that Jaeger runs on the endpoint's host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        tags = '{"otel_pgpool.long_hold":"true"}'
        query = urlencode({"service": service, "tags": tags, "lookback": "1h", "limit": 20}, quote_via=quote)
        return f"http://{host}:{JAEGER_PORT}/search?{query}"


def place(url: str) -> str:
    """Return the parts of an endpoint that may be shown: scheme, host and port; empty if it cannot be parsed.

    The path and the query may contain a key, and a password may precede the host.
    """
    found = _PLACE.match(url)
    return "" if found is None or "@" in url[found.end() :] else f"{found['scheme']}{found['rest']}"
