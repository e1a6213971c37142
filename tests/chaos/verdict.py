"""What may be held against our pool after a fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.telemetry.names import SPAN_CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.scene import Scene

GRACE = 0.25
"""Seconds beyond its bound after which something of ours is late."""


def judge(scene: Scene, stall: float) -> Iterator[str]:
    """Check what only otel_pgpool promises, and what the fault requires of it; nothing for other pools.

    Args:
        scene: the scene of the fault, after all work, with the pool still open.
        stall: seconds that the machine stood still, which no pool is responsible for.
    """
    if scene.ours is None:
        return
    fault, app, stats = scene.fault, scene.app, scene.ours.pool.stats()
    yield from (f"the fault did not happen: nobody met {pattern!r}" for pattern in scene.unmet())
    if (stats.used, stats.waiting, stats.size) != (0, 0, stats.idle):
        yield f"at rest: {stats.used} used, {stats.idle} idle of {stats.size}, {stats.waiting} waiting"
    told = {
        "blocks": len(app.asked),
        "checkouts": sum(stats.checkouts.values()) + stats.timeouts + stats.errors,
        "spans begun": scene.ours.spans.started[SPAN_CHECKOUT],
        "spans ended": scene.ours.spans.ended[SPAN_CHECKOUT],
    }
    if len({*told.values()}) > 1:
        yield f"of one number: {told}"
    for what, took, bound in scene.took:
        if took > bound + GRACE + stall:
            yield f"{what}: {took:.3f} s of {bound:g}, where nobody stood still for {stall:.3f} s"
    errors = app.errors()
    if fault.shut_out:
        del errors["PoolTimeout"]
    if errors.total() > fault.errors:
        yield f"{errors.total()} errors of at most {fault.errors}"
