"""The arguments of ``psycopg2.connect``, parsed by libpq."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from psycopg2 import Error, extensions

from otel_pgpool.driver.target import UNKNOWN, Target, check_parameters, is_url, read_target
from otel_pgpool.runtime.text import cut
from otel_pgpool.validation import LONGEST_VALUE, invalid_option

DRIVER_KEYWORDS = ("connection_factory", "cursor_factory")
READABLE_DSN = "a URL (postgresql://user@host:port/dbname) or libpq's key=value form"


def target_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, in_url: bool = False) -> Target:
    """Return the target of an instrumented pool, without raising if its arguments cannot be parsed.

    Args:
        args: positional arguments of ``psycopg2.connect``.
        kwargs: its keyword arguments.
        in_url: whether the keyword arguments were read from a URL.
    """
    try:
        return read_target(parse(args, dict(kwargs), in_url=in_url))
    except Exception:  # noqa: BLE001 - the program gets the error itself when it connects
        return UNKNOWN


def merge(
    connect_kwargs: Mapping[str, Any] | None, arguments: Mapping[str, Any], options: Collection[str]
) -> dict[str, Any]:
    """Return the keyword arguments of ``psycopg2.connect``: those of ``connect_kwargs`` and the others.

    Args:
        connect_kwargs: arguments whose names may be those of options of the pool.
        arguments: the other arguments.
        options: the names of the options of the pool.

    Raises:
        ValueError: ``connect_kwargs`` is not a mapping of names, repeats one of the other arguments, or has an option
            of the pool.
    """
    extra: Any = {} if connect_kwargs is None else connect_kwargs
    if not isinstance(extra, Mapping):  # not `invalid_option`: the value may be a password
        kind = type(extra).__name__
        raise ValueError(  # noqa: TRY004 - as any invalid option
            f"connect_kwargs must be a mapping of arguments of psycopg2.connect or None, not of type {kind}"
        )
    for key in extra:
        if not isinstance(key, str):
            raise ValueError(f"connect_kwargs must have names as its keys, not one of type {type(key).__name__}")  # noqa: TRY004 - as any invalid option
        if key in arguments:
            raise ValueError(f"{cut(repr(key), LONGEST_VALUE)} is given twice: as an argument and in connect_kwargs")
        if key in options and not _is_known(key):
            raise ValueError(f"{key!r} is an option of ConnectionPool: give it as an argument, not in connect_kwargs")
    return {**arguments, **extra}


def parse(args: tuple[Any, ...], kwargs: dict[str, Any], *, in_url: bool = False) -> dict[str, Any]:
    """Return the connection parameters of arguments of ``psycopg2.connect``. See `target_of`.

    Raises:
        ValueError: the arguments cannot be parsed, or may contain a password in a wrong place.
    """
    dsn = args[0] if args else kwargs.get("dsn")
    if dsn is not None and not isinstance(dsn, str):
        raise invalid_option("dsn", type(dsn).__name__, READABLE_DSN)
    if kwargs.get("async") or kwargs.get("async_") or len(args) > 1 + len(DRIVER_KEYWORDS):
        raise ValueError("a ConnectionPool does not support async connections: leave out async_")
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
            f"dsn cannot be read: expected {READABLE_DSN}; the dsn is not shown, because it may contain a password"
        )
    check_parameters(parameters, in_url=in_url or is_url(dsn))
    return parameters


def _by_libpq(dsn: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection parameters as libpq reads them."""
    return extensions.parse_dsn(extensions.make_dsn(dsn, **given))


def _check_keyword(key: str) -> None:
    if not _is_known(key):
        shown = cut(repr(key), LONGEST_VALUE)
        raise ValueError(f"{shown} is no option of ConnectionPool and no connection parameter of libpq")


def _is_known(key: str) -> bool:
    """Return whether ``psycopg2.connect`` has an argument of this name."""
    if key in ("dsn", *DRIVER_KEYWORDS):
        return True
    try:
        _by_libpq(None, {key: ""})
    except (Error, UnicodeError):
        return False
    return True
