"""The monitors of this process."""

from __future__ import annotations

import threading
from itertools import groupby
from typing import TYPE_CHECKING

from otel_pgpool.pool import registry
from otel_pgpool.pool.monitor import Monitor
from otel_pgpool.runtime import fork
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import MonitoredPool, Server

STOP_WITHIN = 0.1
"""Seconds that `stop_unused` waits; a monitor that waits for its server ends by itself."""

Key = tuple["Server", str, str]
"""Server, database and user. A database has its own tables, and a user sees only its own sessions."""

_monitors: dict[Key, Monitor] = {}
_lock = threading.Lock()  # guards the dictionary; nothing under it blocks


def watch(pool: MonitoredPool, holds: Iterable[Checkout]) -> None:
    """Watch long holds of a pool until their end, unless the pool is closed."""
    for server, group in groupby(holds, lambda hold: pool.source.server_of(hold.slot)):
        key, those = (server, pool.source.database, pool.source.login), list(group)
        is_watched = False
        while not is_watched and registry.is_open(pool.name):  # again, if another thread has just stopped the monitor
            is_watched = _monitor_of(key).watch(pool, those)


def _monitor_of(key: Key) -> Monitor:
    with _lock:
        return _monitors.get(key) or _monitors.setdefault(key, Monitor(key[0]))


def stay_away(pool_name: str) -> None:
    """Leave the last free slot of a server to a pool, whose connect was refused because the server is full."""
    for monitor in list(_monitors.values()):
        if pool_name in monitor.served:
            monitor.stay_away()


def stop_unused(seconds: float = STOP_WITHIN) -> None:
    """End the monitors none of whose pools is open any more; wait up to ``seconds`` for all of them."""
    with _lock:
        unused = {key: each for key, each in _monitors.items() if not any(map(registry.is_open, each.served))}
        for key in unused:
            del _monitors[key]
    for monitor in unused.values():
        monitor.stop()
    deadline = monotonic() + seconds
    for monitor in unused.values():
        monitor.join(deadline - monotonic())


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.Lock()
    inherited = list(_monitors.values())
    _monitors.clear()
    for monitor in inherited:
        monitor.abandon()


fork.register(_after_fork)
