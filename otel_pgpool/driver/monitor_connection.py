"""The monitoring connection to the server of a `ConnectionPool`."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from psycopg2 import extensions

from otel_pgpool.driver.attempt import ConnectAttempt
from otel_pgpool.driver.deadline import Deadline
from otel_pgpool.driver.error_text import describe
from otel_pgpool.driver.session import close, close_inherited, execute
from otel_pgpool.errors import PoolError
from otel_pgpool.runtime.gevent import has_green_threads
from otel_pgpool.runtime.text import class_of

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.driver.connect_target import ConnectTarget

APPLICATION_NAME = "otel_pgpool monitor"

TIME_LIMIT = 2.0
"""Seconds for a connect to each host, and for a query."""

READ_ONLY = "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = 1000; "
"""The beginning of each query. It sets nothing for the session, which a proxy may share with other clients."""


class MonitorConnection:
    """A monitoring connection of psycopg2."""

    def __init__(self, conn: connection) -> None:
        self._conn = conn
        conn.autocommit = True
        self.pid: int = conn.get_backend_pid()
        """Process id of the session as the client knows it."""

    def query(self, statement: str) -> str:
        """Return the first value of a statement's first row.

        Raises:
            psycopg2.Error: the server did not answer in time, or refused the statement.
        """
        with Deadline(self._conn, TIME_LIMIT):
            return str(execute(self._conn, READ_ONLY + statement)[0])

    def close(self) -> None:
        """Close the connection."""
        close(self._conn)

    def close_inherited(self) -> None:
        """Close the socket in a forked child, without a message to the server."""
        close_inherited(self._conn)


class MonitorSource:
    """The way to monitoring connections of a pool."""

    def __init__(self, target: ConnectTarget) -> None:
        self._target = target

    def server_of(self, conn: Any) -> tuple[str, int | None]:
        """Return host and port of the server of a pool's connection, which the pool may have chosen among several."""
        target = self._target
        if conn is None or conn.closed or "," not in target.address:
            return target.address, target.port
        return conn.info.host, conn.info.port

    def open(self, server: tuple[str, int | None]) -> MonitorConnection:
        """Open a monitoring connection to one of the pool's servers.

        Raises:
            PoolError: under gevent or eventlet without a wait callback, where each call stops every greenlet.
            Exception: the connection cannot be opened; see `ConnectTarget.connect`.
        """
        if has_green_threads() and extensions.get_wait_callback() is None:
            raise PoolError("under gevent or eventlet, psycopg2 needs a wait callback, such as psycogreen's")
        changes: dict[str, Any] = {"connection_factory": None, "cursor_factory": None}
        changes["application_name"] = APPLICATION_NAME
        if "," in self._target.address:
            host, port = server
            changes |= {"host": host, "hostaddr": None, "port": port, "target_session_attrs": "any"}
        if extensions.get_wait_callback() is None:
            return MonitorConnection(self._target.connect(ConnectAttempt(limit=TIME_LIMIT), changes))
        attempt = ConnectAttempt()
        limit = threading.Timer(TIME_LIMIT, attempt.cut, [math.inf])  # libpq does not bound a connect that is polled
        limit.daemon = True
        limit.start()
        try:
            return MonitorConnection(self._target.connect(attempt, changes))
        finally:
            limit.cancel()

    def error_text(self, error: BaseException) -> str:
        """Return the text of an error, without secrets or SQL."""
        if isinstance(error, PoolError):
            return str(error)
        return describe(self._target, error) or class_of(error)
