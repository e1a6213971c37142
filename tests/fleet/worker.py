"""One worker process of the real fleet: a pool of its own, and checkouts at random moments."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otel_pgpool import ConnectionPool
from tests.fleet.scenarios import FLOODERS, Event, Fleet

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from psycopg2.extensions import connection

THREADS = 16
"""Of one worker, for its checkouts: more than wait at any moment while each waits for the whole timeout."""
MINCONN = 1


@dataclass(frozen=True)
class Order:
    """What one worker is to do."""

    number: int
    seed: str
    dsn: str
    fleet: Fleet
    event: Event
    """`Event.LEAK` or `Event.FLOOD` for what it does from SIGUSR1 on; `Event.NONE` for a good one."""
    disturbance: float
    """Seconds that a flood lasts."""


@dataclass
class Report:
    """What one worker did. Times are of the machine's monotonic clock."""

    number: int
    ends: list[float] = field(default_factory=list)
    """When each checkout that served was done."""
    waits: list[float] = field(default_factory=list)
    """How long each of them waited for its connection."""
    failed: dict[str, int] = field(default_factory=dict)
    cpu: float = 0.0
    """Seconds of CPU from the start of the load to its end."""


def run(order: Order, pipe: Connection) -> None:
    """Work from the moment that the driver sends until SIGTERM; then close the pool and send the `Report`."""
    logging.disable()  # the driver prints one line for each scenario
    stop, disturb = threading.Event(), threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver ends its workers
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: disturb.set())
    with ConnectionPool(MINCONN, order.fleet.maxconn, order.dsn, name="fleet", timeout=order.fleet.timeout) as pool:
        pipe.send("ready")
        worker = Worker(order, pool)
        disturber = threading.Thread(target=worker.disturb, args=(disturb, stop), daemon=True)
        if order.event is not Event.NONE:
            disturber.start()
        begin = pipe.recv()
        stop.wait(max(0.0, begin - time.monotonic()))
        before = _cpu()
        worker.work(stop)
        worker.report.cpu = _cpu() - before
    pipe.send(worker.report)
    pipe.close()
    os._exit(0)  # what leaks is not waited for


class Worker:
    """The checkouts of one process."""

    def __init__(self, order: Order, pool: ConnectionPool[connection]) -> None:
        self.report = Report(order.number)
        self._order = order
        self._pool = pool
        self._rng = random.Random(order.seed)
        self._leaked: list[connection] = []

    def work(self, stop: threading.Event) -> None:
        """Begin checkouts at the moments of a Poisson process; at the end, finish those that have begun."""
        moment = time.monotonic()
        with ThreadPoolExecutor(THREADS) as threads:
            while True:
                moment += self._rng.expovariate(self._order.fleet.arrivals)
                if stop.wait(max(0.0, moment - time.monotonic())):
                    return
                threads.submit(self.check_out, self._rng.expovariate(1 / self._order.fleet.hold), time.monotonic())

    def check_out(self, hold: float, asked: float) -> None:
        """Hold a connection once."""
        try:
            with self._pool.connection() as conn:
                wait = time.monotonic() - asked
                with conn.cursor() as cursor:
                    cursor.execute("select pg_sleep(%s)", (hold,))
        except Exception as error:  # noqa: BLE001 - each is counted by its name
            name = type(error).__name__
            self.report.failed[name] = self.report.failed.get(name, 0) + 1
        else:
            self.report.waits.append(wait)
            self.report.ends.append(time.monotonic())

    def disturb(self, begin: threading.Event, stop: threading.Event) -> None:
        """Leak or flood once told to."""
        begin.wait()
        if self._order.event is Event.LEAK:
            self._leak()
            return
        end = time.monotonic() + self._order.disturbance
        seeds = [f"{self._order.seed}-{number}" for number in range(FLOODERS)]
        flooders = [threading.Thread(target=self._flood, args=(seed, end, stop), daemon=True) for seed in seeds]
        for flooder in flooders:
            flooder.start()

    def _leak(self) -> None:
        """Check out all connections, begin a transaction in each, and never return them."""
        for _ in range(self._order.fleet.maxconn):
            conn = self._pool.getconn()
            self._leaked.append(conn)
            with conn.cursor() as cursor:
                cursor.execute("select 1")

    def _flood(self, seed: str, end: float, stop: threading.Event) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end and not stop.is_set():
            self.check_out(rng.expovariate(1 / self._order.fleet.hold), time.monotonic())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
