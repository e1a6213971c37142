"""A thread of the stress test: whatever a program may do with a pool, by chance."""

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
from tests.chaos.books import INSERT, Word
from tests.chaos.owners import Owners

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool
    from tests.chaos.books import Books
    from tests.chaos.limits import Limits

WEIGHTS = {
    "check_out": 300,
    "hold": 200,
    "give_up": 200,
    "fail": 100,
    "borrow_by_hand": 100,
    "drop": 12,
    "drop_in_a_cycle": 4,
    "drop_a_generator": 4,
    "kill": 8,
    "resize": 8,
    "drain": 3,
    "check": 3,
}
"""How often each action is drawn, beside the others."""

TIMEOUT = 2.0
"""Seconds that a caller waits if it says nothing else."""
LONG_HOLD = 0.04
"""Seconds; the longest holds here pass them."""


NOTED = 0.05
"""Seconds beyond its timeout from which on a call is noted."""


class Late(NamedTuple):
    """A call that took longer than its timeout. Times are readings of the monotonic clock."""

    what: str
    """And its timeout."""
    asked: float
    due: float
    came: float


class Abandoned(Exception):  # noqa: N818 - the application's own, and no failure
    """Raised inside a block, to have its work rolled back."""


@dataclass(frozen=True)
class Shared:
    """What all borrowers have in common."""

    pool: ConnectionPool
    most: int
    """Connections that they may resize it to."""
    limits: Limits
    kill: Callable[[int], int]
    """Ends one of the pool's server processes, the so-and-so-many-th; how many it has ended."""
    books: Books
    leisure: float
    """Seconds that they rest between two actions, at most."""
    owners: Owners = field(default_factory=Owners)
    over: threading.Event = field(default_factory=threading.Event)


class Borrower(threading.Thread):
    """Draws one action after the other until it is told that it is over."""

    def __init__(self, shared: Shared, dice: random.Random) -> None:
        super().__init__(name="borrower", daemon=True)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        """What came of it: asked, served, committed, and so on, and each action."""
        self.late: list[Late] = []
        """Calls, served or not."""
        self._shared = shared
        self._pool = shared.pool
        self._books = shared.books
        self._owners = shared.owners
        self._dice = dice

    def run(self) -> None:
        """Do as it pleases."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while not self._shared.over.wait(self._dice.choice((0.0, self._dice.uniform(0, self._shared.leisure)))):
            [name] = self._dice.choices(names, weights)
            self.counts[name] += 1
            try:
                getattr(self, name)()
            except Exception as error:  # noqa: BLE001 - nothing but what the actions expect may come
                self.violations.append(f"{name}: {error!r}")

    # What it does with one connection

    def check_out(self) -> None:
        """Work a moment."""
        self._work(lambda: None)

    def hold(self) -> None:
        """Work, and think about it."""
        self._work(lambda: self._pause(0.05))

    def fail(self) -> None:
        """Raise inside the block, for which the work must not be there."""
        self._work(self._abandon)

    def give_up(self) -> None:
        """Have little patience."""
        self._work(lambda: None, timeout=self._dice.choice((0.0, 0.001, 0.01, 0.05)))

    def borrow_by_hand(self) -> None:
        """Take and give back, having committed or not; the connection may be given back to be closed."""
        number = self._books.open()
        conn = self._lend(number if self._chance(0.2) else None)
        if conn is None:
            return
        try:
            with self._losing(conn), self._owners.hold(conn):
                self._insert(conn, number)
                if self._chance(0.7):
                    self._books.say(number, Word.IN_DOUBT)
                    conn.commit()
                    self._books.say(number, Word.COMMITTED)
                    self.counts["committed by hand"] += 1
        finally:
            self._pool.putconn(conn, close=self._chance(0.02))

    def _work(self, think: Callable[[], None], timeout: float | None = None) -> None:
        """One piece of work in a block."""
        number = self._books.open()
        conn = None
        with self._asking(timeout) as asked:
            try:
                with self._pool.connection(timeout) as conn:
                    self._served(asked, timeout)
                    with self._owners.hold(conn):
                        self._insert(conn, number)
                        think()
                    self._books.say(number, Word.IN_DOUBT)
                self._books.say(number, Word.COMMITTED)
                self.counts["committed"] += 1
            except Abandoned:
                pass
            except psycopg2.Error as error:
                if conn is None:
                    raise
                self._lost(conn, error)

    def _chance(self, of: float) -> bool:
        return self._dice.random() < of

    def _insert(self, conn: connection, number: int) -> None:
        with conn.cursor() as cursor:
            cursor.execute(INSERT, (number,))

    def _pause(self, most: float) -> None:
        self._shared.over.wait(self._dice.uniform(0, most))

    def _abandon(self) -> None:
        raise Abandoned

    # Connections that it drops

    def drop(self) -> None:
        """Forget to give it back: the last reference goes."""
        self._drop_by(lambda _conn: None)

    def drop_in_a_cycle(self) -> None:
        """Forget it in a cycle, which the garbage collector finds."""
        self._drop_by(_tie_a_knot)
        gc.collect()

    def drop_a_generator(self) -> None:
        """Never finish a generator that holds one, in a cycle: the collector leaves its block."""
        knot: list[Iterator[None]] = []
        with self._asking(None) as asked:
            knot.append(self._generate(asked, knot))
            next(knot[0])
        del knot
        gc.collect()

    def _generate(self, asked: float, knot: list[Iterator[None]]) -> Iterator[None]:
        with self._pool.connection() as conn, self._owners.hold(conn):
            self._served(asked, None)
            with self._losing(conn):
                self._insert(conn, self._books.open())
            yield
            knot.clear()  # never, but for this it is kept

    def _drop_by(self, leave: Callable[[connection], None]) -> None:
        conn = self._lend(None)
        if conn is not None:
            self._owners.hold_until_gone(conn)
            with self._losing(conn):
                self._insert(conn, self._books.open())
            leave(conn)

    # What it does with the whole pool

    def kill(self) -> None:
        """End one of its server processes."""
        self.counts["killed"] += self._shared.kill(self._dice.randrange(self._shared.most))

    def resize(self) -> None:
        """Change its limits."""
        most = self._dice.choice((self._shared.most, self._dice.randint(1, self._shared.most)))
        with self._shared.limits.change(most):
            self._pool.resize(self._dice.randint(0, most), most)

    def drain(self) -> None:
        """Replace all."""
        self._pool.drain()

    def check(self) -> None:
        """Ask all that are idle."""
        self._pool.check()

    # What came of it

    def _lend(self, key: object) -> connection | None:
        conn = None
        with self._asking(None) as asked:
            conn = self._pool.getconn(key)
            self._served(asked, None)
        return conn

    @contextmanager
    def _asking(self, timeout: float | None) -> Iterator[float]:
        """Ask for a connection, at the moment given; being refused in time is all right."""
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
        """Use a connection, whose server process may be killed meanwhile."""
        try:
            yield
        except psycopg2.Error as error:
            self._lost(conn, error)

    def _lost(self, conn: connection, error: BaseException) -> None:
        self.counts["lost"] += 1
        if not conn.closed:
            self.violations.append(f"on a living connection: {error!r}")


def _tie_a_knot(conn: Any) -> None:
    knot = [conn]
    knot.append(knot)
