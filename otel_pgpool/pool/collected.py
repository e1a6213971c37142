"""Connections that their holders dropped without a release."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import weakref

    from psycopg2.extensions import connection

    from otel_pgpool.runtime.wakeup import Wakeup


class CollectedRefs:
    """Weak references to connections that their holders dropped, for the maintenance thread to reclaim."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._refs: deque[weakref.ref[connection]] = deque()

    def append(self, ref: weakref.ref[connection]) -> None:
        """Add a reference. A finalizer calls this, so it does nothing else."""
        self._refs.append(ref)
        self._wakeup.set()

    def __bool__(self) -> bool:
        return bool(self._refs)

    def drain(self) -> list[weakref.ref[connection]]:
        """Remove and return all references."""
        refs = []
        while self._refs:
            refs.append(self._refs.popleft())
        return refs
