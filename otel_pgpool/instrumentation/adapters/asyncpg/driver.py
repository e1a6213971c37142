"""Access to asyncpg's connections and errors, without calling what a class of the application overrides."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asyncpg.connection import Connection
from asyncpg.exceptions import ClientConfigurationError, InterfaceError, InternalClientError, PostgresError

from otel_pgpool.driver.messages import known
from otel_pgpool.driver.refusal_texts import OF_THE_SERVER
from otel_pgpool.driver.system_texts import text_of_system
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.target import address_of
from otel_pgpool.instrumentation.adapters.base import Driver
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import printable, text_of
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolTarget

TIMEOUTS = (asyncio.TimeoutError, TimeoutError)  # two classes before Python 3.11
NETWORK_ERRORS = (OSError, *TIMEOUTS, InterfaceError, InternalClientError)
"""Errors of a connect that no server has answered, or that asyncpg cannot even begin."""


class Asyncpg(Driver):
    """Access to asyncpg's connections and errors."""

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if the connection is closed."""
        with ignore_errors:
            return int(Connection.get_server_pid(conn))
        return 0

    def local_port(self, conn: Any) -> int:
        """Return the port of the client's end of a TCP connection; 0 for a Unix socket, or if it is unknown."""
        with ignore_errors:
            return local_port(private.descriptor_of(conn))
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction; a failed one counts as open."""
        with ignore_errors:
            if Connection.is_closed(conn):
                return TransactionStatus.UNKNOWN
            if private.runs_query(conn):
                return TransactionStatus.ACTIVE
            if Connection.is_in_transaction(conn):
                return TransactionStatus.IN_TRANSACTION
            return TransactionStatus.IDLE
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host or the folder of the socket, and the port, that a connection was made to."""
        host, port = address_of(conn)
        return None if host is None else printable(host), port

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether a server is up and refused the connection, or the application's own callback did."""
        state = sqlstate(error)
        if state is not None:
            return state[:2] not in OF_THE_SERVER
        return not isinstance(error, NETWORK_ERRORS)

    def is_argument_error(self, error: BaseException) -> bool:
        """Return whether a connect failed because of its arguments, before it reached the network."""
        # An error of an invalid certificate is of both kinds.
        return isinstance(error, (ClientConfigurationError, TypeError, ValueError)) and not isinstance(error, OSError)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of an error's text.

        The detail and the hint of a server are left out, and texts that a function of the database has made.
        """
        with ignore_errors:  # of a class of the application
            if isinstance(error, TIMEOUTS):
                return "timeout expired"
            if isinstance(error, PostgresError):
                return _text_of_server(error, target)
            if isinstance(error, (InterfaceError, InternalClientError)):
                return printable(known(text_of(error), target.public))
            return text_of_system(error)
        return ""


def _text_of_server(error: PostgresError, target: PoolTarget) -> str:
    """Return the known part of a message; empty for one of a procedural language, which may be any text."""
    fields = vars(error)
    if sqlstate(error) is not None and str(fields.get("server_source_filename") or "").startswith("pl"):
        return ""
    constraint = fields.get("constraint_name")
    public = target.public if constraint is None else {*target.public, str(constraint)}
    return printable(known(str(error.args[0]) if error.args else "", public))
