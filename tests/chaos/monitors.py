"""Threads that watch a pool, its backends and the machine while a fault or a load goes on."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg2.extensions import connection
    from typing_extensions import Self

    from otel_pgpool import ConnectionPool, PoolStats
    from otel_pgpool.demo.postgres import PostgresServer


class Monitor:
    """A thread that watches until the block is left; an error in the thread is a violation."""

    def __init__(self) -> None:
        self.violations: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__.lower(), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.violations.add(f"{self._thread.name} was ended by {error!r}")

    def _watch(self) -> None:
        """Watch until the end."""
        raise NotImplementedError


EVERY = 0.02
"""Seconds between two looks."""
SOCKETS = Path("/proc/net/tcp")
ESTABLISHED = "01"
SERVER_AWAY = psycopg2.OperationalError, psycopg2.InterfaceError
"""Errors that are raised while the server is away."""


class BackendMonitor(Monitor):
    """Counts the backends of a pool, and checks its levels.

    The server takes a moment to end a process whose client has left, and the pool need not wait for it. So the limit
    holds for those whose client's socket is still open; the number of all is counted too.

    Args:
        server: where the processes are; it may be away for a while.
        name: the ``application_name`` of the pool's connections.
        pool: the pool whose levels are checked, if it is ours.
        limit: how many connections the pool may have.
        extra_backends: how many backends there may be in addition.
        standby: another server, whose processes count as well.
    """

    def __init__(
        self,
        server: PostgresServer,
        name: str,
        pool: ConnectionPool | None,
        limit: int,
        extra_backends: int = 0,
        *,
        standby: PostgresServer | None = None,
    ) -> None:
        super().__init__()
        self.most = 0
        """Server processes whose client was connected, at most."""
        self.most_at_all = 0
        self.longest_stall = 0.0
        """Seconds by which this thread, which is nearly idle, was late: other threads were not faster."""
        self._servers = [server] if standby is None else [server, standby]
        self._name = name
        self._pool = pool
        self._limit = limit
        self._extra_backends = extra_backends

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if not self.most_at_all:
            self.violations.add("no backend was seen")

    def _watch(self) -> None:
        with ServerSessions(self._name) as sessions:
            over = False
            while not over:
                self._count(sessions, self._servers)
                if self._pool is not None:
                    self._check_levels(self._pool.stats())
                over = self._pause()

    def _pause(self) -> bool:
        """Sleep, and measure the stall; return whether the end has come."""
        slept = monotonic()
        over = self._over.wait(EVERY)
        if not over:
            self.longest_stall = max(self.longest_stall, monotonic() - slept - EVERY)
        return over

    def _count(self, sessions: ServerSessions, servers: Sequence[PostgresServer]) -> int:
        """Return the number of backends whose client is connected."""
        listed = {server.port: sessions.ports(server) for server in servers}
        # Read second: a listed process whose socket is still open was connected all the time in between.
        living = sum(len(ports & open_ports(port)) for port, ports in listed.items())
        self.most = max(self.most, living)
        self.most_at_all = max(self.most_at_all, sum(map(len, listed.values())))
        if living > self._limit + self._extra_backends:
            self.violations.add(f"{living} backends of at most {self._limit + self._extra_backends}")
        return living

    def count(self, servers: Sequence[PostgresServer] | None = None) -> int:
        """Return the present number of backends whose client is connected, of all servers or of some."""
        with ServerSessions(self._name) as sessions:
            return self._count(sessions, self._servers if servers is None else servers)

    def _check_levels(self, stats: PoolStats) -> None:
        # Levels are read one after the other while threads work: each must be possible, but they need not add up.
        for level in ("size", "used", "idle", "connecting"):
            number = getattr(stats, level)
            if not 0 <= number <= self._limit:
                self.violations.add(f"{level} is {number}, at most {self._limit}")


class ServerSessions:
    """Connections to servers, kept for many queries; a server that is away has no processes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._conns: dict[PostgresServer, connection] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for conn in self._conns.values():
            conn.close()

    def ports(self, server: PostgresServer) -> set[int]:
        """Return the client ports of the backends with this name."""
        try:
            if server not in self._conns:
                self._conns[server] = connect(server)
            with self._conns[server].cursor() as cursor:
                cursor.execute("select client_port from pg_stat_activity where application_name = %s", (self._name,))
                return {port for (port,) in cursor.fetchall()}
        except SERVER_AWAY:
            if server in self._conns:
                self._conns.pop(server).close()
            return set()


def connect(server: PostgresServer) -> connection:
    """Open a connection that does not belong to a pool."""
    conn = psycopg2.connect(server.dsn, application_name="backend_monitor", connect_timeout=2)
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


class LimitMonitor(Monitor):
    """Compares the backends with the limits in force since the last comparison.

    A connection that exists when the limit is lowered may stay until it is released; no new one may exceed the limit.

    Args:
        pool: the pool, which is resized only inside `change`.
        count: returns the number of the pool's backends whose client is connected.
    """

    def __init__(self, pool: ConnectionPool, count: Callable[[], int]) -> None:
        super().__init__()
        self._pool = pool
        self._count = count
        self._lock = threading.Lock()  # guards the next two
        self._under_way: list[int] = []
        self._highest = pool.maxconn  # since the last look

    @contextmanager
    def change(self, maxconn: int) -> Iterator[None]:
        """Allow a limit from now on, while the block resizes the pool."""
        with self._lock:
            self._under_way.append(maxconn)
            self._highest = max(self._highest, maxconn)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.remove(maxconn)

    def _watch(self) -> None:
        size = self._pool.stats().size
        while not self._over.wait(EVERY):
            found, highest = self._count(), self._take()
            if found > max(size, highest):
                self.violations.add(f"{found} backends, where {size} were there and {highest} may be")
            size = self._pool.stats().size

    def _take(self) -> int:
        """Return the highest limit since the last call; from now on the present limits count."""
        with self._lock:
            highest, self._highest = self._highest, max(self._pool.maxconn, *self._under_way, 0)
        return highest


STALL_EVERY = 0.01
"""Seconds between two readings of the clock; as much delay in addition is a stall."""


class StallMonitor(Monitor):
    """Records when an idle thread was late: other threads were not faster then.

    Times are readings of the monotonic clock.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stalls: list[tuple[float, float]] = []  # when each began and ended

    @property
    def longest(self) -> float:
        """Seconds of the longest stall."""
        return max((ended - began for began, ended in self._stalls), default=0.0)

    def within(self, began: float, ended: float) -> float:
        """Return the seconds of an interval that lay in stalls."""
        return sum(max(0.0, min(ended, up) - max(began, since)) for since, up in self._stalls)

    def _watch(self) -> None:
        due = monotonic() + STALL_EVERY
        while not self._over.wait(STALL_EVERY):
            now = monotonic()
            if now - due > STALL_EVERY:
                self._stalls.append((due, now))
            due = monotonic() + STALL_EVERY
