"""Many processes that lose their server together, and come back to it together.

``python -m faults.herd DSN CONNECTIONS`` is one of them: it works until its input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from textwrap import wrap
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn

from faults.document import WIDTH
from faults.proxy import Proxy
from faults.quiet import silenced
from otel_pgpool import ConnectionPool, PoolError
from otel_pgpool.cli.postgres import PostgresServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

NAME = "otel_pgpool herd"
TIMEOUT = 2.0
"""Seconds that a caller waits."""
WORKERS = 3
"""In each process."""
REST = 0.1
"""Seconds between two of a worker's borrowings."""
STEADY = 1.0
"""Seconds of good work before the stop, and after all are back."""
MOST_KNOCKS = 10
"""Connects a second of one process while the server is away: its prober pauses for 0.05 s on average at first."""
PATIENCE = 60.0
"""Seconds within which all have to be there, or there again."""


@dataclass(frozen=True)
class Returned:
    """What came of it."""

    processes: int
    connections: int
    """Of each."""
    away: float
    """Seconds from the stop until the server takes connections again."""
    while_away: list[int]
    """Connects that arrived in each second from the stop on."""
    on_return: list[int]
    """The same, from the moment when it is back, until every connection is."""
    first_work: float
    """Seconds until one process worked again."""
    all_work: float
    """Seconds until all did."""
    all_back: float | None
    """Seconds until every connection was there; None for never."""
    errors: dict[str, int]
    """What the callers saw."""
    most_backends: int

    @property
    def violations(self) -> list[str]:
        """What should not be."""
        found = []
        if self.all_back is None:
            found.append(f"{self.most_backends} connections of {self.processes * self.connections} came back")
        if max(self.while_away) > MOST_KNOCKS * self.processes:
            found.append(f"{max(self.while_away)} connects in a second at a server that is away")
        if sum(self.on_return) > self.processes * (self.connections + 1):
            found.append(f"{sum(self.on_return)} connects for {self.processes * self.connections} connections")
        return found

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        back = "never" if self.all_back is None else f"{self.all_back:.1f} s"
        seen = ", ".join(f"{number:,} {name}" for name, number in sorted(self.errors.items())) or "no error"
        yield "### A herd that comes back"
        yield ""
        yield from wrap(
            f"{self.processes} processes with {self.connections} connections each; their server is away for "
            f"{self.away:.1f} s. Connects that arrived, as a proxy in front of it counts them, second by second:",
            WIDTH,
        )
        yield ""
        yield f"- while it is away: {', '.join(map(str, self.while_away))}"
        yield f"- once it is back, until all are: {', '.join(map(str, self.on_return))}"
        yield ""
        yield from wrap(
            f"The first process works again after {self.first_work:.1f} s, the last after {self.all_work:.1f} s; all "
            f"{self.processes * self.connections} connections are there after {back}. The callers, who wait "
            f"{TIMEOUT:g} s, saw {seen}.",
            WIDTH,
        )


class Door(Proxy):
    """Counts who knocks."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.knocks: list[float] = []
        """When, as readings of the monotonic clock."""

    def _connect(self, client: socket.socket) -> None:
        self.knocks.append(monotonic())
        super()._connect(client)

    def curve(self, since: float, until: float) -> list[int]:
        """How many came in each second of the time."""
        seconds = Counter(int(knock - since) for knock in self.knocks if since <= knock < until)
        return [seconds[second] for second in range(int(until - since) + 1)]


class Member:
    """One process of the herd, seen from outside."""

    def __init__(self, dsn: str, connections: int) -> None:
        command = [sys.executable, "-m", "faults.herd", dsn, str(connections)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Until its pool is full, and it works."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "a process of the herd has ended"

    def leave(self) -> None:
        """End, whatever it is at."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def end(self) -> dict[str, Any]:
        """What it tells in the end."""
        told: dict[str, Any] = json.loads(self._process.communicate(timeout=PATIENCE)[0])
        return told


def play(processes: int = 20, connections: int = 10, away: float = 10.0) -> Returned:
    """Take the server away from all, and count how they come back."""
    with ExitStack() as stage:
        places = processes * connections + 20
        server = stage.enter_context(PostgresServer(settings={"max_connections": places}))
        door = stage.enter_context(Door(server.port))
        dsn = make_dsn(server.dsn, port=door.port, application_name=NAME)
        herd = [Member(dsn, connections) for _ in range(processes)]
        for member in herd:
            stage.callback(member.leave)
        for member in herd:
            member.wait()
        time.sleep(STEADY)
        stopped = monotonic()
        server.stop("fast")
        time.sleep(away)
        server.start()
        back = monotonic()
        most, all_back = wait_for_all(server.dsn, processes * connections, back)
        curve = door.curve(back, monotonic())
        time.sleep(STEADY)
        tales = [member.end() for member in herd]
        return Returned(
            processes=processes,
            connections=connections,
            away=back - stopped,
            while_away=door.curve(stopped, back),
            on_return=curve,
            first_work=min(tale["again"] for tale in tales) - back,
            all_work=max(tale["again"] for tale in tales) - back,
            all_back=all_back,
            errors=dict(sum((Counter(tale["errors"]) for tale in tales), Counter())),
            most_backends=most,
        )


def wait_for_all(dsn: str, connections: int, since: float) -> tuple[int, float | None]:
    """The most server processes that there were, and the seconds until there were so many."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    most = 0
    with conn.cursor() as cursor:
        while most < connections and monotonic() < since + PATIENCE:
            cursor.execute("select count(*) from pg_stat_activity where application_name = %s", (NAME,))
            most = max(most, *(cursor.fetchone() or (0,)))
            time.sleep(0.01)
    conn.close()
    return most, monotonic() - since if most >= connections else None


class Worker(threading.Thread):
    """Borrows at ease, and remembers its longest time without good work."""

    def __init__(self, pool: ConnectionPool, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.errors: Counter[str] = Counter()
        self.gap = 0.0
        self.again = 0.0
        """When the longest gap ended."""
        self._pool = pool
        self._over = over

    def run(self) -> None:
        """Work."""
        last = monotonic()
        while not self._over.wait(REST):
            try:
                with self._pool.connection() as conn, conn.cursor() as cursor:
                    cursor.execute("select 1")
            except (PoolError, psycopg2.Error) as error:
                self.errors[type(error).__name__] += 1
                continue
            now = monotonic()
            if now - last > self.gap:
                self.gap, self.again = now - last, now
            last = now


def main(dsn: str, connections: int) -> None:
    """Be one of the herd."""
    over = threading.Event()
    with silenced(), ConnectionPool(connections, connections, dsn, timeout=TIMEOUT, open=False) as pool:
        pool.wait(PATIENCE)
        workers = [Worker(pool, over) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        print("ready", flush=True)
        sys.stdin.read()
        over.set()
        for worker in workers:
            worker.join(TIMEOUT + 1)
    errors = sum((worker.errors for worker in workers), Counter())
    print(json.dumps({"again": min(worker.again for worker in workers), "errors": errors}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
