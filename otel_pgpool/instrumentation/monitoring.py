"""The way from an instrumented pool to the monitor of its server, whose connections leave no telemetry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_pgpool.errors import PoolError
from otel_pgpool.runtime.text import class_of

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect, PoolReader, PoolTarget
    from otel_pgpool.pool.checkout import Slot
    from otel_pgpool.pool.monitor_source import MonitorConnection, Server


class TrackedPoolSource:
    """The way to monitoring connections of an instrumented pool: a `MonitorSource`.

    It does not keep the pool alive.

    Args:
        connect: the function with which the adapter connects.
        reader: the adapter.
        target: the target of the pool.
    """

    def __init__(self, connect: MonitorConnect, reader: PoolReader, target: PoolTarget) -> None:
        self._connect = connect
        self._reader = reader
        self._target = target

    @property
    def login(self) -> str:
        """User that the pool logs in as; empty if unknown."""
        return str(getattr(self._target, "user", ""))  # a target of an adapter elsewhere may not have it

    @property
    def database(self) -> str:
        """Name of the database that the pool connects to; empty if unknown."""
        return self._target.namespace

    def server_of(self, slot: Slot) -> Server:
        """Return host and port of the server of a pool's connection, which the pool may have chosen among several."""
        return server_of(slot, self._reader, self._target)

    def open(self, server: Server) -> MonitorConnection:
        """Open a monitoring connection.

        Raises:
            Exception: the connection cannot be opened.
        """
        is_chosen = "," in self._target.address and "," not in server[0]
        with suppress_instrumentation():
            return QuietConnection(self._connect(server if is_chosen else None))

    def error_text(self, error: BaseException) -> str:
        """Return the text of an error, without secrets or SQL."""
        if isinstance(error, PoolError):
            return str(error)
        return self._reader.error_text(error, self._target) or class_of(error)


def server_of(slot: Slot, reader: PoolReader, target: PoolTarget) -> Server:
    """Return host and port of the server of a connection of an instrumented pool."""
    conn = slot.ref()
    if conn is not None and (not target.address or "," in target.address):
        host, port = reader.server_address(conn)
        if host is not None:
            return host, port
    return target.address, target.port


class QuietConnection:
    """A monitoring connection whose use no other instrumentation reports."""

    def __init__(self, conn: MonitorConnection) -> None:
        self._conn = conn
        self.pid: int = conn.pid
        """Process id of the session as the client knows it; 0 if the driver does not tell."""
        self.local_port: int = getattr(conn, "local_port", 0)  # that of an adapter elsewhere may not have it
        """Port of this end of the connection; 0 for a Unix socket."""

    def query(self, statement: str) -> str:
        """Return the one value of a statement.

        Raises:
            Exception: the server did not answer in time, or refused the statement.
        """
        with suppress_instrumentation():
            return self._conn.query(statement)

    def close(self) -> None:
        """Close the connection."""
        with suppress_instrumentation():
            self._conn.close()

    def close_inherited(self) -> None:
        """Close the socket in a forked child, without a message to the server."""
        self._conn.close_inherited()
