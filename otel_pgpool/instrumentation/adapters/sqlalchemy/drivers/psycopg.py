"""psycopg 3, as a driver of SQLAlchemy's engines, both its connections and its asynchronous connections."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from otel_pgpool.instrumentation.adapters.psycopg.driver import Psycopg
from otel_pgpool.instrumentation.adapters.psycopg.monitor import (
    AsyncPsycopgMonitor,
    PsycopgMonitor,
    monitor_arguments,
)
from otel_pgpool.instrumentation.adapters.psycopg.target import target_of_arguments, target_of_connection
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver, unwrapped_instance
from otel_pgpool.runtime.fork import keep_from_forking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import MonitorConnection, Server


class PsycopgEngineDriver(Psycopg, EngineDriver):
    """The driver psycopg 3."""

    def own_connection(self, conn: Any) -> Any:
        """Return psycopg's connection inside the proxies of agents; None if there is none."""
        return unwrapped_instance(conn, (psycopg.Connection, psycopg.AsyncConnection))

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether psycopg raised an error."""
        return isinstance(error, psycopg.Error)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Return the target of the arguments of ``psycopg.connect``."""
        conninfo = args[0] if args else kwargs.get("conninfo", "")
        return target_of_arguments(conninfo, {**kwargs}, in_url=True)

    def target_of_connection(self, conn: Any) -> Target:
        """Return the target of a connection, as libpq reports it."""
        return target_of_connection(conn)

    def monitor_arguments(self, given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:  # noqa: ARG002 - the interface
        """Return the arguments in which a monitoring connection differs from a pool's."""
        return {**monitor_arguments(chosen), "cursor_factory": None, "row_factory": None}

    @contextmanager
    def limited_connect(self) -> Iterator[Mapping[str, Any]]:
        """Delay forks during the connect, which libpq limits itself."""
        with keep_from_forking():
            yield {}

    def monitor(self, conn: Any, loop: OwnLoop | None) -> MonitorConnection:
        """Return a connection as a monitoring connection."""
        return PsycopgMonitor(conn) if loop is None else AsyncPsycopgMonitor(conn, loop)

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket."""
        return int(conn.pgconn.socket)

    def close_socket(self, conn: Any) -> None:
        """Close the socket; psycopg itself closes only what its own process has opened."""
        os.close(self.fileno(conn))
