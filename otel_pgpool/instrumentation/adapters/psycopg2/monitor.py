"""The monitoring connections of pools of psycopg2's connections: those of a `ConnectionPool` with such arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.connect_target import ConnectTarget
from otel_pgpool.driver.monitor_connection import MonitorSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.driver.monitor_connection import MonitorConnection
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.pool.monitor_source import Server


def connector(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MonitorConnect:
    """Return the function that opens monitoring connections with the arguments of ``psycopg2.connect``."""

    def connect(chosen: Server | None) -> MonitorConnection:
        target = ConnectTarget(args, kwargs)
        return MonitorSource(target).open(chosen or (target.address, target.port))

    return connect
