"""Pools in a forked child: a report by default, a repair on request.

A child has its parent's connections, and a copy of the event loop, which shares with the parent the descriptor that
watches their sockets. By default the pool stays as it is, and the first checkout is reported. With
``OTEL_PGPOOL_FORK_REPAIR=1`` the pool begins anew in a loop of the child, without a byte to the server: the parent's
connections are kept, so that nothing ends them, and their sockets are replaced by dead ones.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.tracked import POOL_ATTR
from otel_pgpool.instrumentation.adapters.inherited import REPAIR, InheritedPools
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Collection


class Inheritance(NamedTuple):
    """A pool that a child has inherited, until its first use there."""

    parent: int
    """Process id."""
    connections: int


class InheritedAsyncpgPools(InheritedPools[Inheritance]):
    """The pools of the parent in a forked child, given by their queues."""

    def __init__(self, *, is_repaired: bool) -> None:
        super().__init__(is_repaired=is_repaired)
        self._processes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._queues: weakref.WeakSet[Any] = weakref.WeakSet()

    def opened(self, queue: Any) -> None:
        """Note that this process has opened a pool."""
        self._processes[queue] = os.getpid()

    def is_inherited(self, queue: Any) -> bool:
        """Return whether a pool is a parent's and has not begun anew, used here or not."""
        return queue in self._queues

    def inherit(self, queue: Any, cons: Collection[Any]) -> None:
        """Note a pool in a forked child, and cut the child off from the connections if the pool is to be repaired."""
        self._queues.add(queue)
        self.add(queue, Inheritance(self._processes.get(queue, os.getppid()), len(cons)))
        self.keep(cons)
        if self._is_repaired:
            self.cut_off(cons, private.descriptor_of)
            for con in cons:
                with ignore_errors:
                    private.forget_address(con)

    def on_first_use(self, queue: Any, inherited: Inheritance) -> tuple[bool, int, str]:
        """Let a pool that is repaired begin anew in the running loop. Describe the first use."""
        parent, count = inherited
        pool = getattr(queue, POOL_ATTR)
        if not self._is_repaired:
            text = (
                f"both processes use the same connections ({count}), and what the child sends or closes disturbs the "
                f"parent's sessions; create the pool after the fork, or set {REPAIR} and use a new event loop"
            )
            return False, parent, text
        if not private.has_other_loop(pool):
            text = (
                f"it left its connections to the parent ({count}), and cannot begin anew in the parent's event loop, "
                "which the child runs; use a new event loop in the child"
            )
            return False, parent, text
        private.begin_anew(pool)
        self._queues.discard(queue)
        self.opened(queue)
        return True, parent, f"it has begun anew there, and left its connections to the parent ({count})"
