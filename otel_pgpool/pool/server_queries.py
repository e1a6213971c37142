"""The queries of a monitor to its server: over which connection, how often, and what follows if one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.pool.session_match import Place, name_of
from otel_pgpool.pool.session_query import Answer, read_answer, statement_for
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Collection

    from otel_pgpool.pool.monitor_source import MonitorConnection, MonitoredPool, MonitorSource, Server
    from otel_pgpool.pool.watched_hold import WatchedHold

QUERY_INTERVAL = 1.0
"""Minimum number of seconds between two queries of a server."""

QUERY_SHARE = 0.1
"""Maximum share of the time in which a server works on queries: after a slow query, the interval is longer."""

CLOSE_AFTER = 60.0
"""Seconds without a query after which the monitoring connection is closed."""

RETRY_AFTER = 10.0
"""Seconds between a failed query and the next one."""

AT_ONCE = 1.0
"""Seconds within which a query fails on a connection that the server has closed, or a server refuses a connection."""


class Reply(NamedTuple):
    """An answer, and the server that has given it."""

    answer: Answer
    place: Place


class NoReply(Exception):  # noqa: N818 - caught by the monitor, which nobody else sees
    """No pool has a way to the server; the message says why."""


class ServerQueries:
    """The connection to one server, and the time of the next query. Used by the thread of a monitor alone.

    Args:
        server: the server.
    """

    def __init__(self, server: Server) -> None:
        self.next_query = 0.0
        """When the server may be asked again, as a reading of the clock."""
        self.is_proxy: bool | None = None
        """Whether a proxy shares the sessions, so that they have names only; None if that is not known yet."""
        self._server = server
        self._conn: MonitorConnection | None = None
        self._last_query = 0.0
        self._failing: set[str] = set()  # names of pools whose way to a connection has failed

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._conn is not None

    @property
    def closes_at(self) -> float:
        """When the connection is closed if there is no other query."""
        return self._last_query + CLOSE_AFTER

    def ask(self, holds: Collection[WatchedHold], due: Collection[WatchedHold]) -> Reply | None:
        """Ask the server for the sessions of holds.

        The pools of the holds that are due are tried one after the other. A pool that takes more than a moment to fail
        is the last, and the others are tried first at the next query.

        Returns:
            The reply; None if another pool is to be tried at the next query.

        Raises:
            NoReply: every pool has failed.
        """
        statement = self._statement_for(holds)
        pools = {hold.pool.name: hold.pool for hold in due}
        text = ""
        for pool in sorted(pools.values(), key=lambda pool: pool.name in self._failing):
            began = monotonic()
            try:
                return self._reply(statement, pool)
            except Exception as error:  # noqa: BLE001 - a driver or a callback of the program may raise anything
                self.close()
                self._failing.add(pool.name)
                text = text or pool.source.error_text(error)
                if monotonic() - began >= AT_ONCE:
                    break
        if not self._failing >= pools.keys():
            self.next_query = monotonic() + QUERY_INTERVAL
            return None
        self._failing.clear()
        self.next_query = monotonic() + RETRY_AFTER
        raise NoReply(f"it could not be asked: {text}")

    def close(self) -> None:
        """Close the connection, if there is one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def close_inherited(self) -> None:
        """Drop the connection in a forked child, which must not use the parent's."""
        if self._conn is not None:
            self._conn.close_inherited()

    def _statement_for(self, holds: Collection[WatchedHold]) -> str:
        pids = [] if self.is_proxy else [hold.checkout.slot.pid for hold in holds]
        names = [] if self.is_proxy is False else [name for hold in holds if (name := name_of(hold.checkout))]
        return statement_for(pids, names)

    def _reply(self, statement: str, pool: MonitoredPool) -> Reply:
        """Return the server's reply, on a connection of a pool if there is none yet."""
        asked = monotonic()
        conn, text = self._run(statement, pool.source)
        answer = read_answer(text)
        self._failing.discard(pool.name)
        self.is_proxy = conn.pid not in (0, answer.backend)
        place = Place(self._server, asked, self.is_proxy, is_direct=0 < conn.local_port == answer.client_port)
        if self.is_proxy:
            self.close()  # it may keep a connection to the server from a client
        return Reply(answer, place)

    def _run(self, statement: str, source: MonitorSource) -> tuple[MonitorConnection, str]:
        """Run a statement; open a connection if there is none, or if the server has closed the one that was idle."""
        if self._conn is not None:
            began = monotonic()
            try:
                return self._conn, self._timed(self._conn, statement)
            except Exception:
                self.close()
                if monotonic() - began >= AT_ONCE:  # the server is frozen, and would freeze the next connection too
                    raise
        self._conn = source.open(self._server)
        return self._conn, self._timed(self._conn, statement)

    def _timed(self, conn: MonitorConnection, statement: str) -> str:
        """Run a statement, and set the time of the next one."""
        began = monotonic()
        value = conn.query(statement)
        self._last_query = monotonic()
        self.next_query = max(began + QUERY_INTERVAL, self._last_query + (self._last_query - began) / QUERY_SHARE)
        return value
