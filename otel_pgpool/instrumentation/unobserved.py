"""The mark of pools that a session does not observe, so that their wrapped methods cost little."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR


class Unobserved:
    """The mark of one session, which a pool has in the place of a tracker.

    A wrapper that finds the mark calls the original method at once. The mark has those attributes of a tracker that
    wrappers read first, so that the hot path of a tracked pool needs no further test.
    """

    __slots__ = ("_marked",)

    fast_path_owner: ClassVar[object] = object()
    watch: ClassVar[None] = None
    slots: ClassVar[dict[int, Any]] = {}
    held: ClassVar[dict[Any, None]] = {}
    light: ClassVar[dict[int, Any]] = {}
    discards: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self._marked: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # pools, by id

    def mark(self, pool: Any) -> None:
        """Mark a pool, if the pool allows it."""
        with ignore_errors:
            self._marked[id(pool)] = pool
            setattr(pool, TRACKER_ATTR, self)

    def unmark(self, pool: Any) -> None:
        """Remove the mark of a pool, if there is one."""
        self._marked.pop(id(pool), None)
        with ignore_errors:
            if getattr(pool, TRACKER_ATTR, None) is self:
                delattr(pool, TRACKER_ATTR)

    def unmark_all(self) -> None:
        """Remove every mark."""
        for pool in [*self._marked.values()]:
            self.unmark(pool)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the mark as None, as a tracker."""
        return type(None), ()
