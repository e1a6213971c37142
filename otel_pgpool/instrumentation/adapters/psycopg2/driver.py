"""Access to psycopg2's connections by psycopg2's own code only.

An application may have put its own code around a connection: a subclass, a fake in its tests, an agent's proxy. The
instrumentation calls none of this code, so that the code runs only when the pool itself calls it. The exceptions are
``closed``, which pools read too, and the process id of a connection that is not psycopg2's, when the id is reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import connection

from otel_pgpool.driver.error_text import describe
from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.session import is_refusal
from otel_pgpool.errors import sqlstate
from otel_pgpool.instrumentation.adapters.base import Driver, PoolAdapter
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_external
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import printable
from otel_pgpool.types import TRANSACTION_STATUSES, TransactionStatus

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolTarget


def own_connection(conn: Any) -> connection | None:
    """Return psycopg2's connection inside the proxies of agents; None if there is none."""
    own = unwrapped(conn)
    return own if issubclass(type(own), connection) else None


def parameters_of(conn: Any) -> dict[str, Any]:
    """Return a connection's parameters, as libpq reports them, without the password."""
    with ignore_errors:
        info = _info_of(conn)
        return {} if info is None else {**info.dsn_parameters}
    return {}


def _info_of(conn: Any) -> Any:
    own = own_connection(conn)
    return None if own is None else connection.info.__get__(own)


def closed_of(conn: Any) -> int:
    """Return a connection's ``closed``, which pools read too; 0 if it has none."""
    try:
        closed: int = conn.closed
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        raise_if_external(error)
        return 0
    return closed


class Psycopg2(Driver):
    """Access to psycopg2's connections and errors."""

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if the connection is closed, or is not psycopg2's."""
        with ignore_errors:
            own = own_connection(conn)
            return 0 if own is None else connection.get_backend_pid(own)
        return 0

    def local_port(self, conn: Any) -> int:
        """Return the port of the client's end of a TCP connection; 0 for a Unix socket, or if it is unknown."""
        with ignore_errors:
            own = own_connection(conn)
            return 0 if own is None else local_port(connection.fileno(own))
        return 0

    def ask_backend_pid(self, conn: Any) -> int:
        """Return the process id by a call of the connection, maybe of the application's own class."""
        return int(conn.get_backend_pid())

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction, as libpq reports it; unknown if it is not psycopg2's."""
        with ignore_errors:
            own = own_connection(conn)
            if own is not None:
                return TRANSACTION_STATUSES[connection.get_transaction_status(own)]
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host and the port that a connection was made to."""
        with ignore_errors:
            info = _info_of(conn)
            return (None, None) if info is None else (printable(info.host), info.port)
        return None, None

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection."""
        return is_refusal(error)

    def is_argument_error(self, error: BaseException) -> bool:
        """Return whether a connect failed because of its arguments, before it reached the network."""
        return isinstance(error, (psycopg2.ProgrammingError, TypeError, ValueError)) and sqlstate(error) is None

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a psycopg2 error's text."""
        return describe(target, error)


class Psycopg2Driver(Psycopg2, PoolAdapter):
    """A base class of adapters for pools of psycopg2's connections only."""
