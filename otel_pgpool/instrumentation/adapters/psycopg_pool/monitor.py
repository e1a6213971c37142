"""The monitoring connections of psycopg_pool's pools: psycopg's, and synchronous for pools of coroutines too."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.monitoring import TIME_LIMIT
from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.adapters.monitor import OwnLoop
from otel_pgpool.instrumentation.adapters.psycopg.monitor import open_monitor

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.adapters.psycopg.monitor import PsycopgMonitor
    from otel_pgpool.pool.monitor_source import Server


def connector(pool: Any) -> MonitorConnect:
    """Return the function that opens monitoring connections of a pool, to which it refers weakly."""
    ref = weakref.ref(pool)

    def connect(chosen: Server | None) -> PsycopgMonitor:
        conninfo, kwargs = _arguments_of(ref())
        return open_monitor(conninfo, kwargs, chosen)

    return connect


def _arguments_of(pool: Any) -> tuple[str, dict[str, Any]]:
    """Return the arguments of a pool's connects, which functions of the program may provide."""
    if pool is None:
        raise PoolError("the pool was collected")
    return _resolved(pool.conninfo) or "", _resolved(pool.kwargs) or {}


def _resolved(given: Any) -> Any:
    """Return a value, or the result of a function, which may be a coroutine function."""
    value = given() if callable(given) else given
    if not inspect.iscoroutine(value):
        return value
    loop = OwnLoop()
    try:
        return loop.run(value, TIME_LIMIT)
    finally:
        loop.close()
