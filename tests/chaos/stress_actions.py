"""A thread of the stress test, and the actions that it draws at random."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2

from otel_pgpool import PoolTimeout, TooManyRequests
from tests.chaos.application import Abandoned
from tests.chaos.checks import INSERT, HolderCheck, Result

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool
    from tests.chaos.checks import CommitLog
    from tests.chaos.monitors import LimitMonitor


WEIGHTS = {
    "check_out": 300,
    "hold": 200,
    "give_up": 200,
    "fail": 100,
    "getconn_putconn": 100,
    "drop": 12,
    "drop_in_a_cycle": 4,
    "drop_a_generator": 4,
    "kill": 8,
    "resize": 8,
    "drain": 3,
    "check": 3,
}
"""The weight of each action in the draw."""

TIMEOUT = 2.0
"""Seconds that a caller waits by default."""
LONG_HOLD = 0.04
"""Seconds; the longest holds of these actions exceed them."""


NOTED = 0.05
"""Seconds beyond its timeout from which a call is recorded."""


class Late(NamedTuple):
    """A call that took longer than its timeout. Times are readings of the monotonic clock."""

    what: str
    """The result of the call, and its timeout."""
    asked: float
    due: float
    came: float


@dataclass(frozen=True)
class Shared:
    """What all threads share."""

    pool: ConnectionPool
    most: int
    """The highest limit of connections."""
    limits: LimitMonitor
    kill: Callable[[int], int]
    """Ends one of the pool's backends, by its number; returns how many were ended."""
    commit_log: CommitLog
    longest_rest: float
    """Seconds between two actions, at most."""
    holders: HolderCheck = field(default_factory=HolderCheck)
    over: threading.Event = field(default_factory=threading.Event)


