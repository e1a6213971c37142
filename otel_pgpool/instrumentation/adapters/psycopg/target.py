"""The target of psycopg's connects, read from their arguments without calling objects of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_pgpool.driver.target import PUBLIC, UNKNOWN, is_url, plain_arguments, target_of_parameters
from otel_pgpool.instrumentation.adapters.psycopg.driver import parameters_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.driver.target import Target


def target_of_arguments(conninfo: object, kwargs: Mapping[str, Any] | None, *, in_url: bool = False) -> Target:
    """Return the target of the arguments, without raising; unknown if a decisive argument is not a plain value.

    Args:
        conninfo: the connection string.
        kwargs: keyword arguments of ``psycopg.connect``.
        in_url: whether the keyword arguments were read from a URL.
    """
    if type(conninfo) is not str or type(kwargs) not in (dict, type(None)):
        return UNKNOWN
    try:
        given = plain_arguments({key: value for key, value in (kwargs or {}).items() if key in PUBLIC})
        parameters = conninfo_to_dict(conninfo, **given)
    except (TypeError, psycopg.Error):  # the program gets the error itself when it connects
        return UNKNOWN
    return target_of_parameters(parameters, in_url=in_url or is_url(conninfo))


def target_of_connection(conn: Any) -> Target:
    """Return the target of a connection, as libpq reports it; unknown if the connection cannot be read."""
    parameters = parameters_of(conn)
    return target_of_parameters(parameters) if parameters else UNKNOWN
