"""psycopg2, as a driver of SQLAlchemy's engines."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from otel_pgpool.driver.monitor_connection import MonitorConnection, limited_attempt, monitor_arguments
from otel_pgpool.driver.monitoring import TIME_LIMIT
from otel_pgpool.driver.target import UNKNOWN, target_of_parameters
from otel_pgpool.instrumentation.adapters.psycopg2.driver import Psycopg2, own_connection, parameters_of
from otel_pgpool.instrumentation.adapters.psycopg2.target import target_of_arguments
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
from otel_pgpool.runtime.fork import keep_from_forking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import Server


class Psycopg2EngineDriver(Psycopg2, EngineDriver):
    """The driver psycopg2."""

    def own_connection(self, conn: Any) -> Any:
        """Return psycopg2's connection inside the proxies of agents; None if there is none."""
        return own_connection(conn)

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether psycopg2 raised an error."""
        return isinstance(error, psycopg2.Error)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Return the target of the arguments of ``psycopg2.connect``."""
        return target_of_arguments(args, kwargs, in_url=True)

    def target_of_connection(self, conn: Any) -> Target:
        """Return the target of a connection, as libpq reports it."""
        parameters = parameters_of(conn)
        return target_of_parameters(parameters) if parameters else UNKNOWN

    def monitor_arguments(self, given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:  # noqa: ARG002 - the interface
        """Return the arguments in which a monitoring connection differs from a pool's."""
        return monitor_arguments(chosen)

    @contextmanager
    def limited_connect(self) -> Iterator[Mapping[str, Any]]:
        """Limit the time of a connect, under a wait callback too, which libpq does not."""
        with limited_attempt() as attempt, keep_from_forking():
            is_polled = extensions.get_wait_callback() is not None
            yield {"connection_factory": attempt.watch_polled(None, TIME_LIMIT)} if is_polled else {}

    def monitor(self, conn: Any, loop: OwnLoop | None) -> MonitorConnection:  # noqa: ARG002 - the interface
        """Return a connection as a monitoring connection."""
        return MonitorConnection(conn)

    def close_socket(self, conn: Any) -> None:
        """Close the socket; psycopg2 itself closes only what its own process has opened."""
        os.close(self.fileno(conn))
