"""The target of a pool's connects, read from its arguments as asyncpg reads them, without calling the application."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from otel_pgpool.driver.target import PLAIN, UNKNOWN, target_of_parameters
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_pgpool.driver.target import Target

SOCKET = re.compile(r"(.*)/\.s\.PGSQL\.(\d+)")
BRACKETED = re.compile(r"\[([^\]]+)\](?::([0-9]+))?")


class HostsAndPorts(NamedTuple):
    """The hosts of a connection string, and the port of each; empty if it names none."""

    hosts: Sequence[str]
    ports: Sequence[str]


def target_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], *, in_url: bool = False) -> Target:
    """Return the target of a pool's arguments, without raising; unknown if a decisive one is not a plain value.

    The target is also unknown if a service file may determine it. The password is not read.

    Args:
        args: positional arguments of ``asyncpg.connect``.
        kwargs: its keyword arguments.
        in_url: whether the keyword arguments were read from a URL.
    """
    with ignore_errors:  # asyncpg raises the error itself when the pool connects
        dsn = args[0] if args else None
        if not kwargs.get("service") and not os.environ.get("PGSERVICE"):
            places = {key: _plain(kwargs.get(key)) for key in ("host", "port")}
            return target_of_parameters(_parameters(dsn, places, kwargs), in_url=in_url or bool(dsn))
    return UNKNOWN


def target_of_connection(con: Any) -> Target:
    """Return the target that a connection was made to, for a pool whose arguments do not show the target."""
    host, port = address_of(con)
    if host is not None:
        with ignore_errors:
            return target_of_parameters({"host": host, "port": port, "dbname": str(private.database_of(con))})
    return UNKNOWN


def address_of(con: Any) -> tuple[str | None, int | None]:
    """Return the host or the folder of the socket, and the port, that a connection was made to."""
    with ignore_errors:
        address = private.address_of(con)
        if isinstance(address, tuple):
            return str(address[0]), int(address[1])
        socket = SOCKET.fullmatch(address)
        if socket is not None:
            return socket[1], int(socket[2])
    return None, None


def _plain(value: Any) -> list[str]:
    """Return a value or the values of a list as texts.

    Raises:
        TypeError: one of them is an object of the application.
    """
    values = value if type(value) in (list, tuple) else [value]
    if any(type(each) not in PLAIN for each in values):
        raise TypeError
    return [str(each) for each in values if each]


def _parameters(dsn: Any, places: Mapping[str, list[str]], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Return libpq's parameters for the arguments of ``asyncpg.connect``.

    Raises:
        TypeError: an argument is an object of the application.
        ValueError: the connection string is invalid, or contains the end of a password with an unescaped character.
    """
    (dsn,) = _plain(dsn) or [""]
    url = urlsplit(dsn)
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    login, _, netloc = url.netloc.rpartition("@")
    if "service" in query or "@" in login or "@" in unquote(netloc):
        raise ValueError
    if any("@" in part for part in (url.path, url.query, url.fragment)):  # after a password with '/', '?' or '#'
        raise ValueError
    found = _hosts_and_ports(places["host"], netloc, query)
    from_query = "" if netloc and not places["host"] else query.get("port")  # asyncpg does not read it then
    ports = places["port"] or found.ports or (from_query or os.environ.get("PGPORT") or "").split(",")
    user = _first(kwargs.get("user"), unquote(login.partition(":")[0]), query.get("user"))
    database = _first(kwargs.get("database"), unquote(url.path[1:]), query.get("dbname"), query.get("database"))
    database = database or os.environ.get("PGDATABASE") or user
    parameters = {"host": ",".join(found.hosts), "port": ",".join(ports), "user": user, "dbname": database}
    return {key: value for key, value in parameters.items() if value}


def _hosts_and_ports(hosts: list[str], netloc: str, query: Mapping[str, str]) -> HostsAndPorts:
    if hosts:
        return HostsAndPorts(hosts, [])
    for text in (netloc, query.get("host", ""), os.environ.get("PGHOST", "")):
        if text:
            pairs = [_host_and_port(each) for each in text.split(",")]
            default = os.environ.get("PGPORT", "")
            ports = [port or default for _host, port in pairs] if any(port for _host, port in pairs) else []
            return HostsAndPorts([host for host, _port in pairs], ports)
    return HostsAndPorts(["localhost"], [])  # asyncpg first tries the sockets of a local server


def _host_and_port(text: str) -> tuple[str, str]:
    bracketed = BRACKETED.fullmatch(text)
    if bracketed is not None:
        return bracketed[1], bracketed[2] or ""
    if text.startswith("/"):
        return text, ""
    host, _, port = text.partition(":")
    return unquote(host), unquote(port)


def _first(given: Any, *others: str | None) -> str:
    """Return the first of several values that is set."""
    return next(iter([*_plain(given), *filter(None, others)]), "")
