"""Pools in a forked child: a report by default, a repair on request.

A child has its parent's connections and none of its threads. By default the pool stays as it is, and the first checkout
is reported. With ``OTEL_PGPOOL_FORK_REPAIR=1`` the pool begins anew in the child, without a byte to the server: the
parent's connections are kept, so that nothing ends them, and their sockets are replaced by dead ones, so that neither
a commit nor a close of the child reaches the server.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.environment import FORK_REPAIR
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.failures import log_safely

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPAIR = f"{FORK_REPAIR.name}=1"


class Inheritance(NamedTuple):
    """A pool that a child has inherited, until its first use there."""

    parent: int
    """Process id."""
    connections: int
    missing: Sequence[str]
    """Private parts of the pool without which it cannot be repaired."""

    def describe(self, *, is_repaired: bool) -> str:
        """Return what the first use in the child reports."""
        where = f"opened in process {self.parent}, and used in its forked child {os.getpid()}"
        if is_repaired:
            return f"{where}: it has begun anew there, and left the {self.connections} connections to the parent"
        both = f"both processes use the same {self.connections} connections, and the child cannot open others"
        advice = f"open the pool after the fork, or set {REPAIR}"
        if self.missing:
            parts = ", ".join(self.missing)
            advice = f"open the pool after the fork; {REPAIR} has no effect, because this psycopg_pool has no {parts}"
        return f"{where}: {both}; {advice}"


class InheritedPools:
    """The pools of the parent in a forked child.

    Args:
        is_repaired: whether pools are repaired.
    """

    def __init__(self, *, is_repaired: bool) -> None:
        self._is_repaired = is_repaired
        self._unused: weakref.WeakKeyDictionary[Any, Inheritance] = weakref.WeakKeyDictionary()
        self.conns: dict[int, Any] = {}  # never replaced
        """Connections of the parent that a repaired pool has left, by id. They are kept alive."""

    def __contains__(self, pool: object) -> bool:
        """Return whether a pool was inherited and not used yet."""
        return pool in self._unused

    def inherit(self, pool: Any, parent: int, conns: Mapping[int, Any]) -> None:
        """Note a pool in a forked child, and detach it from the parent's connections if it is to be repaired.

        Args:
            pool: the pool.
            parent: process id of the parent.
            conns: the parent's connections, by id.
        """
        if pool in self._unused:  # by the parent, which has inherited the pool itself
            return
        missing = private.missing_parts(pool) if self._is_repaired else ()
        self._unused[pool] = Inheritance(parent, len(conns), missing)
        if self._is_repaired and not missing:
            self.conns.update(conns)
            private.begin_anew(pool)
            for conn in conns.values():
                _cut_off(conn)

    def first_use(self, pool: Any, name: str) -> None:
        """Report an inherited pool, and start the work of a repaired one: its threads, or the tasks of this loop."""
        inheritance = self._unused.pop(pool, None)
        if inheritance is None:
            return
        is_repaired = self._is_repaired and not inheritance.missing
        if is_repaired:
            try:
                private.start_work(pool)
            except BaseException:  # for example there is no loop; the next use starts the work
                self._unused[pool] = inheritance
                raise
        level = logging.INFO if is_repaired else logging.ERROR
        log_safely(level, "pool %s: %s", name, inheritance.describe(is_repaired=is_repaired))


def _cut_off(conn: Any) -> None:
    """Replace a connection's socket, in this process, by one that is not connected, and let no pool have it back."""
    with ignore_errors:
        private.detach(conn)
    with ignore_errors, socket.socket() as dead:
        os.dup2(dead.fileno(), conn.pgconn.socket, inheritable=False)
