"""Many processes that lose their server together, and come back to it together.

``python -m tests.chaos.herd DSN CONNECTIONS`` is one of them: it works until its input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import make_dsn

from otel_pgpool import ConnectionPool, PoolError
from otel_pgpool.demo.postgres import PostgresServer
from tests.chaos.prober import MARGIN, UNRULY, bounds, longest_silence
from tests.chaos.proxy import Proxy
from tests.chaos.quiet import silenced

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
PATIENCE = 60.0
"""Seconds within which all have to be there, or there again."""


@dataclass(frozen=True)
class Returned:
    """What came of it."""

    processes: int
    connections: int
    """Of each."""
    away: float
    """Seconds from the first connect that fails until the server takes them again."""
    while_away: list[int]
    """Connects that arrived in each second from the first on, until the server is back."""
    silence: float
    """Seconds between two of them, at most, from the third second on."""
    on_return: list[int]
    """The same, from the moment when it is back."""
    first_work: float | None
    """Seconds until one worker worked again; None for never."""
    all_work: float | None
    """Seconds until all did."""
    all_back: float | None
    """Seconds until every connection was there."""
    errors: dict[str, int]
    """What the callers saw."""
    most_backends: int

    @property
    def violations(self) -> list[str]:
        """What should not be."""
        wanted = self.processes * self.connections
        bound = bounds(self.processes, self.away)
        found = []
        if self.all_back is None or self.most_backends != wanted:
            found.append(f"{self.most_backends} connections came back of {wanted}")
        if self.all_work is None:
            found.append("not all workers came back")
        if any(knocks > most for knocks, most in zip(self.while_away, bound.in_a_second, strict=False)):
            found.append(f"connects in each second at a server that is away: {self.while_away}")
        if sum(self.while_away[UNRULY:]) > bound.later:
            found.append(f"{sum(self.while_away[UNRULY:])} connects, after the first seconds, at a server that is away")
        if self.silence > bound.silence:
            found.append(f"no connect for {self.silence:.1f} s: all pause alike")
        if max(self.on_return) > bound.coming_back * self.connections:
            found.append(f"{max(self.on_return)} connects in one second when the server was back")
        if sum(self.on_return) > wanted + self.processes:
            found.append(f"{sum(self.on_return)} connects for {wanted} connections")
        return found

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        bound = bounds(self.processes, self.away)
        seen = ", ".join(f"{number:,} {name}" for name, number in sorted(self.errors.items())) or "no error"
        wanted = self.processes * self.connections
        yield "### A herd that comes back"
        yield ""
        yield (
            f"{self.processes} processes with {self.connections} connections each; their server is away for "
            f"{self.away:.1f} s. Connects that arrived in each second, counted by a proxy in front of the server:"
        )
        yield ""
        yield f"- while it is away: {', '.join(map(str, self.while_away))}"
        yield f"- at most: {', '.join(f'{most:g}' for most in bound.in_a_second)}"
        yield f"- once it is back: {', '.join(map(str, self.on_return))}"
        yield f"- at most: {bound.coming_back * self.connections} in a second, and {wanted + self.processes} in all"
        yield ""
        yield (
            "The bounds are those of simulated herds, each process with a single prober whose pauses double up to 5 s "
            f"and are cut short at random, times {MARGIN} while the server is away."
        )
        yield ""
        yield (
            f"The first worker works again after {moment(self.first_work)}, the last after {moment(self.all_work)}; "
            f"all {wanted} connections are there after {moment(self.all_back)}. The "
            f"callers, who wait {TIMEOUT:g} s, saw {seen}."
        )


def moment(seconds: float | None) -> str:
    """Or never."""
    return "never" if seconds is None else f"{seconds:.1f} s"


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
        command = [sys.executable, "-m", "tests.chaos.herd", str(connections)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "DATABASE_URL": dsn}
        )

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
        """Return the member's final report."""
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
        most, all_back = look_on(server.dsn, processes * connections, back)
        looked = monotonic()
        tales = [member.end() for member in herd]
        knocks = [knock for knock in door.knocks if stopped <= knock < back]
        began = min(knocks, default=stopped)
        again = [first_after(back, worker) for tale in tales for worker in tale["worked"]]
        return Returned(
            processes=processes,
            connections=connections,
            away=back - began,
            while_away=door.curve(began, back),
            silence=longest_silence(sorted(knock - began for knock in knocks)),
            on_return=door.curve(back, looked),
            first_work=min((moment for moment in again if moment is not None), default=None),
            all_work=None if None in again else max(moment for moment in again if moment is not None),
            all_back=all_back,
            errors=dict(sum((Counter(tale["errors"]) for tale in tales), Counter())),
            most_backends=most,
        )


def first_after(since: float, moments: list[float]) -> float | None:
    """Seconds until the first of them."""
    return min((moment - since for moment in moments if moment >= since), default=None)


def look_on(dsn: str, connections: int, since: float) -> tuple[int, float | None]:
    """Return the maximum number of server processes, and the seconds until there were enough.

    The number is observed for a while longer than that.
    """
    most, enough = 0, None
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        while monotonic() < (since + PATIENCE if enough is None else enough + STEADY):
            cursor.execute("select count(*) from pg_stat_activity where application_name = %s", (NAME,))
            most = max(most, *(cursor.fetchone() or (0,)))
            if enough is None and most >= connections:
                enough = monotonic()
            time.sleep(0.01)
    return most, None if enough is None else enough - since


class Worker(threading.Thread):
    """Borrows at ease, and remembers when it worked."""

    def __init__(self, pool: ConnectionPool, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.errors: Counter[str] = Counter()
        self.worked: list[float] = []
        """When, as readings of the monotonic clock, which all processes share."""
        self._pool = pool
        self._over = over

    def run(self) -> None:
        """Work."""
        while not self._over.wait(REST):
            try:
                with self._pool.connection() as conn, conn.cursor() as cursor:
                    cursor.execute("select 1")
            except (PoolError, psycopg2.Error) as error:
                self.errors[type(error).__name__] += 1
            else:
                self.worked.append(monotonic())


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
    print(json.dumps({"worked": [worker.worked for worker in workers], "errors": errors}))


if __name__ == "__main__":
    main(os.environ["DATABASE_URL"], int(sys.argv[1]))
