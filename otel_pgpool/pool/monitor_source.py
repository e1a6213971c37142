"""The interfaces between a monitor and the pools whose long holds it watches; they assume no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.pool.checkout import Checkout, Slot

Server = tuple[str, "int | None"]
"""Host, or folder of a Unix socket, and port."""


class MonitorConnection(Protocol):
    """A monitoring connection of some driver."""

    pid: int
    """Process id of the session as the client knows it; 0 if the driver does not tell."""

    @property
    def local_port(self) -> int:
        """Port of this end of the connection; 0 if there is none, or it is unknown."""

    def query(self, statement: str) -> str:
        """Return the one value of a statement, run in a read-only transaction with a time limit.

        Raises:
            Exception: the server did not answer in time, or refused the statement.
        """

    def close(self) -> None:
        """Close the connection. Must not raise."""

    def close_inherited(self) -> None:
        """Close the socket in a forked child, without a message to the server."""


class MonitorSource(Protocol):
    """The way to monitoring connections of one pool."""

    @property
    def login(self) -> str:
        """User that the pool logs in as; empty if unknown."""

    @property
    def database(self) -> str:
        """Name of the database that the pool connects to; empty if unknown."""

    def server_of(self, slot: Slot) -> Server:
        """Return the server of one of the pool's connections."""

    def open(self, server: Server) -> MonitorConnection:
        """Open a monitoring connection within a few seconds.

        Raises:
            Exception: the connection cannot be opened.
        """

    def error_text(self, error: BaseException) -> str:
        """Return the text of an error, without secrets or SQL."""


class MonitoredPool(NamedTuple):
    """A pool as its monitor sees it."""

    name: str
    source: MonitorSource
    report: Callable[[Checkout, DatabaseState, Sequence[Checkout]], None]
    """Called with a hold, its state, and the checkouts of this process that block it; never raises."""


class PoolHolds(NamedTuple):
    """The checkouts of a pool that hold a connection, and the function that returns a connection's server."""

    server_of: Callable[[Slot], Server]
    holds: Sequence[Checkout]
