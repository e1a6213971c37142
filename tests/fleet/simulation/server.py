"""A simulated PgBouncer in transaction mode, and the PostgreSQL behind it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN

from tests.fleet.simulation.tasks import Here, Lock


@dataclass(frozen=True)
class Costs:
    """What a step takes, in seconds, and the settings of PgBouncer. They are assumptions, not yet measured."""

    login_cpu: float = 0.0005
    """Of PgBouncer's one thread for a login of a client."""
    login_latency: float = 0.003
    """Of a login of a client besides that."""
    server_connect: float = 0.006
    """Of a connect of PgBouncer at PostgreSQL; it makes one at a time."""
    postgres_restart: float = 1.0
    """Of PostgreSQL until it accepts connects again."""
    server_login_retry: float = 1.0
    """Of PgBouncer between two attempts to connect at PostgreSQL."""
    max_client_conn: int = 20_000
    """Clients that PgBouncer accepts."""


class Connection:
    """A connection of a pool to PgBouncer."""

    isolation_level = readonly = deferrable = None
    autocommit = False
    status = 1
    notices: Any = ()
    host, port = "simulated", 6432
    is_cut = False

    def __init__(self, bouncer: Bouncer, number: int) -> None:
        self._bouncer, self.number = bouncer, number
        self.closed = 0
        self.done: Lock | None = None
        """What a transaction in progress waits for; released if the connection is cut."""

    @property
    def info(self) -> Connection:
        """What psycopg2 says about a connection."""
        return self

    def get_transaction_status(self) -> int:
        return TRANSACTION_STATUS_UNKNOWN if self.closed else TRANSACTION_STATUS_IDLE

    def get_backend_pid(self) -> int:
        return self.number

    def fileno(self) -> int:
        return -1

    def cut(self) -> None:
        """End the connection from the server's side."""
        self.is_cut = True
        self._bouncer.clients.pop(self.number, None)
        if self.done is not None and self.done.locked():
            self.done.release()

    def close(self) -> None:
        if not self.closed:
            self.closed = 1
            self._bouncer.clients.pop(self.number, None)

    def fail_if_cut(self) -> None:
        """Raise what libpq raises on a connection that the server has ended."""
        if self.is_cut:
            self.closed = 2
            raise psycopg2.OperationalError("server closed the connection unexpectedly")


class Bouncer:
    """PgBouncer, with at most ``budget`` connections at PostgreSQL; the pools connect to it."""

    address, port, namespace, name = "simulated", 6432, "db", "db"
    fallback_name: Any = None
    public: ClassVar[dict[str, str]] = {}

    def __init__(self, budget: int, costs: Costs) -> None:
        self.budget, self.costs = budget, costs
        self.clients: dict[int, Connection] = {}
        self.logins: list[float] = []  # when each login of a client began
        self.server_connects: list[float] = []
        self.refused = 0
        self.opened = self.most_opened = 0  # connections at PostgreSQL
        self._idle = 0
        self._active: set[Connection] = set()  # that have a connection at PostgreSQL
        self._waiting: deque[Connection] = deque()
        self._is_up = self._is_postgres_up = True
        self._is_connecting = False
        self._epoch = 0  # a connection at PostgreSQL of an earlier one is gone
        self._starts = 0  # of PgBouncer, which a login does not survive
        self._free_at = 0.0  # when the thread of PgBouncer has done the logins so far

    # As the pools see it

    def connect(self, _attempt: object) -> Connection:
        """Log a client in."""
        tasks, costs, epoch = Here.tasks, self.costs, self._starts
        if not self._is_up:
            self.refused += 1
            raise psycopg2.OperationalError("Connection refused")
        self.logins.append(tasks.now)
        number = len(self.logins)
        self._free_at = max(self._free_at, tasks.now) + costs.login_cpu
        tasks.sleep(self._free_at - tasks.now + costs.login_latency)
        if epoch != self._starts:
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        if len(self.clients) >= costs.max_client_conn:
            raise psycopg2.OperationalError("no more connections allowed (max_client_conn)")
        conn = self.clients[number] = Connection(self, number)
        return conn

    def chosen_server(self, _conn: Connection) -> None:
        """Return None: there is one host."""

    def transaction(self, conn: Connection, seconds: float) -> None:
        """Do a transaction of some seconds, once a connection at PostgreSQL is free."""
        conn.fail_if_cut()
        conn.done = Lock()
        conn.done.acquire()
        if self._idle:
            self._idle -= 1
            self._active.add(conn)
        else:
            self._waiting.append(conn)
            self._connect_if_needed()
            conn.done.acquire()
            conn.fail_if_cut()
        epoch = self._epoch
        conn.done.acquire(timeout=seconds)
        if epoch == self._epoch:
            self._active.discard(conn)
            self._serve()
        conn.fail_if_cut()

    # At PostgreSQL

    def _serve(self) -> None:
        """Give a connection that has become free to the first client that waits."""
        while self._waiting:
            conn = self._waiting.popleft()
            if not conn.is_cut and conn.done is not None:
                self._active.add(conn)
                conn.done.release()
                return
        self._idle += 1

    def _connect_if_needed(self) -> None:
        if self._waiting and self._is_up and not self._is_connecting and self.opened < self.budget:
            self._is_connecting = True
            Here.tasks.start(self._connect)

    def _connect(self) -> None:
        tasks, epoch = Here.tasks, self._epoch
        if self._is_postgres_up:
            self.server_connects.append(tasks.now)
            self.opened += 1
            self.most_opened = max(self.most_opened, self.opened)
            tasks.sleep(self.costs.server_connect)
            self._is_connecting = False
            if epoch == self._epoch:
                self._serve()
        else:
            tasks.sleep(self.costs.server_login_retry)
            self._is_connecting = False
        self._connect_if_needed()

    # Disturbances

    def _lose_servers(self) -> None:
        self._epoch += 1
        self.opened = self._idle = 0
        for conn in list(self._active):
            conn.cut()
        self._active.clear()

    def restart_postgres(self) -> None:
        """Restart PostgreSQL: PgBouncer ends the clients in a transaction, the others wait."""
        self._is_postgres_up = False
        self._lose_servers()
        Here.tasks.sleep(self.costs.postgres_restart)
        self._is_postgres_up = True
        self._connect_if_needed()

    def stop(self) -> None:
        """Stop PgBouncer: every connection ends, and connects are refused."""
        self._is_up = False
        self._starts += 1
        self._lose_servers()
        self._waiting.clear()
        for conn in list(self.clients.values()):
            conn.cut()

    def start(self) -> None:
        """Start PgBouncer again."""
        self._is_up = True
