"""psycopg 3, as a driver of SQLAlchemy's engines, both its connections and its asynchronous connections."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_pgpool.instrumentation.adapters.psycopg.driver import Psycopg, parameters_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import PLAIN, EngineDriver, own_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import UNKNOWN, VARIABLES, server_target
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import ServerTarget


class PsycopgOfEngines(Psycopg, EngineDriver):
    """The driver psycopg 3."""

    def own_connection(self, conn: Any) -> Any:
        """Return psycopg's connection inside the proxies of agents; None if there is none."""
        return own_of(conn, (psycopg.Connection, psycopg.AsyncConnection))

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether psycopg raised an error."""
        return isinstance(error, psycopg.Error)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ServerTarget:
        """Return the target of the arguments of ``psycopg.connect``."""
        conninfo = args[0] if args else kwargs.get("conninfo", "")
        given = {key: kwargs[key] for key in VARIABLES if kwargs.get(key) is not None}
        if any(type(value) not in PLAIN for value in (conninfo, *given.values())):
            return UNKNOWN
        with ignore_errors:  # a text that libpq cannot read
            return server_target(conninfo_to_dict(conninfo, **given))
        return UNKNOWN

    def target_of_connection(self, conn: Any) -> ServerTarget:
        """Return the target of a connection, as libpq knows it."""
        parameters = parameters_of(conn)
        return server_target(parameters) if parameters else UNKNOWN

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket."""
        return int(conn.pgconn.socket)

    def abandon(self, conn: Any) -> None:
        """Close the socket; psycopg itself closes only what its own process has opened."""
        os.close(self.fileno(conn))
