"""pg8000, as a driver of SQLAlchemy's engines.

Checked on pg8000 1.31: ``_usock`` is the socket, ``_backend_key_data`` the server's process id and key,
``_transaction_status`` the last status that the server sent. pg8000 offers no other way to read them.
"""
# ruff: noqa: SLF001 - see above

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pg8000.core import CoreConnection
from pg8000.exceptions import DatabaseError, Error

from otel_pgpool.driver.messages import known
from otel_pgpool.driver.monitoring import APPLICATION_NAME, READ_ONLY, TIME_LIMIT
from otel_pgpool.driver.system_texts import text_of_system
from otel_pgpool.driver.target import UNKNOWN, Target
from otel_pgpool.instrumentation.adapters.monitor import BoundedConnection
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver, unwrapped_instance
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import printable, text_of
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import PoolTarget
    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import MonitorConnection, Server

STATUSES = {
    None: TransactionStatus.IDLE,  # no statement was sent yet
    b"I": TransactionStatus.IDLE,
    b"T": TransactionStatus.IN_TRANSACTION,
    b"E": TransactionStatus.IN_ERROR,
}
OWN_TEXTS = frozenset(("network error", "communication error", "connection is closed"))


class Pg8000EngineDriver(EngineDriver):
    """The driver pg8000."""

    def own_connection(self, conn: Any) -> Any:
        """Return pg8000's connection inside the proxies of agents; None if there is none."""
        return unwrapped_instance(conn, (CoreConnection,))

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if it is unknown."""
        with ignore_errors:
            return int.from_bytes(self.own_connection(conn)._backend_key_data[:4], "big")
        return 0

    def local_port(self, conn: Any) -> int:
        """Return the port of the client's end of a TCP connection; 0 for a Unix socket, or if it is unknown."""
        with ignore_errors:
            return local_port(self.fileno(conn))
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction, as the server sent it last."""
        with ignore_errors:
            own = self.own_connection(conn)
            if own._usock is not None:
                return STATUSES[own._transaction_status]
        return TransactionStatus.UNKNOWN

    def is_argument_error(self, error: BaseException) -> bool:
        """Return whether a connect failed because of its arguments, before it reached the network."""
        return isinstance(error, (TypeError, ValueError)) and not isinstance(error, OSError)

    def is_closed(self, conn: Any) -> bool:
        """Return whether a connection is closed."""
        with ignore_errors:
            return self.own_connection(conn)._usock is None
        return False

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether pg8000 raised an error."""
        return isinstance(error, Error)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a server's message, or the operating system's text."""
        fields = _fields(error)
        if fields:
            if (fields.get("F") or "pl").startswith("pl"):  # of a procedural language, with any text
                return ""
            return printable(known(fields.get("M", ""), {*target.public, fields.get("n", "")}))
        text = text_of(error)
        return text_of_system(error.__cause__) or (text if self.is_error(error) and text in OWN_TEXTS else "")

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Return the target of the arguments of ``pg8000.connect``, which reads no variables."""
        path = kwargs.get("unix_sock")
        if type(path) is str:
            folder, _, port = path.rpartition("/.s.PGSQL.")
            kwargs = {**kwargs, "host": folder, "port": port}
        return super().target(args, kwargs)

    def target_of_connection(self, conn: Any) -> Target:
        """Return the server of a connection, without the database, which pg8000 does not store."""
        with ignore_errors:
            host, port = self.own_connection(conn)._usock.getpeername()[:2]
            return Target(host, port, "", f"{host}:{port}", frozenset((host, str(port))))
        return UNKNOWN

    def monitor_arguments(self, given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:  # noqa: ARG002 - the interface
        """Return the arguments in which a monitoring connection differs from a pool's."""
        return {"application_name": APPLICATION_NAME, "timeout": TIME_LIMIT}

    def monitor(self, conn: Any, loop: OwnLoop | None) -> MonitorConnection:  # noqa: ARG002 - the interface
        """Return a connection as a monitoring connection."""
        return Pg8000Monitor(conn, self)

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket."""
        return int(self.own_connection(conn)._usock.fileno())


class Pg8000Monitor(BoundedConnection):
    """A monitoring connection of pg8000."""

    def __init__(self, conn: CoreConnection, driver: Pg8000EngineDriver) -> None:
        self._conn = conn
        self._driver = driver
        self.pid = driver.backend_pid(conn)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._driver.fileno(self._conn)

    def run(self, statement: str) -> str:
        """Run a statement and return its value."""
        return str(self._conn.execute_simple(READ_ONLY + statement).rows[0][0])

    def end(self) -> None:
        """End the session."""
        self._conn.close()


def _fields(error: BaseException) -> Mapping[str, str]:
    """Return the fields of a server's error, by the letters of PostgreSQL's protocol."""
    if isinstance(error, DatabaseError) and error.args and isinstance(error.args[0], dict):
        return error.args[0]
    return {}
