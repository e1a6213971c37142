"""Pools in a forked child, which cannot use them: a pool belongs to the event loop of its parent.

By default the pool stays as it is, and its first checkout in the child is reported. With ``OTEL_PGPOOL_FORK_REPAIR=1``
the child is also cut off from the parent's sessions. The pool is not begun anew, unlike those of other libraries:
its loop, its timers and its connections' transports are the parent's, and asyncpg has no way to replace them.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.failures import log_safely

if TYPE_CHECKING:
    from collections.abc import Collection

ADVICE = (
    "asyncpg's pools belong to the event loop in which they were created, so it cannot be repaired here; create a pool "
    "after the fork"
)


class InheritedPools:
    """The pools of the parent in a forked child, known by their queues.

    Args:
        are_cut_off: whether the child is cut off from the parent's sessions.
    """

    def __init__(self, *, are_cut_off: bool) -> None:
        self._are_cut_off = are_cut_off
        self._parent = os.getpid()
        self._queues: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # number of connections
        self.unreported: list[Any] = []
        """Pools whose first use in this process was not reported yet."""
        self._cons: list[Any] = []  # kept, because a connection that is collected ends its session

    def __contains__(self, queue: object) -> bool:
        """Return whether a pool is the parent's."""
        return queue in self._queues

    def inherit(self, queue: Any, cons: Collection[Any]) -> None:
        """Note a pool in a forked child, and its connections."""
        self._queues[queue] = len(cons)
        self._cons += cons
        self.unreported.append(queue)
        if self._are_cut_off:
            for con in cons:
                _cut_off(con)

    def first_use(self, queue: Any, name: str) -> None:
        """Report an inherited pool, once."""
        if queue not in self.unreported:
            return
        self.unreported.remove(queue)
        count = self._queues[queue]
        shares = f"left the {count} connections to the parent" if self._are_cut_off else f"shares {count} connections"
        text = (
            f"created in process {self._parent}, and used in its forked child {os.getpid()}, which {shares}: {ADVICE}"
        )
        log_safely(logging.ERROR, "pool %s: %s", name, text)


def _cut_off(con: Any) -> None:
    """Replace a connection's socket, in this process, by one that is not connected.

    Otherwise its end here would be the end of the parent's session, and the selector of the loop, which both processes
    share, would lose the parent's socket.
    """
    with ignore_errors, socket.socket() as dead:
        os.dup2(dead.fileno(), private.descriptor_of(con), inheritable=False)
