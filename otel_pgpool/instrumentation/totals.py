"""The totals of an instrumented pool, its statistics, and the totals of the pools that it has replaced."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.instrumentation.open_checkouts import OpenCheckouts
from otel_pgpool.pool import figures
from otel_pgpool.types import CheckoutPath, PoolStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import Levels
    from otel_pgpool.stats import PoolStats

OWN_COUNTERS = ("idle_checkouts", "queued_checkouts", "new_checkouts", "hold_seconds")
COUNTERS = (*figures.COUNTERS, *OWN_COUNTERS)
"""The counters that are summed up; each is named as its field of `PoolStats`, or after its path."""


class Past(NamedTuple):
    """The totals of the pools that a pool has replaced.

    It is only replaced as a whole, so that each reader counts each of these pools once.
    """

    counts: Mapping[str, Any]
    """The sums, by counter, of the pools that are finished."""
    predecessors: tuple[Totals, ...]
    """The totals of the other pools, which may still be in use."""


NO_PAST = Past(dict.fromkeys(COUNTERS, 0), ())


class Totals(OpenCheckouts):
    """The totals of one pool.

    Counters are changed by plain ``+=``, within which CPython does not switch threads: it does so at calls and backward
    jumps only.
    """

    __slots__ = ("discards", "is_replaced", "past", *OWN_COUNTERS)

    idle_checkouts: int
    queued_checkouts: int
    new_checkouts: int
    hold_seconds: float

    def __init__(self) -> None:
        self.is_replaced = False  # by a pool whose totals include these
        self.reset()

    def reset(self) -> None:
        """Reset all totals, and drop all checkouts and connections."""
        super().reset()
        for counter in OWN_COUNTERS:
            setattr(self, counter, 0)
        self.discards: dict[str, int] = defaultdict(int)  # by reason; a Counter calls Python code for each new key
        self.past = NO_PAST

    @property
    def handed_out(self) -> int:
        """Number of checkouts that received a connection."""
        return self.idle_checkouts + self.queued_checkouts + self.new_checkouts

    def continue_from(self, predecessor: Totals) -> None:
        """Take over the totals of a predecessor and of its predecessors, whose pools may still be in use."""
        predecessor.is_replaced = True  # first, so that the predecessor never reports a part of its totals
        counts, predecessors = predecessor.past
        self.past = Past(counts, (*predecessors, predecessor))
        predecessor.past = NO_PAST
        self.discards = predecessor.discards

    @property
    def is_finished(self) -> bool:
        """Whether no total can change any more: the pool was collected, and every connection was released."""
        return self.pool is None and not (self.held or self.light)

    def _merge_finished(self) -> Past:
        """Add up the totals of finished predecessors, and return the past.

        Several threads may do so at the same time: each of their results is right.
        """
        past = self.past
        finished = {each for each in past.predecessors if each.is_finished}
        if finished:
            counts = {
                counter: sum((getattr(each, counter) for each in finished), before)
                for counter, before in past.counts.items()
            }
            past = self.past = Past(counts, tuple(each for each in past.predecessors if each not in finished))
        return past

    def statistics(self, name: str, levels: Levels, *, connecting: int, is_unreachable: bool) -> PoolStats:
        """Return the levels and the totals, which are 0 once another pool's totals include them."""
        past = self._merge_finished()
        is_replaced = self.is_replaced  # read after the past, which `continue_from` moves
        past, parts = (NO_PAST, ()) if is_replaced else (past, (self, *past.predecessors))

        def total(counter: str) -> Any:
            return sum((getattr(part, counter) for part in parts), past.counts[counter])

        return figures.make_stats(
            name=name,
            status=PoolStatus.CLOSED if levels.closed else PoolStatus.UNREACHABLE if is_unreachable else None,
            minconn=levels.minconn,
            maxconn=levels.maxconn,
            size=levels.used + levels.idle,
            used=levels.used,
            idle=levels.idle,
            connecting=connecting,
            waiting=sum(len(part.waiting) for part in parts),
            oldest_hold=self.oldest_hold(),
            checkouts={path.value: total(f"{path}_checkouts") for path in CheckoutPath},
            discarded={} if is_replaced else dict(self.discards),
            **{counter: total(counter) for counter in COUNTERS if not counter.endswith("_checkouts")},
            maxidle=levels.maxidle,
        )
