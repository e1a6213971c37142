"""Access to psycopg 3's connections through libpq's object, which calls no code of the application.

An application may have its own class of connections. Of such a connection only ``pgconn`` is read, as the pools do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus

from otel_pgpool.driver.messages import known_text
from otel_pgpool.driver.refusal_texts import refuses
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.base import Driver
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_external
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import printable
from otel_pgpool.types import TRANSACTION_STATUSES, TransactionStatus

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolTarget

BAD = int(ConnStatus.BAD)  # plain, because the hot path compares it
SESSION_ENDED = ("57P01", "57P02", "57P03")
ARGUMENT_ERRORS = (psycopg.ProgrammingError, psycopg.NotSupportedError)
NETWORK_ERRORS = (OSError, asyncio.TimeoutError)  # two classes before Python 3.11


class _NoPGconn:
    """The stand-in for the ``pgconn`` of a connection of the application's own class, if that cannot be read."""

    status = None


NO_PGCONN: Any = _NoPGconn()


def is_closed(conn: Any) -> bool:
    """Return whether a connection is closed or lost; False if that cannot be read."""
    try:
        closed: bool = conn.pgconn.status == BAD
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        raise_if_external(error)
        return False
    return closed


def is_broken(conn: Any) -> bool:
    """Return whether a closed connection was lost, and not closed by a call."""
    with ignore_errors:
        return bool(psycopg.BaseConnection.broken.__get__(conn))
    return True


def is_lost(conn: Any, error: BaseException) -> bool:
    """Return whether an error of a statement means that its connection was lost, not that the statement failed."""
    state = sqlstate(error) if isinstance(error, psycopg.Error) else None
    return is_broken(conn) or (state is not None and (state.startswith("08") or state in SESSION_ENDED))


def parameters_of(conn: Any) -> dict[str, str]:
    """Return the server, the database and the user of a connection, as libpq reports them."""
    with ignore_errors:
        pgconn = conn.pgconn
        found = {"host": pgconn.host, "port": pgconn.port, "dbname": pgconn.db, "user": pgconn.user}
        return {key: value.decode() for key, value in found.items() if value}
    return {}


def error_text(error: BaseException, target: PoolTarget) -> str:
    """Return the known part of a psycopg error's text, one line without secrets, SQL or values; maybe empty."""
    return known_text(error, target.public) if isinstance(error, psycopg.Error) else ""


class Psycopg(Driver):
    """Access to psycopg's connections and errors."""

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if the connection is closed, or is not psycopg's."""
        with ignore_errors:
            return int(conn.pgconn.backend_pid)
        return 0

    def local_port(self, conn: Any) -> int:
        """Return the port of the client's end of a TCP connection; 0 for a Unix socket, or if it is unknown."""
        with ignore_errors:
            return local_port(conn.pgconn.socket)
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction, as libpq reports it; unknown if it is not psycopg's."""
        with ignore_errors:
            status: int = conn.pgconn.transaction_status
            return TRANSACTION_STATUSES[status]
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host and the port that a connection was made to."""
        parameters = parameters_of(conn)
        host, port = parameters.get("host"), parameters.get("port", "")
        return None if host is None else printable(host), int(port) if port.isdecimal() else None

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection."""
        return isinstance(error, psycopg.Error) and refuses(error)

    def is_argument_error(self, error: BaseException) -> bool:
        """Return whether a connect failed because of its arguments, before it reached the network."""
        if isinstance(error, psycopg.Error):
            return isinstance(error, ARGUMENT_ERRORS) and sqlstate(error) is None
        return not isinstance(error, NETWORK_ERRORS)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a psycopg error's text."""
        with ignore_errors:
            return error_text(error, target)
        return ""
