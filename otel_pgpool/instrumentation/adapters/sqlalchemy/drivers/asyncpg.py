"""asyncpg, as a driver of SQLAlchemy's engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncpg.connection import Connection
from asyncpg.exceptions import PostgresError

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.driver import NETWORK_ERRORS, Asyncpg
from otel_pgpool.instrumentation.adapters.asyncpg.monitor import AsyncpgMonitor, monitor_arguments
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_arguments, target_of_connection
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver, unwrapped_instance
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import Server


class AsyncpgEngineDriver(Asyncpg, EngineDriver):
    """The driver asyncpg."""

    def own_connection(self, conn: Any) -> Any:
        """Return asyncpg's connection inside the proxies of agents; None if there is none."""
        return unwrapped_instance(conn, (Connection,))

    def is_closed(self, conn: Any) -> bool:
        """Return whether a connection is closed."""
        with ignore_errors:
            return bool(Connection.is_closed(conn))
        return False

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether asyncpg raised an error, or the event loop for asyncpg."""
        return isinstance(error, (PostgresError, *NETWORK_ERRORS))

    is_refusal = EngineDriver.is_refusal  # an error of the application's own callback is no refusal of a connect

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Return the target of the arguments of ``asyncpg.connect``."""
        dsn = args[0] if args else kwargs.get("dsn")
        named = {**kwargs, "database": kwargs.get("database", kwargs.get("dbname"))}
        return target_of_arguments((dsn,), named, in_url=True)

    def target_of_connection(self, conn: Any) -> Target:
        """Return the target of a connection."""
        return target_of_connection(conn)

    def monitor_arguments(self, given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:
        """Return the arguments in which a monitoring connection differs from a pool's."""
        return monitor_arguments(given, chosen)

    def monitor(self, conn: Any, loop: OwnLoop | None) -> AsyncpgMonitor:
        """Return a connection as a monitoring connection."""
        assert loop is not None  # nosec B101 # noqa: S101 - asyncpg has no synchronous connections
        return AsyncpgMonitor(conn, loop)

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket.

        In a forked child, the transport must not be closed: that would end the parent's watch on its socket, because
        both processes share the descriptor of the event loop.
        """
        return private.descriptor_of(conn)
