"""Methods and properties of psycopg_pool's pools, by their names there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver import session
from otel_pgpool.pool.control import PoolControl
from otel_pgpool.runtime.fork import renewed

if TYPE_CHECKING:
    from psycopg2.extensions import connection


class PsycopgPoolNames(PoolControl):
    """The properties and methods of a `ConnectionPool` that are named as in psycopg_pool."""

    @property
    def min_size(self) -> int:
        """Another name of ``minconn``."""
        return self.minconn

    @property
    def max_size(self) -> int:
        """Another name of ``maxconn``."""
        return self.maxconn

    @renewed
    def get_stats(self) -> dict[str, int]:
        """Return levels, and totals since the last `pop_stats`, by the names that psycopg_pool gives them.

        `stats` says more.
        """
        return self._parts.psycopg_pool_stats.get()

    @renewed
    def pop_stats(self) -> dict[str, int]:
        """Return the figures of `get_stats`, and begin their totals anew; those of `stats` and telemetry go on."""
        return self._parts.psycopg_pool_stats.pop()

    @staticmethod
    def check_connection(conn: connection) -> None:
        """Check a connection by a query, for use as ``check=ConnectionPool.check_connection``.

        Outside of a transaction, the query begins none.

        Args:
            conn: the connection.

        Raises:
            psycopg2.Error: the connection does not work.
        """
        session.check(conn)
