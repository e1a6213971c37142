"""PostgreSQL and PgBouncer of the real fleet, and what is counted at them."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool.demo.postgres import PostgresServer
from tests.support.pgbouncer import PgBouncer

if TYPE_CHECKING:
    from typing_extensions import Self

WATCH_EVERY = 0.05  # seconds
LOGIN_RETRY = 1
"""PgBouncer's `server_login_retry` in seconds, whose default of 15 would be the recovery time after any outage."""
_COUNT = (
    "select count(*) from pg_stat_activity where backend_type = 'client backend' and datname = 'postgres' "
    "and pid <> pg_backend_pid()"
)


class Watch:
    """The count of PgBouncer's connections in pg_stat_activity, every 50 ms, also after a restart of the server."""

    def __init__(self, dsn: str) -> None:
        self.most = 0
        self._dsn = dsn
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with closing(psycopg2.connect(self._dsn)) as conn:
                    self._count(conn)
            except psycopg2.Error:
                self._end.wait(WATCH_EVERY)

    def _count(self, conn: psycopg2.extensions.connection) -> None:
        conn.autocommit = True
        with conn.cursor() as cursor:
            while not self._end.wait(WATCH_EVERY):
                cursor.execute(_COUNT)
                for (count,) in cursor:
                    self.most = max(self.most, count)


class Tier:
    """One PostgreSQL and one PgBouncer in transaction mode, with a budget of connections between them."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._stack = ExitStack()
        self._folder = folder
        self._budget = budget

    def __enter__(self) -> Self:
        with self._stack:
            limit = self._budget + 10
            settings = {"log_connections": "on", "log_timezone": "UTC", "max_connections": str(limit)}
            self.postgres = self._stack.enter_context(PostgresServer(settings=settings))
            self.bouncer = PgBouncer(
                self._folder,
                self.postgres,
                "transaction",
                auth_type="trust",  # workers and servers share the CPUs here: hashing of passwords would be the load
                default_pool_size=self._budget,
                max_db_connections=self._budget,
                max_client_conn=5000,
                server_login_retry=LOGIN_RETRY,
            )
            self._stack.callback(self.bouncer.kill)
            self.bouncer.start()
            self.watch = Watch(self.postgres.dsn)
            self._stack.callback(self.watch.close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def connect_seconds(self, count: int = 20) -> float:
        """Return the median seconds of one connect through PgBouncer."""
        times = []
        for _ in range(count):
            started = time.monotonic()
            psycopg2.connect(self.bouncer.dsn).close()
            times.append(time.monotonic() - started)
        return median(times)

    def cpu(self) -> tuple[float, float]:
        """Return the seconds of CPU that PgBouncer and PostgreSQL have used."""
        bouncer = postgres = 0.0
        for pid, (parent, own, waited_for) in _processes().items():
            if pid == self.bouncer.pid:
                bouncer = own
            elif pid == self.postgres.pid:
                postgres += own + waited_for
            elif parent == self.postgres.pid:
                postgres += own
        return bouncer, postgres

    def logins(self) -> list[float]:
        """Return when clients logged in at PgBouncer, by its log: seconds since the epoch."""
        return _moments(self.bouncer.log, "login attempt")

    def server_connects(self) -> list[float]:
        """Return when sessions began at PostgreSQL, by its log."""
        return _moments(Path(self.postgres.socket_dir, "log"), "connection authorized")


def _processes() -> dict[int, tuple[int, float, float]]:
    """Return the parent of each process, and the seconds of CPU of itself and of its children that have ended."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            times = [int(each) / tick for each in fields[11:15]]
            found[int(path.parent.name)] = (int(fields[1]), times[0] + times[1], times[2] + times[3])
    return found


def _moments(log: Path, words: str) -> list[float]:
    lines = [line for line in log.read_text(errors="replace").splitlines() if words in line]
    found = [re.match(r"(\d+-\d+-\d+ \d+:\d+:\d+\.\d+) UTC", line) for line in lines]
    times = [datetime.strptime(f"{match[1]} +0000", "%Y-%m-%d %H:%M:%S.%f %z") for match in found if match]
    return [moment.timestamp() for moment in times]
