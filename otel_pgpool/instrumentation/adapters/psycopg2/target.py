"""The target of a connect, read from its arguments without calling objects of the application.

A password or a host may be an object that fetches its value when its text is requested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.dsn import target_of
from otel_pgpool.driver.target import PLAIN, UNKNOWN, plain_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.driver.target import Target


def target_of_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, in_url: bool = False) -> Target:
    """Return the target of the arguments, without raising; unknown if a decisive argument is not a plain value.

    Args:
        args: positional arguments of ``psycopg2.connect``.
        kwargs: its keyword arguments.
        in_url: whether the keyword arguments were read from a URL.
    """
    try:
        plain = plain_arguments(kwargs)
    except TypeError:
        return UNKNOWN
    return UNKNOWN if any(type(arg) not in PLAIN for arg in args[:1]) else target_of(args, plain, in_url=in_url)
