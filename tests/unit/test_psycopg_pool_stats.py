"""The figures by psycopg_pool's names, while a checkout moves from one figure to another."""

from __future__ import annotations

from otel_pgpool.pool.psycopg_pool_stats import PsycopgPoolStats
from tests.support.fakes import Desk


def test_no_total_goes_down() -> None:
    """A waiter that has left the queue, and does not count as failed yet, was counted before."""
    desk = Desk(0, 1)
    figures = PsycopgPoolStats(desk.core)
    waiter = desk.join()
    assert figures.pop()["requests_num"] == 1
    desk.core.leave(waiter.checkout, waiter)
    assert figures.get()["requests_num"] == figures.pop()["requests_num"] == 0
    desk.core.count_failure(1.0, timed_out=True)
    stats = figures.pop()
    assert [stats[name] for name in ("requests_num", "requests_errors", "requests_wait_ms")] == [0, 1, 1000]
