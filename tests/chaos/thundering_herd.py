"""Many processes that lose their server together, and connect to it together when it is back.

``python -m tests.chaos.thundering_herd CONNECTIONS`` is one of them: it works until its input ends.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2.extensions import make_dsn

from otel_pgpool import ConnectionPool, PoolError
from tests.chaos.pools import silence_logs
from tests.support.proxy import Proxy
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


NAME = "otel_pgpool herd"
TIMEOUT = 2.0
"""Seconds that a caller waits for a connection."""
WORKERS = 3
"""Workers in each process."""
REST = 0.1
"""Seconds between two checkouts of a worker."""
STEADY = 1.0
"""Seconds of work before the stop, and after all connections are back."""
PATIENCE = 60.0
"""Seconds within which all connections have to be made, or made again."""


@dataclass(frozen=True)
class HerdResult:
    """The result of a thundering herd."""

    processes: int
    connections: int
    """Connections of each process."""
    away: float
    """Seconds from the first failed connect until the server accepts connects again."""
    while_away: list[int]
    """Connects in each second from the first one until the server is back."""
    silence: float
    """Seconds between two connects, at most, from the third second on."""
    on_return: list[int]
    """Connects in each second since the server is back."""
    first_work: float | None
    """Seconds until one worker worked again; None if none did."""
    all_work: float | None
    """Seconds until all workers worked again."""
    all_back: float | None
    """Seconds until all connections were made again."""
    errors: dict[str, int]
    """Errors that the callers got."""
    most_backends: int

    @property
    def violations(self) -> list[str]:
        """Return what must not happen, and did."""
        wanted = self.processes * self.connections
        bound = bounds(self.processes, self.away)
        found = []
        if self.all_back is None or self.most_backends != wanted:
            found.append(f"{self.most_backends} connections came back of {wanted}")
        if self.all_work is None:
            found.append("not all workers came back")
        if any(attempts > most for attempts, most in zip(self.while_away, bound.in_a_second, strict=False)):
            found.append(f"connects in each second at a server that is away: {self.while_away}")
        if sum(self.while_away[WARMUP:]) > bound.later:
            found.append(f"{sum(self.while_away[WARMUP:])} connects, after the first seconds, at a server that is away")
        if self.silence > bound.silence:
            found.append(f"no connect for {self.silence:.1f} s: all pause alike")
        if max(self.on_return) > bound.coming_back * self.connections:
            found.append(f"{max(self.on_return)} connects in one second when the server was back")
        if sum(self.on_return) > wanted + self.processes:
            found.append(f"{sum(self.on_return)} connects for {wanted} connections")
        return found

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        bound = bounds(self.processes, self.away)
        seen = ", ".join(f"{number:,} {name}" for name, number in sorted(self.errors.items())) or "no error"
        wanted = self.processes * self.connections
        yield "### Thundering herd"
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
            "The bounds come from simulated herds. Each simulated process has one retry thread, whose pauses are "
            f"random, below a maximum that doubles up to 5 s. While the server is away, the bounds are "
            f"{MARGIN} times the highest simulated figures."
        )
        yield ""
        yield (
            f"The first worker works again after {in_seconds(self.first_work)}, "
            f"the last after {in_seconds(self.all_work)}; all {wanted} connections are there after "
            f"{in_seconds(self.all_back)}. The callers, who wait {TIMEOUT:g} s, saw {seen}."
        )


def in_seconds(seconds: float | None) -> str:
    """Return seconds as text, or never."""
    return "never" if seconds is None else f"{seconds:.1f} s"


class CountingProxy(Proxy):
    """A proxy that counts connects."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.attempts: list[float] = []
        """Times of the connects, as readings of the monotonic clock."""

    def _connect(self, client: socket.socket) -> None:
        self.attempts.append(monotonic())
        super()._connect(client)

    def curve(self, since: float, until: float) -> list[int]:
        """Return the number of connects in each second of an interval."""
        seconds = Counter(int(attempt - since) for attempt in self.attempts if since <= attempt < until)
        return [seconds[second] for second in range(int(until - since) + 1)]


