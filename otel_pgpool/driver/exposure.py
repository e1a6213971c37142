"""Protection of credentials on their way to the server: whether the connection is sure to be encrypted."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from ipaddress import ip_address
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions

from otel_pgpool.driver import target
from otel_pgpool.runtime.failures import log_safely
from otel_pgpool.runtime.text import text_of
from otel_pgpool.types import LogEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

UNSURE_MODES = ("disable", "allow", "prefer", "")
"""Values of ``sslmode`` with which libpq continues unencrypted if the server, or an attacker, denies having TLS."""

REQUIRE_AUTH_SINCE = 160000
UNCHANGED: tuple[Mapping[str, str], ...] = ({},)
"""The sets of a connect whose parameters are sent as they are."""
NOT_IN_CLEAR = {"require_auth": "!password"}
OVER_TLS = {"sslmode": "require"}

VARIABLES = target.VARIABLES | {
    "gssencmode": "PGGSSENCMODE",
    "require_auth": "PGREQUIREAUTH",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
}


def is_exposed(parameters: Mapping[str, Any]) -> bool:
    """Return whether a connect leads to another machine, and is not sure to be encrypted."""
    return _may_be_in_clear(parameters) and not all(_is_local(place) for place in _places(parameters))


def safe_options(parameters: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Return sets of further parameters, to be tried in turn, that keep a password from being sent in clear text.

    With the first, libpq refuses a server's request for a password in clear text; with the second, it answers one over
    TLS. Nothing is added for a Unix socket, for a connection that is encrypted anyway, and if the application itself
    has set ``require_auth``. libpq before 16 has no such parameter.
    """
    if (
        extensions.libpq_version() < REQUIRE_AUTH_SINCE
        or has_service(parameters)
        or "require_auth" in parameters
        or _value(parameters, "require_auth")
        or not _may_be_in_clear(parameters)
        or all(_is_socket(place) for place in _places(parameters))
    ):
        return UNCHANGED
    return (NOT_IN_CLEAR,) if _value(parameters, "sslmode") == "disable" else (NOT_IN_CLEAR, OVER_TLS)


def is_asked_in_clear(error: BaseException) -> bool:
    """Return whether libpq has refused to send a password in clear text."""
    return "server requested a cleartext password" in text_of(error)


def warn(pool_name: str) -> None:
    """Log that secrets are exposed."""
    log_safely(
        logging.WARNING,
        "pool %s: the result of `credentials` is sent to another machine, and the connection may be unencrypted: "
        "set sslmode=verify-full, or at least sslmode=require",
        pool_name,
        extra={**LogEvent.CREDENTIALS_EXPOSED.attributes, "db.client.connection.pool.name": pool_name},
    )


def _may_be_in_clear(parameters: Mapping[str, Any]) -> bool:
    """Return whether the connection may be unencrypted; False if a service file, which only libpq reads, may decide."""
    if has_service(parameters) and "sslmode" not in parameters:
        return False
    is_required = (
        _value(parameters, "gssencmode") == "require"
        or _value(parameters, "sslrootcert") == "system"  # libpq then refuses a mode below verify-full
        or ("sslmode" not in parameters and os.environ.get("PGREQUIRESSL") == "1" and not os.environ.get("PGSSLMODE"))
    )
    return not is_required and _value(parameters, "sslmode") in UNSURE_MODES


def has_service(parameters: Mapping[str, Any]) -> bool:
    """Return whether a connect uses a service file, which only libpq reads."""
    return bool(parameters.get("service") or os.environ.get("PGSERVICE"))


def _value(parameters: Mapping[str, Any], key: str) -> str:
    """Return the value that libpq uses: the parameter's, or else its environment variable's."""
    return str(parameters[key] if key in parameters else os.environ.get(VARIABLES[key], ""))


def _places(parameters: Mapping[str, Any]) -> list[str]:
    """Return the address of each host, or else its name."""
    hosts, addresses = (_value(parameters, key).split(",") for key in ("host", "hostaddr"))
    return [address or host for host, address in zip_longest(hosts, addresses, fillvalue="")]


def _is_socket(place: str) -> bool:
    return not place or place.startswith(("/", "@"))


def _is_local(place: str) -> bool:
    if _is_socket(place) or place == "localhost":
        return True
    with suppress(ValueError):  # a name
        return ip_address(place).is_loopback
    return False
