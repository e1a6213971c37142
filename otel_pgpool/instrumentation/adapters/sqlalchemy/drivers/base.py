"""The interface between the adapter of SQLAlchemy and a driver of PostgreSQL."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.refusal_texts import refuses_by_state
from otel_pgpool.driver.target import UNKNOWN, plain_arguments, target_of_parameters
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.base import Driver
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.sockets import replace_socket

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import MonitorConnection, Server


class EngineDriver(Driver):
    """The interface between the adapter of SQLAlchemy and a driver: connections, errors and the arguments of a connect.

    The methods of this class itself serve for a driver that is not known.
    """

    def own_connection(self, conn: Any) -> Any:  # noqa: ARG002 - the interface
        """Return the driver's own connection inside the proxies of agents; None if there is none."""
        return None

    def is_error(self, error: BaseException | None) -> bool:  # noqa: ARG002 - the interface
        """Return whether the driver raised an error, of its own or of the operating system."""
        return False

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection, by the error's SQLSTATE."""
        state = sqlstate(error)
        return state is not None and refuses_by_state(state)

    def is_closed(self, conn: Any) -> bool:
        """Return whether a connection is closed; False if that is unknown."""
        with ignore_errors:
            return bool(conn.closed)
        return False

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Return the target of the arguments of a connect, without raising and without calling the application.

        The arguments are those that SQLAlchemy has read from a URL, or the parts of the URL, named as libpq names them.
        """
        given = {key: kwargs.get(key) for key in ("host", "port", "user")}
        given["dbname"] = kwargs.get("database", kwargs.get("dbname"))
        try:
            return UNKNOWN if args else target_of_parameters(plain_arguments(given), {}, in_url=True)
        except TypeError:
            return UNKNOWN

    def target_of_connection(self, conn: Any) -> Target:  # noqa: ARG002 - the interface
        """Return the target that a connection was made to."""
        return UNKNOWN

    def monitor_arguments(self, given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:  # noqa: ARG002 - the interface
        """Return the arguments of a connect in which a monitoring connection differs from a pool's.

        Args:
            given: the keyword arguments of the pool's connects.
            chosen: the server, if the arguments name several.
        """
        return {}

    def limited_connect(self) -> AbstractContextManager[Mapping[str, Any]]:
        """Return the context in which a monitoring connection is opened; it yields further arguments to change.

        Raises:
            PoolError: no connection can be opened, because that could block the whole program.
        """
        return nullcontext({})

    def monitor(self, conn: Any, loop: OwnLoop | None) -> MonitorConnection:
        """Return a connection that was just opened as a monitoring connection.

        Args:
            conn: the driver's own connection.
            loop: the event loop in which it was opened; None for a synchronous driver.
        """
        raise NotImplementedError

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket.

        Raises:
            Exception: the connection has none, or is closed.
        """
        return int(conn.fileno())

    def close_socket(self, conn: Any) -> None:
        """Close the socket of a parent's idle connection in a forked child, without a byte to the server."""
        replace_socket(self.fileno(conn))

    def cut_off(self, conn: Any) -> None:
        """Replace the socket of a parent's connection in a forked child, so that nothing can be sent any more."""
        replace_socket(self.fileno(conn))


def unwrapped_instance(conn: Any, classes: tuple[type, ...]) -> Any:
    """Return the connection of one of these classes inside the proxies of agents; None if there is none."""
    own = unwrapped(conn)
    return own if issubclass(type(own), classes) else None
