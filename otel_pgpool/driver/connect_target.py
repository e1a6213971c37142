"""The target of a `ConnectionPool`, which connects to it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2 import extensions

from otel_pgpool.driver.attempt import CONNECT, ConnectAttempt
from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.driver.dsn import DRIVER_KEYWORDS, parse
from otel_pgpool.driver.exposure import UNCHANGED, has_service, is_asked_in_clear, is_exposed, safe_options
from otel_pgpool.driver.fallback_name import KEY, is_named
from otel_pgpool.driver.target import VARIABLES, Target, public_values, read_target
from otel_pgpool.runtime.fork import keep_from_forking

if TYPE_CHECKING:
    from psycopg2.extensions import connection

CONNECT_TIMEOUT = 10
"""Seconds for each host, if neither the DSN nor the environment sets a timeout; libpq itself would wait forever."""

SERVICE_TIMEOUT = 60
"""Seconds for each host if a service file may set a timeout. Only libpq reads that file, so this limit is generous."""

CREDENTIALS_TIMEOUT = 10
"""Seconds that ``credentials`` may take."""


class ConnectTarget(Target):
    """The arguments of ``psycopg2.connect``, parsed.

    Its public values include those of the last result of ``credentials``.

    Raises:
        ValueError: the arguments cannot be parsed.
    """

    fallback_name: Callable[[], str] | None = None
    """Function that returns the name of the sessions on the server, for a program that sets none."""

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        credentials: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._args = args
        self._kwargs = dict(kwargs)
        self._credentials = credentials
        self._accepted = 0  # index of the set of options that the server accepted last
        parameters = parse(args, self._kwargs)
        super().__init__(**vars(read_target(parameters)))
        self._own_public = self.public
        self._limits = TimeLimits.of(parameters)
        self._is_named = is_named(parameters)
        if not (has_service(parameters) or "connect_timeout" in parameters or os.environ.get("PGCONNECT_TIMEOUT")):
            self._kwargs["connect_timeout"] = CONNECT_TIMEOUT

    def chosen_server(self, conn: connection) -> tuple[str, int | None] | None:
        """Return host and port of a new connection, if libpq has chosen among several; otherwise None."""
        return (conn.info.host, conn.info.port) if "," in self.address else None

    def connect(
        self, attempt: ConnectAttempt | None = None, changes: Mapping[str, Any] = MappingProxyType({})
    ) -> connection:
        """Open one connection.

        Args:
            attempt: the attempt, which is given the time limit of each step.
            changes: keyword arguments that replace those of the pool; None for psycopg2's default.

        Raises:
            psycopg2.Error: ``psycopg2.connect`` failed.
            ValueError: the parameters that ``credentials`` returned cannot be parsed.
            TypeError: ``credentials`` did not return a mapping.
            Exception: ``credentials`` raised.
        """
        attempt = attempt or ConnectAttempt()
        args, kwargs, limits, option_sets = self._args, self._kwargs, self._limits, UNCHANGED
        named = self._is_named
        if self._credentials is not None:
            extra = _call(self._credentials, attempt)
            kwargs = {**kwargs, **extra}
            given = parse(() if "dsn" in extra else args, kwargs)
            self.public = self._own_public | public_values(given)
            limits, option_sets, named = TimeLimits.of(given), safe_options(given), is_named(given)
            if is_exposed(given):
                attempt.warn()
        if changes:
            args, kwargs = _by_keyword(args, kwargs)
            kwargs = {**kwargs, **changes}
        if self.fallback_name is not None and not named:
            kwargs = {**kwargs, KEY: self.fallback_name()}
        if attempt.limit is not None:
            seconds = max(1, math.ceil(min(limits.host_seconds, attempt.limit / limits.hosts)))
            kwargs = {**kwargs, "connect_timeout": seconds}
        if extensions.get_wait_callback() is None:
            attempt.allow(CONNECT, limits.of_libpq)
            return self._connect(attempt, args, kwargs, option_sets)
        attempt.allow(CONNECT, limits.when_polled)
        args, kwargs = _by_keyword(args, kwargs)
        kwargs["connection_factory"] = attempt.watch_polled(kwargs["connection_factory"], limits.host_seconds)
        within = nullcontext() if attempt.limit is None else attempt.poll_within(min(limits.when_polled, attempt.limit))
        with within:
            return self._connect(attempt, args, kwargs, option_sets)

    def _connect(
        self,
        attempt: ConnectAttempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        option_sets: Sequence[Mapping[str, str]],
    ) -> connection:
        """Connect with the first of several sets of options that the server accepts, beginning with the last accepted.

        Raises:
            psycopg2.Error: the server accepted none; the error is that of the first set.
        """
        first: psycopg2.Error | None = None
        try:
            for options in option_sets[self._accepted :] or option_sets:
                try:
                    with keep_from_forking(attempt.delays_fork):
                        made: connection = psycopg2.connect(*args, **{**kwargs, **options})
                except psycopg2.OperationalError as error:
                    first, self._accepted = first or error, 0
                    if not is_asked_in_clear(error):
                        break
                else:
                    self._accepted = option_sets.index(options)
                    return made
            assert first is not None  # nosec B101 # noqa: S101 - there is at least one set
            raise first
        finally:
            del first  # breaks a reference cycle: its traceback refers to this frame


class TimeLimits(NamedTuple):
    """The time limits of a connect."""

    host_seconds: float
    hosts: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> TimeLimits:
        """Read the limits from connection parameters, or else from the environment variables that libpq reads."""
        asked = str(parameters.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT") or "").strip()
        seconds = int(asked) if asked.isdecimal() else 0
        if not seconds:  # with 0 libpq waits for ever
            seconds = SERVICE_TIMEOUT if has_service(parameters) else CONNECT_TIMEOUT
        places = (str(parameters.get(key) or os.environ.get(VARIABLES[key]) or "") for key in ("host", "hostaddr"))
        return cls(seconds, max(place.count(",") for place in places) + 1)

    @property
    def when_polled(self) -> float:
        """Seconds for a connect under a wait callback, which libpq does not bound."""
        return self.host_seconds * self.hosts + 0.5

    @property
    def of_libpq(self) -> float:
        """Seconds after which libpq itself should have ended a connect, with up to four addresses for each host."""
        return 4 * self.host_seconds * self.hosts + IO_DEADLINE


def _call(credentials: Callable[[], Mapping[str, Any]], attempt: ConnectAttempt) -> Mapping[str, Any]:
    """Return the result of ``credentials``.

    Raises:
        TypeError: the result is not a mapping.
    """
    attempt.allow("credentials", CREDENTIALS_TIMEOUT)
    extra = credentials()
    if not isinstance(extra, Mapping):
        raise TypeError(f"credentials must return a mapping of connection parameters, not {type(extra).__name__}")
    return extra


def _by_keyword(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments of ``psycopg2.connect`` with its factories by keyword."""
    factories = dict.fromkeys(DRIVER_KEYWORDS) | dict(zip(DRIVER_KEYWORDS, args[1:], strict=False))
    return args[:1], {**factories, **kwargs}
