"""Pools in a forked child, which cannot use them: a pool belongs to the event loop of its parent.

By default the pool stays as it is, and its first checkout in the child is reported. With ``OTEL_PGPOOL_FORK_REPAIR=1``
the child is also cut off from the parent's sessions. The pool is not begun anew, unlike those of other libraries:
its loop, its timers and its connections' transports are the parent's, and asyncpg has no way to replace them.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.inherited import InheritedPools

if TYPE_CHECKING:
    from collections.abc import Collection

ADVICE = (
    "asyncpg's pools belong to the event loop in which they were created, so it cannot be repaired here; create a pool "
    "after the fork"
)


class InheritedAsyncpgPools(InheritedPools[int]):
    """The pools of the parent, known by their queues, with the number of their connections.

    Args:
        are_cut_off: whether the child is cut off from the parent's sessions.
    """

    def __init__(self, *, are_cut_off: bool) -> None:
        super().__init__()
        self._are_cut_off = are_cut_off
        self._parent = os.getpid()
        self._queues: weakref.WeakSet[Any] = weakref.WeakSet()

    def is_inherited(self, queue: Any) -> bool:
        """Return whether a pool is the parent's, used here or not."""
        return queue in self._queues

    def inherit(self, queue: Any, cons: Collection[Any]) -> None:
        """Note a pool in a forked child, and its connections."""
        self._queues.add(queue)
        self.add(queue, len(cons))
        self.keep(cons)
        if self._are_cut_off:
            self.cut_off(cons, private.descriptor_of)

    def used(self, queue: Any, inherited: int) -> tuple[bool, int, str]:  # noqa: ARG002 - the interface
        """Describe the first use of a pool."""
        shares = (
            f"left its connections to the parent ({inherited})"
            if self._are_cut_off
            else f"shares its connections ({inherited})"
        )
        return False, self._parent, f"the child {shares}: {ADVICE}"
