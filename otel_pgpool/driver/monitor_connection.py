"""The monitoring connection to the server of a `ConnectionPool`."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
from psycopg2 import extensions

from otel_pgpool.driver.attempt import ConnectAttempt
from otel_pgpool.driver.deadline import Deadline
from otel_pgpool.driver.error_text import describe
from otel_pgpool.driver.monitoring import APPLICATION_NAME, FORK_DELAY, NO_ANSWER, NO_RIGHTS, READ_ONLY, TIME_LIMIT
from otel_pgpool.driver.session import close, close_inherited, execute
from otel_pgpool.errors import PoolError
from otel_pgpool.runtime.gevent import has_green_threads
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import class_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool.driver.connect_target import ConnectTarget


class MonitorConnection:
    """A monitoring connection of psycopg2."""

    def __init__(self, conn: connection) -> None:
        self._conn = conn
        conn.autocommit = True
        self.pid: int = conn.get_backend_pid()
        """Process id of the session as the client knows it."""
        self.local_port: int = local_port(conn.fileno())
        """Port of this end of the connection; 0 for a Unix socket."""

    def query(self, statement: str) -> str:
        """Return the first value of a statement's first row.

        Raises:
            PoolError: the server did not answer in time.
            psycopg2.Error: the server refused the statement, or the connection is lost.
        """
        deadline = Deadline(self._conn, TIME_LIMIT)
        with deadline:
            try:
                return str(execute(self._conn, READ_ONLY + statement)[0])
            except psycopg2.Error:
                if deadline.expired:
                    raise PoolError(NO_ANSWER) from None
                raise

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

    @property
    def login(self) -> str:
        """User that the pool logs in as; empty if unknown."""
        return self._target.user

    @property
    def database(self) -> str:
        """Name of the database that the pool connects to."""
        return self._target.namespace

    def server_of(self, slot: Any) -> tuple[str, int | None]:
        """Return host and port of the server of one of the pool's connections, given by its `Slot`."""
        return slot.server or (self._target.address, self._target.port)

    def open(self, server: tuple[str, int | None]) -> MonitorConnection:
        """Open a monitoring connection to one of the pool's servers.

        Raises:
            PoolError: under gevent or eventlet without a wait callback, where each call stops every greenlet.
            Exception: the connection cannot be opened; see `ConnectTarget.connect`.
        """
        is_chosen = "," in self._target.address and "," not in server[0]
        changes = monitor_arguments(server if is_chosen else None)
        with limited_attempt() as attempt:
            return MonitorConnection(self._target.connect(attempt, changes))

    def error_text(self, error: BaseException) -> str:
        """Return the text of an error, without secrets or SQL."""
        if isinstance(error, PoolError):
            return str(error)
        if isinstance(error, psycopg2.errors.InsufficientPrivilege):
            return NO_RIGHTS
        return describe(self._target, error) or class_of(error)


def monitor_arguments(chosen: tuple[str, int | None] | None) -> dict[str, Any]:
    """Return the arguments of ``psycopg2.connect`` in which a monitoring connection differs from a pool's.

    Args:
        chosen: the server, if the arguments name several.
    """
    changes: dict[str, Any] = {"connection_factory": None, "cursor_factory": None}
    changes |= {"application_name": APPLICATION_NAME, "connect_timeout": int(TIME_LIMIT), "client_encoding": "UTF8"}
    if chosen is not None:
        host, port = chosen
        changes |= {"host": host, "hostaddr": "", "port": port, "target_session_attrs": "any"}
    return changes


@contextmanager
def limited_attempt() -> Iterator[ConnectAttempt]:
    """Limit the time of a connect, and yield its attempt.

    Raises:
        PoolError: under gevent or eventlet without a wait callback, where each call stops every greenlet.
    """
    is_polled = extensions.get_wait_callback() is not None
    if has_green_threads() and not is_polled:
        raise PoolError("under gevent or eventlet, psycopg2 needs a wait callback, such as psycogreen's")
    if not is_polled:
        yield ConnectAttempt(limit=TIME_LIMIT, delays_fork=FORK_DELAY)
        return
    attempt = ConnectAttempt(delays_fork=FORK_DELAY)
    limit = threading.Timer(TIME_LIMIT, attempt.cut, [math.inf])  # libpq does not bound a connect that is polled
    limit.daemon = True
    limit.start()
    try:
        yield attempt
    finally:
        limit.cancel()
