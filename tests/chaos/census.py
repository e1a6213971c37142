"""A pool's server processes, counted all the time, and its levels beside them."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

from tests.chaos.lookout import Lookout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg2.extensions import connection
    from typing_extensions import Self

    from otel_pgpool import ConnectionPool, PoolStats
    from otel_pgpool.demo.postgres import PostgresServer

EVERY = 0.02
"""Seconds between two looks."""
SOCKETS = Path("/proc/net/tcp")
ESTABLISHED = "01"
AWAY = psycopg2.OperationalError, psycopg2.InterfaceError
"""What is raised while the server is."""


class Census(Lookout):
    """Looks on, until it is left.

    The server takes a moment to end a process whose client has left, and the pool need not wait for it. So the limit
    holds for those whose client's socket is still open; how many there were at all is told beside it.

    Args:
        server: where the processes are; it may be away for a while.
        name: the ``application_name`` of the pool's connections.
        pool: whose levels are looked at too.
        limit: how many connections the pool may have.
        beside: how many server processes there may be besides.
        standby: another server, whose processes count as well.
    """

    def __init__(
        self,
        server: PostgresServer,
        name: str,
        pool: ConnectionPool | None,
        limit: int,
        beside: int = 0,
        *,
        standby: PostgresServer | None = None,
    ) -> None:
        super().__init__()
        self.most = 0
        """Server processes whose client was there."""
        self.most_at_all = 0
        self.longest_stall = 0.0
        """Seconds by which this thread, which does next to nothing, came late: nobody else can have been faster."""
        self._servers = [server] if standby is None else [server, standby]
        self._name = name
        self._pool = pool
        self._limit = limit
        self._beside = beside

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if not self.most_at_all:
            self.violations.add("no server process was seen")

    def _look_on(self) -> None:
        with Visits(self._name) as visits:
            over = False
            while not over:
                self._count(visits, self._servers)
                if self._pool is not None:
                    self._look_at(self._pool.stats())
                over = self._pause()

    def _pause(self) -> bool:
        """Whether it is over."""
        slept = monotonic()
        over = self._over.wait(EVERY)
        if not over:
            self.longest_stall = max(self.longest_stall, monotonic() - slept - EVERY)
        return over

    def _count(self, visits: Visits, servers: Sequence[PostgresServer]) -> int:
        """Server processes whose client is there."""
        listed = {server.port: visits.ports(server) for server in servers}
        # Asked second: who was listed, and is open still, was there all the time in between.
        living = sum(len(ports & open_ports(port)) for port, ports in listed.items())
        self.most = max(self.most, living)
        self.most_at_all = max(self.most_at_all, sum(map(len, listed.values())))
        if living > self._limit + self._beside:
            self.violations.add(f"{living} server processes of at most {self._limit + self._beside}")
        return living

    def count(self, servers: Sequence[PostgresServer] | None = None) -> int:
        """Server processes whose client is there, now: of all servers, or of some."""
        with Visits(self._name) as visits:
            return self._count(visits, self._servers if servers is None else servers)

    def _look_at(self, stats: PoolStats) -> None:
        # Read one after the other while all goes on: each must be possible, and at rest they must add up.
        for level in ("size", "used", "idle", "connecting"):
            number = getattr(stats, level)
            if not 0 <= number <= self._limit:
                self.violations.add(f"{level} is {number}, at most {self._limit}")


class Visits:
    """Connections to servers, to be asked again and again; one that is away has nobody."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._conns: dict[PostgresServer, connection] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for conn in self._conns.values():
            conn.close()

    def ports(self, server: PostgresServer) -> set[int]:
        """Return the client ports of the server processes with this name."""
        try:
            if server not in self._conns:
                self._conns[server] = connect(server)
            with self._conns[server].cursor() as cursor:
                cursor.execute("select client_port from pg_stat_activity where application_name = %s", (self._name,))
                return {port for (port,) in cursor.fetchall()}
        except AWAY:
            if server in self._conns:
                self._conns.pop(server).close()
            return set()


def connect(server: PostgresServer) -> connection:
    """Open a connection that does not belong to a pool."""
    conn = psycopg2.connect(server.dsn, application_name="census", connect_timeout=2)
    conn.autocommit = True
    return conn


def open_ports(server: int) -> set[int]:
    """Return this machine's ports of connections to a server's port that neither side has closed."""
    rows = (line.split() for line in SOCKETS.read_text().splitlines()[1:])
    return {
        int(local.rpartition(":")[2], 16)
        for _, local, remote, state, *_ in rows
        if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == server
    }
