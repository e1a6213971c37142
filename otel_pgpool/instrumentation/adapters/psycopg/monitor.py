"""The monitoring connections of psycopg 3, for threads and for an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row

from otel_pgpool.driver.monitoring import APPLICATION_NAME, FORK_DELAY, READ_ONLY, TIME_LIMIT
from otel_pgpool.instrumentation.adapters.monitor import BoundedConnection
from otel_pgpool.runtime.fork import keep_from_forking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
    from otel_pgpool.pool.monitor_source import Server

DRIVER_KEYWORDS = ("autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory")
"""Arguments of ``psycopg.connect`` that are not libpq's."""


class _PsycopgMonitor(BoundedConnection):
    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self.pid = int(conn.pgconn.backend_pid)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return int(self._conn.pgconn.socket)


class PsycopgMonitor(_PsycopgMonitor):
    """A monitoring connection of psycopg."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        super().__init__(conn)
        conn.autocommit = True

    def run(self, statement: str) -> str:
        """Run a statement and return its value."""
        with psycopg.Cursor(self._conn, row_factory=tuple_row) as cursor:
            cursor.execute(_message(statement), prepare=False)
            while cursor.nextset():
                pass
            return _value_of(cursor.fetchone())

    def end(self) -> None:
        """End the session."""
        self._conn.close()


class AsyncPsycopgMonitor(_PsycopgMonitor):
    """A monitoring connection of psycopg for asyncio, with an event loop of its own."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], loop: OwnLoop) -> None:
        super().__init__(conn)
        self._loop = loop
        loop.run(conn.set_autocommit(True))

    def run(self, statement: str) -> str:
        """Run a statement and return its value."""
        return self._loop.run(self._run(statement))

    async def _run(self, statement: str) -> str:
        async with psycopg.AsyncCursor(self._conn, row_factory=tuple_row) as cursor:
            await cursor.execute(_message(statement), prepare=False)
            while cursor.nextset():
                pass
            return _value_of(await cursor.fetchone())

    def end(self) -> None:
        """End the session."""
        self._loop.run(self._conn.close())

    def close(self) -> None:
        """Close the connection and the loop."""
        super().close()
        self._loop.close()


def open_monitor(conninfo: str, kwargs: Mapping[str, Any], chosen: Server | None) -> PsycopgMonitor:
    """Open a monitoring connection with the arguments of a pool's connects.

    Args:
        conninfo: the connection string.
        kwargs: keyword arguments of ``psycopg.connect``; those that are not libpq's are left out.
        chosen: the server, if the arguments name several.

    Raises:
        psycopg.Error: the connection cannot be opened.
    """
    given = {key: value for key, value in kwargs.items() if key not in DRIVER_KEYWORDS}
    parameters: dict[str, Any] = {**conninfo_to_dict(conninfo, **given), **monitor_arguments(chosen)}
    with keep_from_forking(FORK_DELAY):
        return PsycopgMonitor(psycopg.Connection.connect("", **parameters))


def monitor_arguments(chosen: Server | None) -> dict[str, Any]:
    """Return the parameters of libpq in which a monitoring connection differs from a pool's."""
    changes: dict[str, Any] = {"application_name": APPLICATION_NAME, "client_encoding": "UTF8"}
    changes["connect_timeout"] = int(TIME_LIMIT)
    if chosen is not None:
        host, port = chosen
        changes |= {"host": host, "hostaddr": None, "port": port, "target_session_attrs": "any"}
    return changes


def _message(statement: str) -> bytes:
    """Return a statement after those that make it read only, which are one message without parameters."""
    return (READ_ONLY + statement).encode()


def _value_of(row: tuple[Any, ...] | None) -> str:
    return "" if row is None else str(row[0])
