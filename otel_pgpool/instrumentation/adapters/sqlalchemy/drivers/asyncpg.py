"""asyncpg, as a driver of SQLAlchemy's engines.

Checked on asyncpg 0.29 to 0.32: ``_addr`` is the address of the server, ``_params`` the names of user and database,
``_transport`` the transport of asyncio or uvloop. asyncpg offers no other way to read them.
"""
# ruff: noqa: SLF001 - see above

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from otel_pgpool.driver.refusal_texts import refuses_by_state
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import PLAIN, EngineDriver, own_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.server_errors import (
    error_type,
    server_text,
    system_text,
    valid_state,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import UNKNOWN, server_target
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.text import printable
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import PoolTarget
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import ServerTarget

ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, asyncio.TimeoutError)
SOCKET = ".s.PGSQL."
"""Beginning of the name of a server's Unix socket, before the port."""


class Asyncpg(EngineDriver):
    """The driver asyncpg."""

    def own_connection(self, conn: Any) -> Any:
        """Return asyncpg's connection inside the proxies of agents; None if there is none."""
        return own_of(conn, (asyncpg.Connection,))

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if it is unknown."""
        with ignore_errors:
            return int(self.own_connection(conn).get_server_pid())
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return whether a connection is in a transaction; asyncpg does not distinguish an aborted one."""
        with ignore_errors:
            own = self.own_connection(conn)
            if not own.is_closed():
                return TransactionStatus.IN_TRANSACTION if own.is_in_transaction() else TransactionStatus.IDLE
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host and the port that a connection was made to."""
        with ignore_errors:
            host, port = _place(self.own_connection(conn)._addr)
            return printable(host), int(port)
        return None, None

    def is_closed(self, conn: Any) -> bool:
        """Return whether a connection is closed."""
        with ignore_errors:
            return bool(self.own_connection(conn).is_closed())
        return False

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether asyncpg raised an error, or the event loop for asyncpg."""
        return isinstance(error, ERRORS)

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection."""
        state = _state(error)
        return state is not None and refuses_by_state(state)

    def error_type(self, error: BaseException) -> str:
        """Return an error's SQLSTATE, or else the name of its class."""
        return error_type(error, _state(error))

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a server's message, or the operating system's text."""
        if isinstance(error, asyncpg.PostgresError):
            constraint, file = getattr(error, "constraint_name", None), getattr(error, "server_source_filename", None)
            return server_text(getattr(error, "message", None), constraint, file, target.public)
        return system_text(error)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ServerTarget:
        """Return the target of the arguments of ``asyncpg.connect``; unknown if there is a DSN, which is not parsed."""
        given = {key: kwargs.get(key) for key in ("host", "port", "user")}
        given["dbname"] = kwargs.get("database", kwargs.get("dbname"))
        lists = {key: value if isinstance(value, (list, tuple)) else [value] for key, value in given.items()}
        is_plain = all(type(each) in PLAIN for values in lists.values() for each in values)
        if args or kwargs.get("dsn") is not None or not is_plain:
            return UNKNOWN
        return server_target({key: ",".join(str(each or "") for each in values) for key, values in lists.items()})

    def target_of_connection(self, conn: Any) -> ServerTarget:
        """Return the target of a connection."""
        with ignore_errors:
            own = self.own_connection(conn)
            host, port = _place(own._addr)
            return server_target(
                {"host": host, "port": port, "dbname": own._params.database, "user": own._params.user}, {}
            )
        return UNKNOWN

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket.

        In a forked child, the transport must not be closed: that would end the parent's watch on its socket, because
        both processes share the descriptor of the event loop.
        """
        return int(self.own_connection(conn)._transport.get_extra_info("socket").fileno())


def _state(error: BaseException) -> str | None:
    return valid_state(getattr(error, "sqlstate", None)) if isinstance(error, asyncpg.PostgresError) else None


def _place(address: Any) -> tuple[str, str]:
    """Return the host and the port, or the folder and the port of a Unix socket."""
    if isinstance(address, str):
        folder, _, port = address.rpartition(f"/{SOCKET}")
        return folder, port
    return str(address[0]), str(address[1])