class HerdProcess:
    """One process of the herd, as its parent controls it."""

    def __init__(self, dsn: str, connections: int) -> None:
        command = [sys.executable, "-m", "tests.chaos.thundering_herd", str(connections)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "DATABASE_URL": dsn}
        )

    def wait(self) -> None:
        """Wait until the pool is full and the workers work."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "a process of the herd has ended"

    def leave(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def end(self) -> dict[str, Any]:
        """End the process; return its final report."""
        told: dict[str, Any] = json.loads(self._process.communicate(timeout=PATIENCE)[0])
        return told


def play(processes: int = 20, connections: int = 10, away: float = 10.0) -> HerdResult:
    """Stop the server of all processes, start it again, and count the connects."""
    with ExitStack() as stage:
        places = processes * connections + 20
        server = stage.enter_context(ClonedServer(settings={"max_connections": places}))
        proxy = stage.enter_context(CountingProxy(server.port))
        dsn = make_dsn(server.dsn, port=proxy.port, application_name=NAME)
        herd = [HerdProcess(dsn, connections) for _ in range(processes)]
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
        most, all_back = count_backends(server.dsn, processes * connections, back)
        looked = monotonic()
        reports = [member.end() for member in herd]
        attempts = [attempt for attempt in proxy.attempts if stopped <= attempt < back]
        began = min(attempts, default=stopped)
        again = [first_after(back, worker) for report in reports for worker in report["worked"]]
        return HerdResult(
            processes=processes,
            connections=connections,
            away=back - began,
            while_away=proxy.curve(began, back),
            silence=longest_silence(sorted(attempt - began for attempt in attempts)),
            on_return=proxy.curve(back, looked),
            first_work=min((in_seconds for in_seconds in again if in_seconds is not None), default=None),
            all_work=None if None in again else max(in_seconds for in_seconds in again if in_seconds is not None),
            all_back=all_back,
            errors=dict(sum((Counter(report["errors"]) for report in reports), Counter())),
            most_backends=most,
        )


def first_after(since: float, moments: list[float]) -> float | None:
    """Return the seconds until the first of some moments."""
    return min((in_seconds - since for in_seconds in moments if in_seconds >= since), default=None)


def count_backends(dsn: str, connections: int, since: float) -> tuple[int, float | None]:
    """Return the maximum number of backends, and the seconds until there were enough.

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
    """A worker that checks out again and again, and records when it succeeds."""

    def __init__(self, pool: ConnectionPool, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.errors: Counter[str] = Counter()
        self.worked: list[float] = []
        """Times of success, as readings of the monotonic clock, which all processes share."""
        self._pool = pool
        self._over = over

    def run(self) -> None:
        """Check out until the end."""
        while not self._over.wait(REST):
            try:
                with self._pool.connection() as conn, conn.cursor() as cursor:
                    cursor.execute("select 1")
            except (PoolError, psycopg2.Error) as error:
                self.errors[type(error).__name__] += 1
            else:
                self.worked.append(monotonic())


def main(dsn: str, connections: int) -> None:
    """Run one process of the herd."""
    over = threading.Event()
    unopened = ConnectionPool(connections, connections, dsn, timeout=TIMEOUT, open=False)
    with silence_logs(), closing(unopened) as pool:
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


AT_ONCE = 3
"""Connects of one process that are in progress when the server goes away."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds: the first and the last maximum of the retry thread's random pauses; the maximum doubles in between."""
NOTICED = 0.2
"""Seconds until each process notices the outage."""
SIMULATIONS = 2_000
"""Number of simulated herds."""
MARGIN = 1.25
"""Factor on the highest simulated figure: chance alone practically never exceeds it, three retry threads always do."""
WARMUP = 2
"""Seconds in which pauses are still short, so that the number of connects varies more than later."""


class Bounds(NamedTuple):
    """The upper bounds of a herd."""

    in_a_second: list[float]
    """Connects in each second while the server is away."""
    later: float
    """Connects in all, from the third second on."""
    coming_back: int
    """Processes whose retry thread succeeds in the same second once the server is back; without a margin."""
    silence: float
    """Seconds without a connect, from the third second on: longer if all processes paused alike."""


@cache
def bounds(processes: int, away: float) -> Bounds:
    """Return the bounds of a herd of so many processes, by simulation."""
    chance = random.Random(0)  # nosec B311
    seconds = int(away) + 1
    most, later, back, silence = [0] * seconds, 0, 0, 0.0
    for _ in range(SIMULATIONS):
        herd = [list(simulate(chance, away)) for _ in range(processes)]
        attempts = sorted(attempt for *tried, _ in herd for attempt in tried)
        curve = Counter(map(int, attempts))
        most = [max(most[second], curve[second]) for second in range(seconds)]
        later = max(later, sum(attempt >= WARMUP for attempt in attempts))
        back = max(back, *Counter(int(succeeded - away) for *_, succeeded in herd).values())
        silence = max(silence, longest_silence(attempts))
    return Bounds([number * MARGIN for number in most], later * MARGIN, back, silence * MARGIN)


def longest_silence(attempts: list[float]) -> float:
    """Return the longest time between two connects, from the third second on."""
    return max((later - sooner for sooner, later in pairwise(attempts) if sooner >= WARMUP), default=0.0)


def simulate(chance: random.Random, away: float) -> Iterator[float]:
    """Return the times of one process's connects, of which the last one succeeds."""
    now = chance.uniform(0, NOTICED)
    yield from (now,) * AT_ONCE
    pause = FIRST_PAUSE
    while now < away:
        now += chance.uniform(0, pause)
        yield now
        pause = min(LONGEST_PAUSE, 2 * pause)


if __name__ == "__main__":
    main(os.environ["DATABASE_URL"], int(sys.argv[1]))
