"""The target of a pool's connections: its arguments, parsed once, and its name without secrets.

This module also works without psycopg2, for targets that are given by parameters only.
"""

from __future__ import annotations

import getpass
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.config import LONGEST_VALUE, invalid_option
from otel_pgpool.runtime.text import LONGEST_NAME, cut, may_hold_password, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2 import Error, extensions

    HAS_PSYCOPG2: bool
else:
    try:
        from psycopg2 import Error, extensions

        HAS_PSYCOPG2 = True
    except ImportError:
        HAS_PSYCOPG2, Error = False, ValueError

DEFAULT_PORT, LAST_PORT = 5432, 65535
DEFAULT_FOLDERS = ("/var/run/postgresql", "/tmp")  # nosec B108 # noqa: S108 - libpq's own, of Debian's packages and of others
"""Folders of a server's Unix socket."""

PUBLIC = ("host", "hostaddr", "port", "user", "dbname", "service", "sslrootcert", "sslcert", "sslkey", "sslcrl")
"""Parameters whose values an error's text may quote."""

PLACES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "dbname": "PGDATABASE", "user": "PGUSER"}
"""Parameters that are shown of a target, and the variables that libpq reads if the DSN does not set them."""

DRIVER_KEYWORDS = ("connection_factory", "cursor_factory")
READABLE_DSN = "a URL (postgresql://user@host:port/dbname) or libpq's key=value form"


class Target:
    """The server and the database that arguments of ``psycopg2.connect`` lead to.

    Raises:
        ValueError: the arguments cannot be parsed. libpq's own text is left out, because it quotes the password.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._read(parse(args, dict(kwargs)))

    def _read(self, parameters: Mapping[str, Any]) -> None:
        """Read the target from connection parameters."""
        self.public = public_values(parameters)
        """Values that an error's text may quote."""
        self.address = printable(
            parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST") or "localhost"
        )
        self._ports = _ports_of(parameters)
        self.namespace = printable(
            parameters.get("dbname") or os.environ.get("PGDATABASE") or parameters.get("user") or _user()
        )

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        port, *others = {*self._ports} or {""}
        return int(port) if not others and port.isdecimal() else None

    @property
    def name(self) -> str:
        """Name of the target: ``host:port/dbname``, with a port for each of several hosts."""
        hosts = self.address.split(",")
        ports = self._ports * len(hosts) if len(self._ports) == 1 else self._ports
        places = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=False))
        return cut(f"{places}/{self.namespace}", LONGEST_NAME)


class UnknownTarget(Target):
    """A target about which nothing is known, because its arguments must not be read or cannot be parsed.

    Args:
        seen: parameters of a connection made with the arguments, if there is one, which make the target known.
    """

    def __init__(self, seen: Mapping[str, Any] | None = None) -> None:
        self.address = self.namespace = ""
        self._ports = []
        self.public = frozenset()
        if seen:
            with suppress(ValueError):
                super().__init__((), seen)

    @property
    def name(self) -> str:
        """The placeholder ``unknown``."""
        return "unknown"


def target_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
    """Return the target of an instrumented pool, without raising if its arguments cannot be parsed."""
    try:
        return Target(args, kwargs)
    except Exception:  # noqa: BLE001 - the program gets the error itself when it connects
        return UnknownTarget()


