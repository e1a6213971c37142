"""What the tests of psycopg_pool's instrumentation share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg_pool import ConnectionPool, NullConnectionPool

from tests.support.instrumentation import tracker_of
from tests.support.telemetry import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

Pool = Any

RELEASE = tuple(map(int, psycopg_pool.__version__.split(".")[:3]))

BLOCKING = (ConnectionPool, NullConnectionPool)


@contextmanager
def opened(cls: type[Pool], conninfo: Any, size: int = 2, **options: Any) -> Iterator[Pool]:
    """Have a pool open, full if it keeps connections, and closed afterwards."""
    keeps = not issubclass(cls, NullConnectionPool)
    settings = {"min_size": size if keeps else 0, "max_size": size, "timeout": PATIENCE, "open": False, **options}
    pool = cls(conninfo, **settings)
    pool.open(wait=keeps, timeout=PATIENCE)
    try:
        yield pool
    finally:
        pool.close()


def settled(pool: Pool) -> None:
    """Wait until no connect is in progress, so that all totals are final."""
    assert until(lambda: not tracker_of(pool).connects.connecting and not tracker_of(pool).connects.pending)


def assert_same_totals(pool: Pool, *, failed_connects: int = 0, uncounted: int = 0) -> None:
    """Compare our totals with those of ``get_stats()``.

    Args:
        pool: the pool.
        failed_connects: how many connects have failed.
        uncounted: checkouts that failed and that the pool does not count as errors.
    """
    settled(pool)
    theirs, ours = pool.get_stats(), tracker_of(pool).stats()
    expected = {
        "requests_num": sum(ours.checkouts.values()) + ours.timeouts + ours.errors + ours.waiting,
        "requests_queued": ours.queued,
        "requests_errors": ours.timeouts + ours.errors - uncounted,
        "requests_waiting": ours.waiting,
        "connections_num": ours.created + failed_connects,
        "connections_errors": failed_connects,
        "pool_available": ours.idle,
        "pool_min": ours.minconn,
        "pool_max": ours.maxconn,
    }
    assert {key: theirs.get(key, 0) for key in expected} == expected


def backend(conn: Any) -> int:
    """Return a connection's backend, as the server knows it."""
    pid: int = conn.execute("select pg_backend_pid()").fetchone()[0]
    return pid
