"""The target of a pool's connections: its arguments, parsed once, and its name without secrets."""

from __future__ import annotations

import getpass
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2 import extensions

from otel_pgpool.config import LONGEST_VALUE, invalid_option
from otel_pgpool.driver.attempt import CONNECT, ConnectAttempt
from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.driver.exposure import PLAIN, is_asked_in_clear, is_exposed, safe_options
from otel_pgpool.runtime.fork import keep_from_forking
from otel_pgpool.runtime.text import LONGEST_NAME, cut, may_hold_password, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg2.extensions import connection

CONNECT_TIMEOUT = 10
"""Seconds for each host, if neither the DSN nor the environment sets a timeout; libpq itself would wait forever."""

SERVICE_TIMEOUT = 60
"""Seconds for each host if a service file may set a timeout. Only libpq reads that file, so this limit is generous."""

CREDENTIALS_TIMEOUT = 10
"""Seconds that ``credentials`` may take."""

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
    """The arguments of ``psycopg2.connect``, parsed.

    Raises:
        ValueError: the arguments cannot be parsed. libpq's own text is left out, because it quotes the password.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        credentials: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._args = args
        self._kwargs = dict(kwargs)
        self._credentials = credentials
        parameters = _parse(args, self._kwargs)
        self._patience = Patience.of(parameters)
        self._accepted = 0  # index of the set of options that the server accepted last
        self._own = _public(parameters)
        self.public = self._own
        """Values that an error's text may quote: from these arguments, and from the last result of `credentials`."""
        if not ({"connect_timeout", "service"} & parameters.keys() or _any_set("PGCONNECT_TIMEOUT", "PGSERVICE")):
            self._kwargs["connect_timeout"] = CONNECT_TIMEOUT
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

    def connect(self, attempt: ConnectAttempt | None = None) -> connection:
        """Open one connection; ``attempt`` is given the time limit of each step.

        Raises:
            psycopg2.Error: ``psycopg2.connect`` failed.
            ValueError: the parameters that ``credentials`` returned cannot be parsed.
            TypeError: ``credentials`` did not return a mapping.
            Exception: ``credentials`` raised.
        """
        attempt = attempt or ConnectAttempt()
        extra: Mapping[str, Any] = {}
        patience = self._patience
        choices = PLAIN
        if self._credentials is not None:
            attempt.allow("credentials", CREDENTIALS_TIMEOUT)
            extra = self._credentials()
            if not isinstance(extra, Mapping):
                raise TypeError(
                    f"credentials must return a mapping of connection parameters, not {type(extra).__name__}"
                )
            given = _parse(() if "dsn" in extra else self._args, {**self._kwargs, **extra})
            self.public = self._own | _public(given)
            patience = Patience.of(given)
            choices = safe_options(given)
            if is_exposed(given):
                attempt.warn()
        args, kwargs = self._args, {**self._kwargs, **extra}
        if attempt.limit is not None:
            kwargs["connect_timeout"] = max(1, math.ceil(min(patience.host_seconds, attempt.limit / patience.hosts)))
        if extensions.get_wait_callback() is None:
            attempt.allow(CONNECT, patience.of_libpq)
        else:
            attempt.allow(CONNECT, patience.when_polled)
            args, kwargs = _by_keyword(args, kwargs)
            kwargs["connection_factory"] = attempt.watch_polled(kwargs["connection_factory"], patience.host_seconds)
            if attempt.limit is not None:
                with attempt.poll_within(min(patience.when_polled, attempt.limit)):
                    return self._connect(args, kwargs, choices)
        return self._connect(args, kwargs, choices)

    def _connect(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], choices: Sequence[Mapping[str, str]]
    ) -> connection:
        """Connect with the first of several sets of options that the server accepts, beginning with the last accepted.

        Raises:
            psycopg2.Error: the server accepted none; the error is that of the first set.
        """
        first: psycopg2.Error | None = None
        try:
            for options in choices[self._accepted :] or choices:
                try:
                    with keep_from_forking():
                        made: connection = psycopg2.connect(*args, **{**kwargs, **options})
                except psycopg2.OperationalError as error:
                    first, self._accepted = first or error, 0
                    if not is_asked_in_clear(error):
                        break
                else:
                    self._accepted = choices.index(options)
                    return made
            assert first is not None  # nosec B101 # noqa: S101 - there is at least one set
            raise first
        finally:
            del first  # breaks a reference cycle: its traceback refers to this frame


class Patience(NamedTuple):
    """The time limits of a connect."""

    host_seconds: float
    hosts: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Patience:
        """Read the limits from connection parameters, or else from the environment variables that libpq reads."""
        asked = str(parameters.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT") or "").strip()
        seconds = int(asked) if asked.isdecimal() else 0
        if not seconds:  # with 0 libpq waits for ever
            has_service = "service" in parameters or _any_set("PGSERVICE")
            seconds = SERVICE_TIMEOUT if has_service else CONNECT_TIMEOUT
        places = (str(parameters.get(key) or os.environ.get(PLACES[key]) or "") for key in ("host", "hostaddr"))
        return cls(seconds, max(place.count(",") for place in places) + 1)

    @property
    def when_polled(self) -> float:
        """Seconds for a connect under a wait callback, which libpq does not bound."""
        return self.host_seconds * self.hosts + 0.5

    @property
    def of_libpq(self) -> float:
        """Seconds after which libpq should have given up itself, assuming up to four addresses for each host's name."""
        return 4 * self.host_seconds * self.hosts + IO_DEADLINE


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


def _parse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
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
    with suppress(psycopg2.Error, TypeError, ValueError, UnicodeError):  # its text would quote the password
        parameters = extensions.parse_dsn(extensions.make_dsn(dsn, **given))
    if parameters is None:
        raise ValueError(
            f"dsn cannot be read: expected {READABLE_DSN}; its text is not shown, as it may hold a password"
        )
    _check_places(parameters)
    if any("@" in str(parameters.get(key, "")) for key in ("host", "hostaddr", "port")) or _holds_a_login(
        str(parameters.get("dbname", "")), in_url=_is_url(dsn)
    ):
        raise ValueError(
            "dsn cannot be read: '@' in the host, port or database; in a password write %40, and %2F for '/'"
        )
    # A port that is no number may be a part of a password.
    _check_ports("port", parameters.get("port"), show=str(parameters.get("port")).isdecimal())
    _check_ports("PGPORT", os.environ.get("PGPORT"))
    return parameters


def _by_keyword(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments of ``psycopg2.connect`` with its factories by keyword."""
    factories = dict.fromkeys(DRIVER_KEYWORDS) | dict(zip(DRIVER_KEYWORDS, args[1:], strict=False))
    return args[:1], {**factories, **kwargs}


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


def _is_url(dsn: str | None) -> bool:
    return dsn is not None and dsn.startswith(("postgresql://", "postgres://"))


def _check_keyword(key: str) -> None:
    try:
        extensions.make_dsn(**{key: ""})
    except (psycopg2.Error, UnicodeError):
        shown = cut(repr(key), LONGEST_VALUE)
        raise ValueError(f"{shown} is no option of ConnectionPool and no connection parameter of libpq") from None


def _public(parameters: Mapping[str, Any]) -> frozenset[str]:
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


def _any_set(*variables: str) -> bool:
    return any(os.environ.get(variable) for variable in variables)


def _user() -> str:
    try:
        return os.environ.get("PGUSER") or getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return "postgres"
