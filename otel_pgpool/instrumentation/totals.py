"""The totals of an instrumented pool, its statistics, and the totals of the pools that it has replaced."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.open_checkouts import OpenCheckouts
from otel_pgpool.pool.utilization import status_of
from otel_pgpool.stats import PoolStats
from otel_pgpool.types import CheckoutPath, PoolStatus

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import Levels

COUNTERS = (
    "idle_checkouts",
    "queued_checkouts",
    "new_checkouts",
    "queued",
    "timeouts",
    "errors",
    "retries",
    "long_holds",
    "created",
    "wait_seconds",
    "hold_seconds",
)
"""The counters that are summed up; each is named as its field of `PoolStats`, or after its path."""


class Totals(OpenCheckouts):
    """The totals of one pool. A base class, because an object of its own would cost each checkout some lookups.

    Counters are changed by plain ``+=``, within which CPython does not switch threads: it does so at calls and backward
    jumps only.
    """

    __slots__ = ("discards", "is_replaced", "predecessors", *COUNTERS)

    idle_checkouts: int
    queued_checkouts: int
    new_checkouts: int
    queued: int
    timeouts: int
    errors: int
    retries: int
    long_holds: int
    created: int
    wait_seconds: float
    hold_seconds: float

    def __init__(self) -> None:
        self.is_replaced = False  # by a pool whose totals include these
        self.reset()

    def reset(self) -> None:
        """Reset all totals, and drop all checkouts and connections."""
        super().reset()
        for counter in COUNTERS:
            setattr(self, counter, 0)
        self.discards: dict[str, int] = defaultdict(int)  # by reason; a Counter calls Python code for each new key
        self.predecessors: list[Totals] = []  # of pools that this one replaces, which may still be in use

    @property
    def handed_out(self) -> int:
        """Number of checkouts that received a connection."""
        return self.idle_checkouts + self.queued_checkouts + self.new_checkouts

    def continue_from(self, predecessor: Totals) -> None:
        """Take over the totals of a predecessor and of its predecessors, whose pools may still be in use."""
        self.predecessors, predecessor.predecessors = [*predecessor.predecessors, predecessor], []
        self.discards = predecessor.discards
        predecessor.is_replaced = True

    def _merge_finished(self) -> None:
        """Add the totals of predecessors that cannot change any more."""
        for predecessor in self.predecessors.copy():
            if predecessor.pool is None and not (predecessor.held or predecessor.light):
                with suppress(ValueError):  # another thread has removed it
                    self.predecessors.remove(predecessor)
                    for counter in COUNTERS:
                        setattr(self, counter, getattr(self, counter) + getattr(predecessor, counter))

    def statistics(self, name: str, levels: Levels, *, connecting: int, is_unreachable: bool) -> PoolStats:
        """Return the levels and the totals, which are 0 once another pool's totals include them."""
        self._merge_finished()
        parts = [] if self.is_replaced else [self, *self.predecessors]

        def total(counter: str) -> Any:
            return sum(getattr(part, counter) for part in parts)

        utilization = levels.used / levels.maxconn if levels.maxconn else 0.0
        status: str = PoolStatus.UNREACHABLE.value if is_unreachable else status_of(utilization)
        return PoolStats(
            name=name,
            status=PoolStatus.CLOSED.value if levels.closed else status,
            minconn=levels.minconn,
            maxconn=levels.maxconn,
            size=levels.used + levels.idle,
            used=levels.used,
            idle=levels.idle,
            connecting=connecting,
            waiting=sum(len(part.waiting) for part in parts),
            utilization=utilization,
            oldest_hold=self.oldest_hold(),
            checkouts={path.value: total(f"{path}_checkouts") for path in CheckoutPath},
            discarded={} if self.is_replaced else dict(self.discards),
            **{counter: total(counter) for counter in COUNTERS if not counter.endswith("_checkouts")},
            maxidle=levels.maxidle,
        )
