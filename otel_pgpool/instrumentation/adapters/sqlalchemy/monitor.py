"""The monitoring connections of SQLAlchemy's pools: opened as the pool's own are, but unknown to the pool."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.monitoring import TIME_LIMIT
from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
from otel_pgpool.instrumentation.adapters.sqlalchemy import private
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.pool.monitor import MonitorConnection, Server

CONNECT_LIMIT = 5 * TIME_LIMIT
"""Seconds for the connect of an asynchronous engine, whose arguments may name several hosts."""


class SharedConnectionError(Exception):
    """A creator of the program has returned a connection that the pool has already."""


def connector(pool: Any, driver: EngineDriver) -> MonitorConnect:
    """Return the function that opens monitoring connections of a pool, to which it refers weakly."""
    ref = weakref.ref(pool)

    def connect(chosen: Server | None) -> MonitorConnection:
        pool = ref()
        if pool is None:
            raise ReferenceError("the pool was collected")
        make = partial(_connection_of, pool, driver, chosen)
        if not getattr(private.dialect_of(pool), "is_async", False):
            return driver.monitor(make(), None)
        loop = OwnLoop()
        try:
            return driver.monitor(loop.run(private.greenlet_spawn(make), CONNECT_LIMIT), loop)
        except BaseException:
            loop.close()
            raise

    return connect


def _connection_of(pool: Any, driver: EngineDriver, chosen: Server | None) -> Any:
    """Return a new connection of the driver.

    Raises:
        SharedConnectionError: the creator has returned a connection of the pool.
        TypeError: it has returned something else.
        Exception: the connection cannot be opened.
    """
    conn = private.driver_connection(private.open_connection(pool, partial(driver.monitor_arguments, chosen=chosen)))
    own = driver.own_connection(conn)
    if own is None:
        raise TypeError(f"the creator has returned an object of {type(conn).__name__}")
    tracker = getattr(pool, TRACKER_ATTR, None)
    if tracker is not None and id(conn) in tracker.slots:
        raise SharedConnectionError
    return own
