"""The figures of a pool, read from its core without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.pool.core import State
from otel_pgpool.pool.figures import COUNTERS, make_stats
from otel_pgpool.pool.outage import is_unreachable
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import PoolStatus

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core
    from otel_pgpool.stats import PoolStats

STATUSES = {State.NEW: PoolStatus.NEW, State.CLOSED: PoolStatus.CLOSED}


def take_snapshot(core: Core) -> PoolStats:
    """Return the levels and totals of a pool."""
    return make_stats(
        name=core.name,
        status=STATUSES.get(core.state) or (PoolStatus.UNREACHABLE if is_unreachable(core.outage) else None),
        minconn=core.minconn,
        maxconn=core.maxconn,
        size=len(core.members),
        used=max(0, core.used),
        idle=len(core.idle),
        connecting=len(core.opening),
        waiting=len(core.queue),
        oldest_hold=core.oldest_hold(monotonic()),
        checkouts=core.checkouts(),
        discarded={str(reason): count for reason, count in core.discarded.copy().items()},
        hold_seconds=core.total_hold(),
        **{counter: getattr(core, counter) for counter in COUNTERS},
    )
