"""The monitors of this process, one for each server."""

from __future__ import annotations

import threading
from itertools import groupby
from typing import TYPE_CHECKING

from otel_pgpool.pool import registry
from otel_pgpool.pool.monitor import Monitor, MonitoredPool, Server, traceparent_of
from otel_pgpool.runtime import fork

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout

STOP_WITHIN = 0.1
"""Seconds that `stop` waits for each monitor; one that waits for its server ends by itself."""

LOCAL = ("localhost", "127.0.0.1", "::1", "")

_monitors: dict[Server, Monitor] = {}
_lock = threading.Lock()  # guards the dictionary; nothing under it blocks


def watch(pool: MonitoredPool, holds: Iterable[Checkout]) -> None:
    """Watch long holds of a pool until their end."""
    for server, those in groupby(holds, lambda hold: pool.source.server_of(hold.slot.ref())):
        with _lock:
            monitor = _monitors.get(server) or _monitors.setdefault(server, Monitor(server, find_holds))
        monitor.watch(pool, those)


def stop(seconds: float = STOP_WITHIN) -> None:
    """End all monitors, because no pool is open any more; wait up to ``seconds`` for each."""
    with _lock:
        ending = list(_monitors.values())
        _monitors.clear()
    for monitor in ending:
        monitor.stop(seconds)


def find_holds(server: Server) -> tuple[dict[int, Checkout], dict[str, Checkout]]:
    """Return the holds of all pools of this process: those on a server by process id, and all by traceparent."""
    by_pid, by_name = {}, {}
    for address, port, holds in registry.all_holds():
        is_here = _comparable((address, port)) == _comparable(server)
        for checkout in holds:
            name = traceparent_of(checkout)
            if name:
                by_name[name] = checkout
            if is_here:
                by_pid[checkout.slot.pid] = checkout
    return by_pid, by_name


def _comparable(server: Server) -> Server:
    """Return a server with one name for this machine, which pools may reach by socket and by network."""
    host, port = server
    return ("localhost" if host in LOCAL or host.startswith("/") else host), port


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.Lock()
    inherited = list(_monitors.values())
    _monitors.clear()
    for monitor in inherited:
        monitor.abandon()


fork.register(_after_fork)
