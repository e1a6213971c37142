"""The figures of a pool, read from its core without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.pool.core import State
from otel_pgpool.pool.utilization import status_of
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.stats import PoolStats
from otel_pgpool.types import PoolStatus

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core


def take_snapshot(core: Core) -> PoolStats:
    """Return the levels and totals of a pool."""
    used = max(0, core.used)
    utilization = used / core.maxconn
    return PoolStats(
        name=core.name,
        status=_status(core, utilization).value,
        minconn=core.minconn,
        maxconn=core.maxconn,
        size=len(core.members),
        used=used,
        idle=len(core.idle),
        connecting=len(core.opening),
        waiting=len(core.queue),
        utilization=utilization,
        oldest_hold=core.oldest_hold(monotonic()),
        checkouts=core.checkouts(),
        queued=core.queued,
        timeouts=core.timeouts,
        errors=core.errors,
        retries=core.retries,
        long_holds=core.long_holds,
        created=core.created,
        discarded={str(reason): count for reason, count in core.discarded.copy().items()},
        wait_seconds=core.wait_seconds,
        hold_seconds=core.total_hold(),
    )


def _status(core: Core, utilization: float) -> PoolStatus:
    if core.state is State.NEW:
        return PoolStatus.NEW
    if core.state is State.CLOSED:
        return PoolStatus.CLOSED
    is_reached = core.outage is None or core.outage.is_refusal
    return status_of(utilization) if is_reached else PoolStatus.UNREACHABLE
