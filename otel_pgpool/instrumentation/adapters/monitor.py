"""The parts of monitoring connections that do not depend on the driver: time limits, forks, an event loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from otel_pgpool.driver.monitoring import NO_ANSWER, TIME_LIMIT
from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.deadline import SocketDeadline
from otel_pgpool.runtime.sockets import local_port, replace_socket

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

Result = TypeVar("Result")

END_TASKS_WITHIN = 0.5
"""Seconds in which the tasks of a loop that is closed can end."""

_inherited: list[BoundedConnection] = []
"""The parent's connections in a forked child, kept alive because a driver may close a collected connection."""


class BoundedConnection(ABC):
    """A base class of monitoring connections. A shutdown of the socket ends a call that takes too long."""

    pid: int = 0
    """Process id of the session as the client knows it; 0 if the driver does not tell."""

    @property
    def local_port(self) -> int:
        """Port of this end of the connection; 0 for a Unix socket."""
        return local_port(self.fileno())

    def query(self, statement: str) -> str:
        """Return the one value of a statement.

        Raises:
            PoolError: the server did not answer in time.
            Exception: the server refused the statement, or the connection is lost.
        """
        deadline = SocketDeadline(self, TIME_LIMIT)
        with deadline:
            try:
                return self.run(statement)
            except Exception:
                if deadline.expired:
                    raise PoolError(NO_ANSWER) from None
                raise

    def close(self) -> None:
        """Close the connection."""
        with ignore_errors, SocketDeadline(self, TIME_LIMIT):
            self.end()

    def close_inherited(self) -> None:
        """Cut a forked child off from the connection, without a message to the server."""
        _inherited.append(self)
        with ignore_errors:  # closed already
            replace_socket(self.fileno())

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor of the socket.

        Raises:
            Exception: the connection is closed.
        """

    @abstractmethod
    def run(self, statement: str) -> str:
        """Run a statement in a read-only transaction with the server's own time limit, and return its one value."""

    @abstractmethod
    def end(self) -> None:
        """End the session."""


class OwnLoop:
    """An event loop that runs only during the calls of one monitoring connection, in the thread that makes them."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()

    def run(self, coroutine: Coroutine[Any, Any, Result], seconds: float | None = None) -> Result:
        """Run a coroutine to its end, for at most ``seconds``."""
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, seconds))

    def close(self) -> None:
        """End the tasks that a driver has left, and close the loop."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=END_TASKS_WITHIN))
            self._loop.run_until_complete(asyncio.sleep(0))  # the loop closes the sockets of aborted connections
        finally:
            self._loop.close()
