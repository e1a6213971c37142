"""SQLAlchemy's pools on one driver, as their trackers see them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError as QueuePoolTimeout

from otel_pgpool.driver.messages import known
from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.base import PoolReader
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import read_levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import reset_pool
from otel_pgpool.runtime.text import LONGEST_NAME, text_of

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import Levels, PoolTarget
    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
    from otel_pgpool.types import TransactionStatus

NUMBER = re.compile(r"\d+(?:\.\d+)?")


class EnginePools(PoolReader):
    """The pools on one driver, which answers for their connections and errors.

    Args:
        driver: the driver.
        table: the checkouts in progress.
        inherited: the connections of a parent process.
    """

    kind = "sqlalchemy"

    def __init__(self, driver: EngineDriver, table: CheckoutTable, inherited: InheritedConnections) -> None:
        self.driver = driver
        self._table = table
        self._inherited = inherited

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool, or those of its tracker if the pool keeps none."""
        return read_levels(pool)

    def target(self, pool: Any) -> PoolTarget:  # noqa: ARG002 - only its engine or a connection knows
        """Return an unknown target: a pool has none, only its engine and its connections do."""
        return UNKNOWN

    def forget_inherited(self, pool: Any) -> int:
        """Remove the parent's connections in a forked child, closing the sockets of idle ones; return their number.

        The pool is reset in place, because the application may keep a reference to it, and a pool without an engine has
        no owner that could get another.
        """
        self._table.leave_held_to_parent(self._inherited)
        idle = reset_pool(pool)
        self._inherited.abandon(idle, self.driver)
        self._table.leave_to_parent(pool, idle, self._inherited)
        return len(idle)

    # What the driver tells

    def backend_pid(self, conn: Any) -> int:
        """Return the process id of a connection's backend, or 0."""
        return self.driver.backend_pid(conn)

    def ask_backend_pid(self, conn: Any) -> int:
        """Return the process id if `backend_pid` returned 0; 0 if unknown."""
        return self.driver.ask_backend_pid(conn)

    def transaction_status(self, conn: Any) -> TransactionStatus:
        """Return the status of a connection's transaction."""
        return self.driver.transaction_status(conn)

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:
        """Return the host and the port that a connection was made to."""
        return self.driver.server_address(conn)

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether the server is up and refused the connection."""
        return self.driver.is_refusal(error)

    def error_type(self, error: BaseException) -> str:
        """Return an error's SQLSTATE, or else the name of its class."""
        return self.driver.error_type(error)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a driver error's text, or SQLAlchemy's own about an exhausted pool."""
        if isinstance(error, QueuePoolTimeout):
            text = text_of(error)
            return known(text, NUMBER.findall(text[:LONGEST_NAME]))
        return self.driver.error_text(error, target)