class StressThread(threading.Thread):
    """Runs one random action after the other until the lap is over."""

    def __init__(self, shared: Shared, rng: random.Random) -> None:
        super().__init__(name="stress", daemon=True)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        """How often each action was run, and each result occurred."""
        self.late: list[Late] = []
        """Calls that were late, whether they got a connection or not."""
        self._shared = shared
        self._pool = shared.pool
        self._commit_log = shared.commit_log
        self._holders = shared.holders
        self._rng = rng

    def run(self) -> None:
        """Run random actions."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while not self._shared.over.wait(self._rng.choice((0.0, self._rng.uniform(0, self._shared.longest_rest)))):
            [name] = self._rng.choices(names, weights)
            self.counts[name] += 1
            try:
                getattr(self, name)()
            except Exception as error:  # noqa: BLE001 - the actions handle the errors that may occur
                self.violations.append(f"{name}: {error!r}")

    # Actions on one connection

    def check_out(self) -> None:
        """Work without a pause."""
        self._work(lambda: None)

    def hold(self) -> None:
        """Work, and hold the connection for a while."""
        self._work(lambda: self._pause(0.05))

    def fail(self) -> None:
        """Raise inside the block; the work must not be stored."""
        self._work(self._abandon)

    def give_up(self) -> None:
        """Work with a short timeout."""
        self._work(lambda: None, timeout=self._rng.choice((0.0, 0.001, 0.01, 0.05)))

    def getconn_putconn(self) -> None:
        """Use `getconn` and `putconn`, with or without a commit, with or without closing."""
        number = self._commit_log.open()
        conn = self._getconn(number if self._chance(0.2) else None)
        if conn is None:
            return
        try:
            with self._losing(conn), self._holders.hold(conn):
                self._insert(conn, number)
                if self._chance(0.7):
                    self._commit_log.record(number, Result.IN_DOUBT)
                    conn.commit()
                    self._commit_log.record(number, Result.COMMITTED)
                    self.counts["committed by hand"] += 1
        finally:
            self._pool.putconn(conn, close=self._chance(0.02))

    def _work(self, think: Callable[[], None], timeout: float | None = None) -> None:
        """Do one piece of work in a block."""
        number = self._commit_log.open()
        conn = None
        with self._asking(timeout) as asked:
            try:
                with self._pool.connection(timeout) as conn:
                    self._served(asked, timeout)
                    with self._holders.hold(conn):
                        self._insert(conn, number)
                        think()
                    self._commit_log.record(number, Result.IN_DOUBT)
                self._commit_log.record(number, Result.COMMITTED)
                self.counts["committed"] += 1
            except Abandoned:
                pass
            except psycopg2.Error as error:
                if conn is None:
                    raise
                self._lost(conn, error)

    def _chance(self, of: float) -> bool:
        return self._rng.random() < of

    def _insert(self, conn: connection, number: int) -> None:
        with conn.cursor() as cursor:
            cursor.execute(INSERT, (number,))

    def _pause(self, most: float) -> None:
        self._shared.over.wait(self._rng.uniform(0, most))

    def _abandon(self) -> None:
        raise Abandoned

    # Actions that drop a connection

    def drop(self) -> None:
        """Drop the last reference to a connection."""
        self._drop_by(lambda _conn: None)

    def drop_in_a_cycle(self) -> None:
        """Drop a connection in a cycle, which the garbage collector finds."""
        self._drop_by(_put_in_cycle)
        gc.collect()

    def drop_a_generator(self) -> None:
        """Drop a generator that holds a connection, in a cycle: the garbage collector ends its block."""
        cycle: list[Iterator[None]] = []
        with self._asking(None) as asked:
            cycle.append(self._generate(asked, cycle))
            next(cycle[0])
        del cycle
        gc.collect()

    def _generate(self, asked: float, cycle: list[Iterator[None]]) -> Iterator[None]:
        with self._pool.connection() as conn, self._holders.hold(conn):
            self._served(asked, None)
            with self._losing(conn):
                self._insert(conn, self._commit_log.open())
            yield
            cycle.clear()  # never reached: keeps the cycle alive

    def _drop_by(self, leave: Callable[[connection], None]) -> None:
        conn = self._getconn(None)
        if conn is not None:
            self._holders.hold_until_collected(conn)
            with self._losing(conn):
                self._insert(conn, self._commit_log.open())
            leave(conn)

    # Actions on the whole pool

    def kill(self) -> None:
        """End one of the pool's backends."""
        self.counts["killed"] += self._shared.kill(self._rng.randrange(self._shared.most))

    def resize(self) -> None:
        """Change the limits."""
        most = self._rng.choice((self._shared.most, self._rng.randint(1, self._shared.most)))
        with self._shared.limits.change(most):
            self._pool.resize(self._rng.randint(0, most), most)

    def drain(self) -> None:
        """Replace all connections."""
        self._pool.drain()

    def check(self) -> None:
        """Check all idle connections."""
        self._pool.check()

    # Results

    def _getconn(self, key: object) -> connection | None:
        conn = None
        with self._asking(None) as asked:
            conn = self._pool.getconn(key)
            self._served(asked, None)
        return conn

    @contextmanager
    def _asking(self, timeout: float | None) -> Iterator[float]:
        """Request a connection; a timeout or a refusal in time is no violation."""
        self.counts["asked"] += 1
        asked = monotonic()
        try:
            yield asked
        except PoolTimeout:
            self._came("timeouts", asked, timeout)
        except TooManyRequests:
            self._came("too many requests", asked, timeout)

    def _served(self, asked: float, timeout: float | None) -> None:
        self._came("served", asked, timeout)

    def _came(self, what: str, asked: float, timeout: float | None) -> None:
        self.counts[what] += 1
        patience = TIMEOUT if timeout is None else timeout
        due, now = asked + patience, monotonic()
        if now - due > NOTED:
            self.late.append(Late(f"{what}, of {patience:g} s", asked, due, now))

    @contextmanager
    def _losing(self, conn: connection) -> Iterator[None]:
        """Use a connection whose backend may be killed."""
        try:
            yield
        except psycopg2.Error as error:
            self._lost(conn, error)

    def _lost(self, conn: connection, error: BaseException) -> None:
        self.counts["lost"] += 1
        if not conn.closed:
            self.violations.append(f"on a living connection: {error!r}")


def _put_in_cycle(conn: Any) -> None:
    cycle = [conn]
    cycle.append(cycle)
