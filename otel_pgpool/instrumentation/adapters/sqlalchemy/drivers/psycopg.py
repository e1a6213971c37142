"""psycopg 3, as a driver of SQLAlchemy's engines, both its connections and its asynchronous connections.

Everything is read from the ``pgconn`` of a connection, past what a subclass overrides.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from otel_pgpool.driver.messages import known
from otel_pgpool.driver.refusal_texts import refuses_by_state, refuses_by_text
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import PLAIN, EngineDriver, own_of, plain
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.server_errors import (
    error_type,
    server_text,
    valid_state,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import UNKNOWN, VARIABLES, server_target
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.text import printable, text_of
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import PoolTarget
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.target import ServerTarget

CONNECTIONS = (psycopg.Connection, psycopg.AsyncConnection)
STATUSES = tuple(TransactionStatus)
"""The statuses in the order of libpq's numbers."""

BEFORE_LIBPQ = re.compile(r"^.*?connection (?:failed|is bad): ", re.MULTILINE)
"""Words that psycopg puts before libpq's text, in each line one host's."""

OWN_TEXTS = frozenset(("connection timeout expired", "the connection is closed", "the connection is lost"))


class Psycopg(EngineDriver):
    """The driver psycopg 3."""

    def own_connection(self, conn: Any) -> Any:
        """Return psycopg's connection inside the proxies of agents; None if there is none."""
        return own_of(conn, CONNECTIONS)

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend; 0 if the connection is closed."""
        with ignore_errors:
            return int(self._pgconn(conn).backend_pid)
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction, as libpq knows it."""
        with ignore_errors:
            return STATUSES[int(self._pgconn(conn).transaction_status)]
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host and the port that a connection was made to."""
        with ignore_errors:
            pgconn = self._pgconn(conn)
            return printable(_text(pgconn.host)), int(pgconn.port)
        return None, None

    def is_error(self, error: BaseException | None) -> bool:
        """Return whether psycopg raised an error."""
        return isinstance(error, psycopg.Error)

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection; libpq reports no SQLSTATE for that."""
        if not isinstance(error, psycopg.Error):
            return False
        state = valid_state(error.sqlstate)
        return refuses_by_text(text_of(error)) if state is None else refuses_by_state(state)

    def error_type(self, error: BaseException) -> str:
        """Return an error's SQLSTATE, or else the name of its class."""
        return error_type(error, error.sqlstate if isinstance(error, psycopg.Error) else None)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a psycopg error's text."""
        if not isinstance(error, psycopg.Error):
            return ""
        if valid_state(error.sqlstate) is None:
            text = text_of(error)
            return text if text in OWN_TEXTS else printable(known(BEFORE_LIBPQ.sub("", text), target.public))
        diag = error.diag
        return server_text(diag.message_primary, diag.constraint_name, diag.source_file, target.public)

    def target(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ServerTarget:
        """Return the target of the arguments of ``psycopg.connect``."""
        decisive = {key: value for key, value in kwargs.items() if key in (*VARIABLES, "conninfo")}
        if any(type(value) not in PLAIN for value in (*args[:1], *decisive.values())):
            return UNKNOWN
        with ignore_errors:  # a text that libpq cannot read
            conninfo = args[0] if args else decisive.pop("conninfo", "")
            given = {key: value for key, value in plain(decisive).items() if value is not None}
            return server_target(conninfo_to_dict(conninfo, **given))
        return UNKNOWN

    def target_of_connection(self, conn: Any) -> ServerTarget:
        """Return the target of a connection, as libpq knows it."""
        with ignore_errors:
            pgconn = self._pgconn(conn)
            found = {"host": pgconn.host, "port": pgconn.port, "dbname": pgconn.db, "user": pgconn.user}
            return server_target({key: _text(value) for key, value in found.items()})
        return UNKNOWN

    def fileno(self, conn: Any) -> int:
        """Return the descriptor of a connection's socket."""
        return int(self._pgconn(conn).socket)

    def abandon(self, conn: Any) -> None:
        """Close the socket; psycopg itself closes only what its own process has opened."""
        os.close(self.fileno(conn))

    def _pgconn(self, conn: Any) -> Any:
        return self.own_connection(conn).pgconn


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
