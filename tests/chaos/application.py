"""An application on a pool: workers that write rows, and remember what they were told of each."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.chaos.commits import Commit, here
from tests.chaos.owners import Owners

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
    """One piece of work, as the application saw it; but for the commit, of which its connection tells."""

    number: int
    began: float
    acquired: float | None = None
    leaving: float | None = None
    """When the block had nothing left to do but to give the connection back: after its body, or its commit."""
    ended: float | None = None
    stopped: bool = False
    """Whether it was made to stop while it held."""
    done: bool = False
    """Whether the body came to its end, so that the block has to commit."""
    commit: Commit = Commit.UNTRIED
    committed: bool = False
    """Whether the application may take it for that: the block was left without an error."""
    error: str | None = None
    told: str = ""
    """At what moment the error came, and what it said."""

    def fail(self, error: Exception) -> None:
        """Remember what the application gets to see."""
        self.error = code_of(error) or type(error).__name__
        if self.acquired is None:
            moment = "while it waited"
        elif not self.done:
            moment = "in the block"
        elif self.commit in {Commit.IN_DOUBT, Commit.REFUSED}:
            moment = "in the commit"
        else:
            moment = "at the return"
        self.told = f"{moment}: {text_of(error)}"


def code_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error, or None."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)


def text_of(error: BaseException | None) -> str:
    """Return the text of an error and its causes, with their SQLSTATEs."""
    return "" if error is None else f"{code_of(error) or ''} {error} {text_of(error.__cause__)}".strip()


class Application:
    """Workers on a pool, whose blocks commit.

    ``statement`` is what they run; ``abandons`` makes them raise inside the block. `stop_at_hold` lets those who hold a
    connection wait until `go_on`.
    """

    def __init__(self, borrow: Callable[[], AbstractContextManager[Any]], workers: int) -> None:
        self.statement = QUICK
        self.abandons = False
        self.attempts: list[Attempt] = []
        """Those that have ended."""
        self.at_work: dict[str, Attempt] = {}
        """The latest of each worker."""
        self.asked: list[float] = []
        """When a block was asked for, by whomsoever."""
        self.violations: list[str] = []
        self._borrow = borrow
        self._owners = Owners()
        self._numbers = count(1)
        self._over = threading.Event()
        self._pause = threading.Event()
        self._idle = threading.Semaphore(0)
        self._stop_at_hold = False
        self._go = threading.Event()
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

    def borrow(self) -> AbstractContextManager[Any]:
        """Ask the pool for a connection, for a block."""
        self.asked.append(monotonic())
        return self._borrow()

    def _work(self) -> None:
        while not self._over.wait(PAUSE):
            if self._pause.is_set():
                self._idle.release()
                while self._pause.is_set() and not self._over.is_set():
                    self._over.wait(PAUSE)
                continue
            here.attempt = attempt = Attempt(next(self._numbers), monotonic())
            self.at_work[threading.current_thread().name] = attempt
            self._attempt(attempt)

    def _attempt(self, attempt: Attempt) -> None:
        try:
            with self.borrow() as conn:
                attempt.acquired = monotonic()
                try:
                    with self._owners.hold(getattr(conn, "dbapi_connection", conn)):
                        self._use(conn, attempt)
                finally:
                    attempt.leaving = monotonic()
            attempt.committed = True
        except Abandoned:
            pass
        except Exception as error:  # noqa: BLE001 - whatever the application gets to see is what is measured
            attempt.fail(error)
        attempt.ended = monotonic()
        self.attempts.append(attempt)

    def _use(self, conn: Any, attempt: Attempt) -> None:
        with conn.cursor() as cursor:
            cursor.execute(self.statement, (attempt.number,))
        if self._stop_at_hold:
            attempt.stopped = True
            self._go.wait()
        if self.abandons:
            raise Abandoned
        attempt.done = True

    # What they are at

    def waiting(self) -> list[Attempt]:
        """Those that have asked for a connection."""
        return [each for each in [*self.at_work.values()] if each.acquired is None and each.ended is None]

    def holding(self) -> list[Attempt]:
        """Those that are inside of the block."""
        return [each for each in [*self.at_work.values()] if each.acquired is not None and each.leaving is None]

    def stopped(self) -> list[Attempt]:
        """Of these, the ones that wait until they may go on."""
        return [each for each in self.holding() if each.stopped]

    def returning(self) -> list[Attempt]:
        """Those that are on their way out of it."""
        return [each for each in [*self.at_work.values()] if each.leaving is not None and each.ended is None]

    # What came of it

    def errors(self) -> Counter[str]:
        """Return the errors that the application got, by SQLSTATE or class name."""
        return Counter(attempt.error for attempt in self.attempts if attempt.error is not None)

    def in_doubt(self) -> int:
        """How many of these leave open whether the work was committed."""
        return sum(each.error is not None and each.commit is Commit.IN_DOUBT for each in self.attempts)

    def first_good(self, since: float) -> float | None:
        """Seconds from then to the end of the first work that began after it and was committed."""
        ends = [each.ended for each in [*self.attempts] if each.committed and each.began >= since and each.ended]
        return min(ends) - since if ends else None

    def longest_wait(self) -> float:
        """Seconds that a caller was inside of the pool, served or not, at most."""
        return max(((each.acquired or each.ended or 0.0) - each.began for each in self.attempts), default=0.0)

    def longest_return(self) -> float:
        """Seconds from the end of the body, or of the commit, to the end of the block, at most."""
        return max((each.ended - each.leaving for each in self.attempts if each.ended and each.leaving), default=0.0)

    def longest_work(self) -> float:
        """Seconds from the request to the end of the work, at most."""
        return max((each.ended - each.began for each in self.attempts if each.ended), default=0.0)

    def check_the_books(self, dsn: str) -> None:
        """Compare what the application was told with what the connections saw and what the database has."""
        with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
            cursor.execute("select id from work union select id from slow_work")
            stored = {number for (number,) in cursor.fetchall()}
        kept = [each for each in self.attempts if each.number in stored]
        lost = [each for each in self.attempts if each.committed and each.number not in stored]
        found = {
            "a connection was lent to two": len(self._owners.violations),
            "reported as committed and lost": len(lost),
            "silently committed": sum(not each.done or each.commit is Commit.UNTRIED for each in kept),
            "committed and reported as failed": sum(
                each.error is not None and each.commit is not Commit.IN_DOUBT for each in kept
            ),
        }
        self.violations += [f"{what}: {number}" for what, number in found.items() if number]
