"""The target of a pool's connections, from parameters named as libpq names them; independent of any driver."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.text import LONGEST_NAME, cut, may_hold_password, printable
from otel_pgpool.validation import invalid_option

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT, LAST_PORT = 5432, 65535
DEFAULT_FOLDERS = ("/var/run/postgresql", "/tmp")  # nosec B108 # noqa: S108 - libpq's own, of Debian's packages and of others
"""Folders of a server's Unix socket."""

VARIABLES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
"""Parameters that are shown of a target, and the variables that most drivers read if a parameter is not set."""

PUBLIC = (*VARIABLES, "service", "sslrootcert", "sslcert", "sslkey", "sslcrl")
"""Parameters whose values an error's text may quote."""

DECISIVE = (*VARIABLES, "database", "service", "dsn", "conninfo")
"""Arguments of a connect that determine its target."""

PLAIN = (str, int, float, bool, type(None))
"""Types of arguments that are read. A password or a host may be an object that fetches its value when it is read."""


@dataclass(eq=False, repr=False)
class Target:
    """A server and a database, and what may be shown of them. Without arguments, nothing is known."""

    address: str = ""
    """Host or hosts, or the folder of the Unix socket."""
    port: int | None = None
    """Port of the server; None if several hosts have different ports."""
    namespace: str = ""
    """Name of the database."""
    name: str = "unknown"
    """Name of the target: ``host:port/dbname``, with a port for each of several hosts."""
    public: frozenset[str] = frozenset()
    """Values that an error's text may quote."""
    user: str = ""
    """User of the login."""


UNKNOWN = Target()
"""The target of a pool about which nothing is known, or nothing may be shown."""


def target_of_parameters(
    parameters: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, in_url: bool = False
) -> Target:
    """Return the target of connection parameters; `UNKNOWN` if one of them may contain a part of a password.

    Args:
        parameters: the parameters by libpq's names; several hosts or ports are separated by commas.
        environ: the variables that the driver reads.
        in_url: whether the parameters were read from a URL, in which the end of a password may look like a database.
    """
    try:
        check_parameters(parameters, environ, in_url=in_url)
        return read_target(parameters, environ)
    except Exception:  # noqa: BLE001 - the program gets the driver's error when it connects
        return UNKNOWN


def read_target(parameters: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Target:
    """Return the target of checked parameters."""
    found = _values_of(parameters, environ)
    hosts = str(
        parameters.get("host") or parameters.get("hostaddr") or found["host"] or found["hostaddr"] or "localhost"
    )
    address, namespace = printable(hosts), printable(found["dbname"] or found["user"] or _login())
    ports = _ports_of(found)
    port, *others = {*ports}
    each_port = ports * len(hosts.split(",")) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port}" for host, port in zip(address.split(","), each_port, strict=False))
    return Target(
        address,
        None if others else int(port),
        namespace,
        cut(f"{places}/{namespace}", LONGEST_NAME),
        public_values(parameters, environ),
        found["user"],
    )


def public_values(parameters: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the values that an error's text may quote: each host's name and socket, ports, names and files."""
    found = _values_of(parameters, environ)
    ports = _ports_of(found)
    folders = [host for host in found["host"].split(",") if host.startswith("/")] or DEFAULT_FOLDERS
    sockets = [f"{folder}/.s.PGSQL.{port}" for folder in folders for port in ports]
    pieces = [piece for text in found.values() for piece in (text, *text.split(","))]
    return frozenset(filter(None, (*pieces, *ports, *sockets, "localhost", found["user"] or _login())))


def check_parameters(
    parameters: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, in_url: bool = False
) -> None:
    """Check that no parameter to be shown may contain a part of a password. See `target_of_parameters`.

    Raises:
        ValueError: one may contain a part, or a port is invalid.
    """
    found = _values_of(parameters, environ)
    for key, text in found.items():
        source = key if parameters.get(key) else VARIABLES.get(key, key)
        if may_hold_password(text) or (key == "host" and "@" in text):  # libpq would parse and quote it in errors
            raise ValueError(
                f"dsn cannot be read: {source} is itself a connection string; it is not shown, because it may contain "
                "a password"
            )
    if any("@" in found[key] for key in ("host", "hostaddr", "port")) or _holds_a_login(found["dbname"], in_url=in_url):
        raise ValueError(
            "dsn cannot be read: the host, port or database contains '@'; in a password, write %40 for '@' and %2F for "
            "'/'"
        )
    # A port that is no number may be a part of a password.
    _check_ports("port", parameters.get("port"), show=str(parameters.get("port")).isdecimal())
    _check_ports("PGPORT", environ.get("PGPORT"))


def plain_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a connect that are plain values.

    Raises:
        TypeError: one that determines the target is an object of the application, which must not be read.
    """
    plain = {key: value for key, value in kwargs.items() if type(value) in PLAIN}
    if any(key in DECISIVE for key in kwargs.keys() - plain.keys()):
        raise TypeError
    return plain


def is_url(dsn: object) -> bool:
    """Return whether a connection string is a URL."""
    return isinstance(dsn, str) and dsn.startswith(("postgresql://", "postgres://"))


def _values_of(parameters: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values that may be shown, as the driver finds them."""
    return {key: str(parameters.get(key) or environ.get(VARIABLES.get(key, ""), "")) for key in PUBLIC}


def _ports_of(found: Mapping[str, str]) -> list[str]:
    """Return the port of each host, or the one port of all hosts."""
    return [port or str(DEFAULT_PORT) for port in found["port"].split(",")]


def _check_ports(option: str, ports: object, *, show: bool = True) -> None:
    accepted = f"a whole number of 1 to {LAST_PORT}, or one for each host"
    for port in str(ports or DEFAULT_PORT).split(","):
        if port and not (port.isdecimal() and 0 < int(port) <= LAST_PORT):
            raise invalid_option(option, ports, accepted) if show else ValueError(f"{option} must be {accepted}")


def _holds_a_login(database: str, *, in_url: bool) -> bool:
    """Return whether a database's name is the rest of a URL, after a password with an unescaped character."""
    return "@" in database and (in_url or ":" in database or "/" in database)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return "postgres"
