"""Access to psycopg 3's connections through libpq's object, which calls no code of the application.

An application may have its own class of connections. Of such a connection only ``pgconn`` is read, as the pools do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus

from otel_pgpool.driver.messages import known_text
from otel_pgpool.driver.refusal_texts import refuses
from otel_pgpool.instrumentation.adapters.base import Driver, PoolAdapter
from otel_pgpool.instrumentation.guards import ignore_errors, raise_if_asynchronous
from otel_pgpool.runtime.text import printable
from otel_pgpool.types import TRANSACTION_STATUSES, TransactionStatus

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolTarget

BAD = ConnStatus.BAD


def is_closed(conn: Any) -> bool:
    """Return whether a connection is closed or lost; False if that cannot be read."""
    try:
        closed: bool = conn.pgconn.status == BAD
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        raise_if_asynchronous(error)
        return False
    return closed


def is_broken(conn: Any) -> bool:
    """Return whether a closed connection was lost, and not closed by a call."""
    with ignore_errors:
        return bool(psycopg.BaseConnection.broken.__get__(conn))
    return True


def parameters_of(conn: Any) -> dict[str, str]:
    """Return the server, the database and the user of a connection, as libpq knows them."""
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
        """Return the process id of a connection's backend; 0 if it has none any more, or is not psycopg's."""
        with ignore_errors:
            return int(conn.pgconn.backend_pid)
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction, as libpq knows it; unknown if it is not psycopg's."""
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

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a psycopg error's text."""
        with ignore_errors:
            return error_text(error, target)
        return ""


class PsycopgDriver(Psycopg, PoolAdapter):
    """A base class of adapters for pools of psycopg's connections only."""
