"""The verdict on a pool: whether it can serve its callers, as far as that is known without asking the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.pool.core import State
from otel_pgpool.pool.outage import is_unreachable
from otel_pgpool.runtime.text import class_of
from otel_pgpool.stats import PoolHealth
from otel_pgpool.types import HealthStatus

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core
    from otel_pgpool.pool.outage import Outage

Finding = tuple[HealthStatus, str, float]
"""A status, the reason, and since when it holds, as a reading of the clock."""


def health_of(core: Core, now: float) -> PoolHealth:
    """Return the health of a pool at a reading of the clock. The worst finding is its status.

    A pool that is not open yet is ok, because its first checkout opens it: a probe that keeps callers away would keep
    the pool from being opened.
    """
    with core.lock:
        state, closed_at, outage = core.state, core.closed_at, core.outage
        has_connections, used, maxconn, max_waiting = bool(core.slots), core.used, core.maxconn, core.max_waiting
        first, waiting, suspended_at = core.queue.first(), len(core.queue), core.suspended_at
        queued = now if first is None or first.checkout.queued is None else first.checkout.queued
    if state is State.CLOSED:
        return _health(core.name, [(HealthStatus.CLOSED, "the pool is closed", closed_at)], now)
    findings: list[Finding] = []
    if suspended_at is not None:
        reason = f"the pool is suspended, {waiting} waiting until it is resumed"
        findings.append((HealthStatus.SUSPENDED, reason, suspended_at))
    if outage is not None and (is_unreachable(outage) or not has_connections):
        findings.append((HealthStatus.UNREACHABLE, _describe(outage, now), outage.since))
    if first is not None and used >= maxconn:
        reason = f"{used} of {maxconn} connections are in use, {waiting} waiting, the first for {now - queued:.3f} s"
        findings.append((HealthStatus.SATURATED, reason, queued))
    if 0 < max_waiting <= waiting:
        reason = f"the queue is full: {waiting} waiting (max_waiting={max_waiting}), further callers are refused"
        findings.append((HealthStatus.SATURATED, reason, queued))
    return _health(core.name, findings, now)


def _health(name: str, findings: list[Finding], now: float) -> PoolHealth:
    if not findings:
        return PoolHealth(name, HealthStatus.OK)
    status, _reason, since = findings[0]  # in the order of their severity
    return PoolHealth(name, status, tuple(reason for _status, reason, _since in findings), max(0.0, now - since))


def _describe(outage: Outage, now: float) -> str:
    """Return what is known of an outage, without the error's text: a probe may be open to everybody."""
    cause = "" if outage.error is None else f", the last one with {class_of(outage.error)}"
    what = "the server is up, but no connection can be used" if outage.is_refusal else "no connection can be opened"
    return f"{what}: {outage.attempts} failed attempts within {max(0.0, now - outage.since):.3f} s{cause}"
