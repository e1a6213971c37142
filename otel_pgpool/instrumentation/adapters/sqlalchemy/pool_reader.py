"""The interface through which trackers read SQLAlchemy's pools and their connections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError as QueuePoolTimeout

from otel_pgpool.driver.messages import known
from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.base import PoolReader
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import UNKNOWN_DRIVER
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import read_levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import reset_pool
from otel_pgpool.instrumentation.adapters.sqlalchemy.monitor import connector
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.text import LONGEST_NAME, text_of

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import Levels, MonitorConnect, PoolTarget
    from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections

DRIVER_METHODS = (
    "ask_backend_pid",
    "backend_pid",
    "error_type",
    "is_argument_error",
    "is_refusal",
    "local_port",
    "server_address",
    "transaction_status",
)
"""Methods that a reader has from its driver."""

NUMBER = re.compile(r"\d+(?:\.\d+)?")


class EnginePoolReader(PoolReader):
    """The reader of all pools on one driver. Its methods for connections and errors are the driver's.

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
        for name in DRIVER_METHODS:
            setattr(self, name, getattr(driver, name))

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool, or those of its tracker if the pool keeps none."""
        return read_levels(pool)

    def target(self, pool: Any) -> PoolTarget:  # noqa: ARG002 - the interface
        """Return an unknown target: a pool has none, only its engine and its connections do."""
        return UNKNOWN

    def target_of(self, conn: Any) -> PoolTarget:
        """Return the target of a connection that a creator of the application has opened."""
        return self.driver.target_of_connection(conn)

    def monitor_connect(self, pool: Any) -> MonitorConnect | None:
        """Return the function that opens monitoring connections; None if the driver is not known."""
        return None if self.driver is UNKNOWN_DRIVER else connector(pool, self.driver)

    def forget_inherited(self, pool: Any) -> int:
        """Remove the parent's connections in a forked child, closing the sockets of idle ones; return their number.

        The pool is reset in place, because the application may keep a reference to it, and a pool without an engine has
        no owner that could get another.
        """
        self._table.leave_held_to_parent(self._inherited)
        idle = reset_pool(pool)
        self._inherited.close_sockets(idle, self.driver)
        self._table.leave_to_parent(pool, idle, self._inherited)
        return len(idle) + self._inherited.count(getattr(pool, TRACKER_ATTR).name)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a driver error's text, or SQLAlchemy's own about an exhausted pool."""
        if isinstance(error, QueuePoolTimeout):
            text = text_of(error)
            return known(text, NUMBER.findall(text[:LONGEST_NAME]))
        return self.driver.error_text(error, target)
