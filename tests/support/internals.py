"""The private parts of a pool that tests look at or change: the only place that knows how to reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool
    from otel_pgpool.config import PoolConfig
    from otel_pgpool.pool.connect import Connectors
    from otel_pgpool.pool.core import Core
    from otel_pgpool.runtime.background import ParkingThread


def core_of(pool: ConnectionPool) -> Core:
    """Return the mechanics of a pool."""
    return pool._parts.core


def config_of(pool: ConnectionPool) -> PoolConfig:
    """Return the validated options of a pool."""
    return pool._parts.config


def connectors_of(pool: ConnectionPool) -> Connectors:
    """Return the threads of a pool that connect."""
    return pool._parts.connectors


def maintenance_of(pool: ConnectionPool) -> ParkingThread:
    """Return the maintenance thread of a pool."""
    return pool._parts.thread


def thread_of(pool: ConnectionPool) -> Thread:
    """Return the thread of the pool's maintenance, once it runs."""
    thread = maintenance_of(pool)._thread
    assert thread is not None
    return thread


def start_pass(pool: ConnectionPool) -> None:
    """Let the maintenance make a pass now."""
    pool._parts.thread.wakeup.set()


def use_reset(pool: ConnectionPool, reset: Callable[[connection], object] | None) -> None:
    """Change a pool's option ``reset``."""
    pool._parts.reset = pool._parts.releaser._reset = reset
