"""The target of psycopg's connects, read from their arguments without calling objects of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_pgpool.driver.dsn import PLACES, Target, UnknownTarget, target_of
from otel_pgpool.instrumentation.adapters.psycopg.driver import parameters_of

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN = (str, int, float, bool, type(None))
DECISIVE = (*PLACES, "port", "service")
OF_PSYCOPG = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")
"""Arguments of ``psycopg.connect`` that are no parameters of libpq."""


def target_of_arguments(conninfo: object, kwargs: Mapping[str, Any] | None) -> Target:
    """Return the target of the arguments, without raising; unknown if a decisive argument is not a plain value."""
    if type(conninfo) is not str or type(kwargs) not in (dict, type(None)):
        return UnknownTarget()
    given = {key: value for key, value in (kwargs or {}).items() if key not in OF_PSYCOPG}
    plain = {key: value for key, value in given.items() if type(value) in PLAIN}
    if any(key in DECISIVE for key in given.keys() - plain.keys()):
        return UnknownTarget()
    try:
        parameters = conninfo_to_dict(conninfo, **plain)
    except psycopg.Error:  # the program gets the error itself when it connects
        return UnknownTarget()
    return target_of((), {key: value for key, value in parameters.items() if key != "password" and value is not None})


def target_of_connection(conn: Any) -> Target:
    """Return the target of a connection, as libpq knows it; unknown if the connection cannot be read."""
    return UnknownTarget(parameters_of(conn))
