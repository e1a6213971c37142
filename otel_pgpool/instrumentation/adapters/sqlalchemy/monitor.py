"""The monitoring connections of SQLAlchemy's pools: opened as the pool's own are, but unknown to the pool."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.monitoring import TIME_LIMIT
from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
from otel_pgpool.instrumentation.adapters.sqlalchemy import private
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.pool.monitor_source import MonitorConnection, Server

CONNECT_LIMIT = 5 * TIME_LIMIT
"""Seconds for the connect of an asynchronous engine, whose arguments may name several hosts."""


def connector(pool: Any, driver: EngineDriver) -> MonitorConnect:
    """Return the function that opens monitoring connections of a pool, to which it refers weakly."""
    ref = weakref.ref(pool)

    def connect(chosen: Server | None) -> MonitorConnection:
        pool = ref()
        if pool is None:
            raise PoolError("the pool was collected")
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
        PoolError: the creator of the program has returned another object, or a connection of the pool.
        Exception: the connection cannot be opened.
    """
    with driver.limited_connect() as changes:

        def changed(given: Mapping[str, Any]) -> dict[str, Any]:
            return {**driver.monitor_arguments(given, chosen), **changes}

        conn = private.driver_connection(private.open_connection(pool, changed))
    own, tracker = driver.own_connection(conn), getattr(pool, TRACKER_ATTR, None)
    if own is None or (tracker is not None and id(conn) in tracker.slots):
        raise PoolError("the creator of the pool's connections does not return a new one")
    return own
