"""The target of a pool's connections, from parameters named as libpq names them; independent of any driver."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.runtime.text import LONGEST_NAME, cut, may_hold_password, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT = "5432"
DEFAULT_FOLDERS = ("/var/run/postgresql", "/tmp")  # nosec B108 # noqa: S108 - where libpq and asyncpg look for a server's socket
VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
}
"""Parameters that determine a target, and the variables that most drivers read if a parameter is not set."""


class ServerTarget(NamedTuple):
    """A server and a database, and what may be shown of them: a `PoolTarget`."""

    address: str
    port: int | None
    namespace: str
    name: str
    public: frozenset[str]


UNKNOWN = ServerTarget("", None, "", "unknown", frozenset())
"""The target of a pool about which nothing is known, or nothing may be shown."""


def server_target(parameters: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> ServerTarget:
    """Return the target of connection parameters; `UNKNOWN` if one of them may contain a part of a password.

    Args:
        parameters: the parameters by libpq's names; several hosts or ports are separated by commas.
        environ: the variables that the driver reads.
    """
    found = {key: str(parameters.get(key) or environ.get(name) or "") for key, name in VARIABLES.items()}
    ports = [port or DEFAULT_PORT for port in found["port"].split(",")]
    if not _is_safe(found) or not all(port.isdecimal() for port in ports):
        return UNKNOWN
    user = found["user"] or _user()
    hosts = found["host"] or found["hostaddr"] or "localhost"
    address, namespace = printable(hosts), printable(found["dbname"] or user)
    each_port = ports * len(hosts.split(",")) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port}" for host, port in zip(address.split(","), each_port, strict=False))
    folders = [host for host in hosts.split(",") if host.startswith(("/", "@"))] or DEFAULT_FOLDERS
    sockets = [f"{folder}/.s.PGSQL.{port}" for folder in folders for port in ports]
    pieces = [piece for text in found.values() for piece in (text, *text.split(","))]
    return ServerTarget(
        address,
        int(ports[0]) if len({*ports}) == 1 else None,
        namespace,
        cut(f"{places}/{namespace}", LONGEST_NAME),
        frozenset(filter(None, (*pieces, *ports, *sockets, "localhost", user))),
    )


def _is_safe(found: Mapping[str, str]) -> bool:
    """Return whether no parameter is a connection string, or the rest of one after a password's ``@``."""
    if any(map(may_hold_password, found.values())) or any("@" in found[key][1:] for key in ("host", "hostaddr")):
        return False
    database = found["dbname"]
    return "@" not in database or not (":" in database or "/" in database)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return "postgres"
