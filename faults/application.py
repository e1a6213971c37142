"""An application on a pool: workers that write rows, and remember what they were told of each."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

TABLES = """
create table work (id int primary key);
create table slow_work (id int primary key);
create function pause() returns trigger language plpgsql as 'begin perform pg_sleep(0.4); return null; end';
create constraint trigger pause after insert on slow_work deferrable initially deferred
    for each row execute function pause();
"""
QUICK = "insert into work values (%s)"
SLOW_STATEMENT = "insert into work select %s from pg_sleep(0.4)"
SLOW_COMMIT = "insert into slow_work values (%s)"
PAUSE = 0.002
"""Seconds between two attempts of a worker."""


class Abandoned(Exception):  # noqa: N818 - the application's own, and no failure
    """What the application raises inside a block, to have its work rolled back."""


@dataclass
class Attempt:
    """One piece of work, as the application saw it."""

    number: int
    began: float
    acquired: float | None = None
    ended: float = 0.0
    committing: bool = False
    committed: bool = False
    error: str | None = None


class Application:
    """Workers on a pool.

    ``statement`` is what they run; ``abandons`` makes them raise inside the block. `stop_at_hold` lets those who hold a
    connection wait until `go_on`.
    """

    def __init__(self, borrow: Callable[[], AbstractContextManager[Any]], workers: int) -> None:
        self.statement = QUICK
        self.abandons = False
        self.attempts: list[Attempt] = []
        self.violations: list[str] = []
        self.borrow = borrow
        self._numbers = count(1)
        self._over = threading.Event()
        self._pause = threading.Event()
        self._idle = threading.Semaphore(0)
        self._stop_at_hold = False
        self._go = threading.Event()
        self.holding = 0
        self._holders: dict[int, int] = {}
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(workers)]

    def start(self) -> None:
        """Let them work."""
        for thread in self.threads:
            thread.start()

    def pause(self) -> None:
        """Let them finish what they are at, and rest."""
        self._pause.set()
        for _ in self.threads:
            self._idle.acquire()

    def resume(self) -> None:
        """Let those who rest go on."""
        self._pause.clear()

    def stop_at_hold(self) -> None:
        """From now on, whoever holds a connection stops between two statements."""
        self._go.clear()
        self._stop_at_hold = True

    def go_on(self) -> None:
        """Let them go on."""
        self._stop_at_hold = False
        self._go.set()

    def stop(self, patience: float) -> int:
        """End all work; how many workers hang."""
        self._over.set()
        self.go_on()
        self.resume()
        deadline = monotonic() + patience
        for thread in self.threads:
            thread.join(max(0.0, deadline - monotonic()))
        return sum(thread.is_alive() for thread in self.threads)

    def _work(self) -> None:
        while not self._over.wait(PAUSE):
            if self._pause.is_set():
                self._idle.release()
                while self._pause.is_set() and not self._over.is_set():
                    self._over.wait(PAUSE)
                continue
            self._attempt(Attempt(next(self._numbers), monotonic()))

    def _attempt(self, attempt: Attempt) -> None:
        try:
            with self.borrow() as conn:
                attempt.acquired = monotonic()
                self._own(conn)
                try:
                    self._use(conn, attempt)
                finally:
                    self._disown(conn)
        except Abandoned:
            pass
        except Exception as error:  # noqa: BLE001 - whatever the application gets to see is what is measured
            attempt.error = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or type(error).__name__
        attempt.ended = monotonic()
        self.attempts.append(attempt)

    def _use(self, conn: Any, attempt: Attempt) -> None:
        with conn.cursor() as cursor:
            cursor.execute(self.statement, (attempt.number,))
        if self._stop_at_hold:
            self._go.wait()
        if self.abandons:
            raise Abandoned
        attempt.committing = True
        conn.commit()
        attempt.committed = True

    def _own(self, conn: Any) -> None:
        key = id(getattr(conn, "dbapi_connection", conn))
        with self._lock:
            self.holding += 1
            self._holders[key] = self._holders.get(key, 0) + 1
            if self._holders[key] > 1:
                self.violations.append("a connection was lent to two")

    def _disown(self, conn: Any) -> None:
        key = id(getattr(conn, "dbapi_connection", conn))
        with self._lock:
            self.holding -= 1
            self._holders.pop(key, None)

    # What came of it

    def errors(self) -> Counter[str]:
        """What the application saw, by SQLSTATE or name."""
        return Counter(attempt.error for attempt in self.attempts if attempt.error is not None)

    def first_good(self, since: float) -> float | None:
        """Seconds from then to the end of the first work that began after it and was committed."""
        ends = [attempt.ended for attempt in self.attempts if attempt.committed and attempt.began >= since]
        return min(ends) - since if ends else None

    def longest_wait(self) -> float:
        """Seconds that a caller was inside of the pool, served or not, at most."""
        return max(((each.acquired or each.ended) - each.began for each in self.attempts), default=0.0)

    def longest_work(self) -> float:
        """Seconds from the request to the end of the work, at most."""
        return max((each.ended - each.began for each in self.attempts), default=0.0)

    def check_the_books(self, dsn: str) -> None:
        """Compare what the application was told with what the database has."""
        conn = psycopg2.connect(dsn)
        with conn, conn.cursor() as cursor:
            cursor.execute("select id from work union select id from slow_work")
            stored = {number for (number,) in cursor.fetchall()}
        conn.close()
        lost = {each.number for each in self.attempts if each.committed} - stored
        silently = {each.number for each in self.attempts if not each.committing} & stored
        if lost:
            self.violations.append(f"reported as committed and lost: {len(lost)}")
        if silently:
            self.violations.append(f"silently committed: {len(silently)}")
