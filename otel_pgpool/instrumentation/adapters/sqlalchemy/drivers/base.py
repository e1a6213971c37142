"""The interface between the adapter of SQLAlchemy and a driver of PostgreSQL."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.refusal_texts import refuses_by_state
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.base import Driver
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import UNKNOWN, server_target
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import PoolTarget

PLAIN = (str, int, float, bool, type(None))
"""Types of parameters that are read. A password or a host may be an object that fetches its value when it is read."""


class EngineDriver(Driver):
    """A driver of SQLAlchemy's engines: what it tells of connections, errors and the arguments of a connect.

    The methods of this class are those of a driver of which nothing is known.
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

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PoolTarget:
        """Return the target of the arguments of a connect, without raising and without calling the application.

        The arguments may also be the parts of a URL, named as libpq names them.
        """
        given = {key: kwargs.get(key) for key in ("host", "port", "user")}
        given["dbname"] = kwargs.get("database", kwargs.get("dbname"))
        if args or any(type(value) not in PLAIN for value in given.values()):
            return UNKNOWN
        return server_target(given, {})

    def target_of_connection(self, conn: Any) -> PoolTarget:  # noqa: ARG002 - the interface
        """Return the target that a connection was made to."""
        return UNKNOWN

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket.

        Raises:
            Exception: the connection has none, or is closed.
        """
        return int(conn.fileno())

    def abandon(self, conn: Any) -> None:
        """Close the socket of a parent's idle connection in a forked child, without a byte to the server."""
        replace_socket(self.fileno(conn))

    def cut_off(self, conn: Any) -> None:
        """Replace the socket of a parent's connection in a forked child, so that nothing can be sent any more."""
        replace_socket(self.fileno(conn))


def replace_socket(fileno: int) -> None:
    """Replace a socket, in this process, by one that is not connected.

    The descriptor stays in use, because an object that owns it closes it later.
    """
    with socket.socket() as dead:
        os.dup2(dead.fileno(), fileno, inheritable=False)


def own_of(conn: Any, classes: tuple[type, ...]) -> Any:
    """Return the connection of one of these classes inside the proxies of agents; None if there is none."""
    own = unwrapped(conn)
    return own if issubclass(type(own), classes) else None
