"""The figures of a pool by the names and in the units of psycopg_pool's ``get_stats``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core

MILLISECONDS = 1000.0


class PsycopgPoolStats:
    """The levels of a pool, and its totals since the last `pop`.

    The pool's own totals, which telemetry reports, never go down: `pop` stores those that it has returned.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._popped: dict[str, int] = dict.fromkeys(self._totals(), 0)

    def get(self) -> dict[str, int]:
        """Return the levels and the totals."""
        return self._read(pops=False)

    def pop(self) -> dict[str, int]:
        """Return the levels and the totals, and begin the totals anew."""
        return self._read(pops=True)

    def _read(self, *, pops: bool) -> dict[str, int]:
        with self._core.lock:
            before = self._popped
            # A checkout that moves from one figure to another may be in none of them for a moment.
            totals = {name: max(before[name], total) for name, total in self._totals().items()}
            levels = self._levels()
            if pops:
                self._popped = totals
        return levels | {name: total - before[name] for name, total in totals.items()}

    def _levels(self) -> dict[str, int]:
        stats = self._core.stats()
        return {
            "pool_min": stats.minconn,
            "pool_max": stats.maxconn,
            "pool_size": stats.size,
            "pool_available": stats.idle,
            "requests_waiting": stats.waiting,
        }

    def _totals(self) -> dict[str, int]:
        stats, connections = self._core.stats(), self._core.connection_totals
        failed = stats.timeouts + stats.errors
        return {
            "usage_ms": int(stats.hold_seconds * MILLISECONDS),
            "requests_num": sum(stats.checkouts.values()) + failed + stats.waiting,
            "requests_queued": stats.queued,
            "requests_wait_ms": int(stats.wait_seconds * MILLISECONDS),
            "requests_errors": failed,
            "returns_bad": connections.bad_returns,
            "connections_num": stats.created + connections.connect_failures,
            "connections_ms": int(connections.connect_seconds * MILLISECONDS),
            "connections_errors": connections.connect_failures,
            "connections_lost": connections.lost,
        }