def parse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the connection parameters of arguments of ``psycopg2.connect``.

    Raises:
        ValueError: the arguments cannot be parsed, or may contain a password in a wrong place.
    """
    dsn = args[0] if args else kwargs.get("dsn")
    if dsn is not None and not isinstance(dsn, str):
        raise invalid_option("dsn", type(dsn).__name__, READABLE_DSN)
    if kwargs.get("async") or kwargs.get("async_") or len(args) > 1 + len(DRIVER_KEYWORDS):
        raise ValueError("async connections cannot be pooled here: leave out async_")
    given = {key: value for key, value in kwargs.items() if key not in ("dsn", "async", "async_", *DRIVER_KEYWORDS)}
    for key in given:
        _check_keyword(key)
    for position, key in enumerate(DRIVER_KEYWORDS, 1):
        factory = args[position] if len(args) > position else kwargs.get(key)
        if factory is not None and not callable(factory):
            raise invalid_option(key, factory, "a callable or None")
    if any("\0" in text for text in (dsn, *given.values()) if isinstance(text, str)):
        raise ValueError(f"dsn cannot be read: expected {READABLE_DSN} without NUL characters")
    parameters: dict[str, Any] | None = None
    with suppress(Error, TypeError, ValueError):  # its text would quote the password
        parameters = _by_libpq(dsn, given)
    if parameters is None:
        raise ValueError(
            f"dsn cannot be read: expected {READABLE_DSN}; its text is not shown, as it may hold a password"
        )
    _check_places(parameters)
    if any("@" in str(parameters.get(key, "")) for key in ("host", "hostaddr", "port")) or _holds_a_login(
        str(parameters.get("dbname", "")), in_url=(dsn or "").startswith(("postgresql://", "postgres://"))
    ):
        raise ValueError(
            "dsn cannot be read: '@' in the host, port or database; in a password write %40, and %2F for '/'"
        )
    # A port that is no number may be a part of a password.
    _check_ports("port", parameters.get("port"), show=str(parameters.get("port")).isdecimal())
    _check_ports("PGPORT", os.environ.get("PGPORT"))
    return parameters


def _check_places(parameters: Mapping[str, Any]) -> None:
    """Refuse a connection string in place of a name, because libpq would parse it and quote it in errors."""
    for key in PUBLIC:
        variable = PLACES.get(key, "")
        source, text = (key, parameters[key]) if parameters.get(key) else (variable, os.environ.get(variable, ""))
        if may_hold_password(text) or (key == "host" and "@" in text):
            raise ValueError(
                f"dsn cannot be read: a connection string in the place of {source}; it is not shown, as it may hold a "
                "password"
            )


def _check_ports(option: str, ports: object, *, show: bool = True) -> None:
    accepted = f"a whole number of 1 to {LAST_PORT}, or one for each host"
    for port in str(ports or DEFAULT_PORT).split(","):
        if port and not (port.isdecimal() and 0 < int(port) <= LAST_PORT):
            raise invalid_option(option, ports, accepted) if show else ValueError(f"{option} must be {accepted}")


def _holds_a_login(database: str, *, in_url: bool) -> bool:
    """Return whether a database's name is the rest of a URL, after a password with an unescaped character."""
    return "@" in database and (in_url or ":" in database or "/" in database)


def _by_libpq(dsn: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection parameters as libpq reads them; without psycopg2, which calls libpq, only those by keyword."""
    if HAS_PSYCOPG2:
        return extensions.parse_dsn(extensions.make_dsn(dsn, **given))
    if dsn is not None:
        raise ValueError("a connection string cannot be read without psycopg2")
    return {key: str(value) for key, value in given.items() if value is not None}


def _check_keyword(key: str) -> None:
    try:
        _by_libpq(None, {key: ""})
    except (Error, UnicodeError):
        shown = cut(repr(key), LONGEST_VALUE)
        raise ValueError(f"{shown} is no option of ConnectionPool and no connection parameter of libpq") from None


def public_values(parameters: Mapping[str, Any]) -> frozenset[str]:
    """Return the values that an error's text may quote: each host's name and socket, ports, names and files."""
    found = {key: str(parameters.get(key) or os.environ.get(PLACES.get(key, "")) or "") for key in PUBLIC}
    ports = _ports_of(parameters)
    folders = [host for host in found["host"].split(",") if host.startswith(("/", "@"))] or DEFAULT_FOLDERS
    sockets = [f"{folder}/.s.PGSQL.{port}" for folder in folders for port in ports]
    pieces = [piece for text in found.values() for piece in (text, *text.split(","))]
    return frozenset(filter(None, (*pieces, *ports, *sockets, "localhost", _user())))


def _ports_of(parameters: Mapping[str, Any]) -> list[str]:
    """Return the port of each host, or the one port of all hosts."""
    ports = str(parameters.get("port") or os.environ.get("PGPORT") or DEFAULT_PORT)
    return [port or str(DEFAULT_PORT) for port in ports.split(",")]


def any_set(*variables: str) -> bool:
    """Return whether any of these environment variables is set."""
    return any(os.environ.get(variable) for variable in variables)


def _user() -> str:
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return "postgres"
