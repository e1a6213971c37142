"""The monitors of this process, one for each server and login."""

from __future__ import annotations

import threading
from itertools import groupby
from typing import TYPE_CHECKING

from otel_pgpool.pool import registry
from otel_pgpool.pool.monitor import Monitor
from otel_pgpool.runtime import fork

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import MonitoredPool, Server

STOP_WITHIN = 0.1
"""Seconds that `stop` waits for each monitor; one that waits for its server ends by itself."""

_monitors: dict[tuple[Server, str], Monitor] = {}  # a login sees its own sessions only, so each has a monitor
_lock = threading.Lock()  # guards the dictionary; nothing under it blocks


def watch(pool: MonitoredPool, holds: Iterable[Checkout]) -> None:
    """Watch long holds of a pool until their end, unless every pool of this process is closed."""
    for server, group in groupby(holds, lambda hold: pool.source.server_of(hold.slot)):
        key, those = (server, pool.source.login), list(group)
        while registry.any_open() and not _monitor_of(key).watch(pool, those):
            pass  # another thread has just stopped this monitor and removed it


def _monitor_of(key: tuple[Server, str]) -> Monitor:
    with _lock:
        return _monitors.get(key) or _monitors.setdefault(key, Monitor(key[0]))


def stop(seconds: float = STOP_WITHIN) -> None:
    """End all monitors, because no pool is open any more; wait up to ``seconds`` for each."""
    with _lock:
        ending = list(_monitors.values())
        _monitors.clear()
    for monitor in ending:
        monitor.stop(seconds)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.Lock()
    inherited = list(_monitors.values())
    _monitors.clear()
    for monitor in inherited:
        monitor.abandon()


fork.register(_after_fork)
