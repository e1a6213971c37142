"""An application on a pool: workers that write rows, and a record of each commit as the connections saw it."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions

from benchmarks.delay import Delay
from tests.chaos.checks import HolderCheck

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import psycopg


class Commit(Enum):
    """How far the commit of a piece of work has come."""

    UNTRIED = "nobody has asked for it"
    IN_DOUBT = "asked for, and the connection died before the answer"
    REFUSED = "asked for, and the server said no"
    DONE = "the server said yes"


class CurrentWork(threading.local):
    """The attempt that the calling thread works on."""

    attempt: Any = None


current = CurrentWork()


class RecordingConnection:
    """A connection that records each commit in the attempt of the calling thread.

    These records do not depend on what the pool or the application reports.
    """

    closed: Any

    def commit(self) -> None:
        """Commit, and record the result."""
        attempt = current.attempt
        if attempt is None:
            super().commit()  # type: ignore[misc]  # the driver's
            return
        attempt.commit = Commit.IN_DOUBT
        try:
            super().commit()  # type: ignore[misc]
            attempt.commit = Commit.DONE
        except BaseException:
            if not self.closed:
                attempt.commit = Commit.REFUSED
            raise
        finally:
            attempt.leaving = monotonic()  # what follows the commit is the pool's own time


class RecordingPsycopg2(RecordingConnection, psycopg2.extensions.connection):
    """A recording connection of psycopg2."""


class CommitRecording(Delay):
    """Makes a pool use recording connections, as `Delay` makes it use slow ones in the benchmarks."""

    def psycopg2_factory(self) -> type[psycopg2.extensions.connection]:
        """Return the class for psycopg2."""
        return RecordingPsycopg2

    def psycopg_class(self) -> type[psycopg.Connection[Any]]:
        """Return the class for psycopg_pool."""
        import psycopg

        class RecordingPsycopg(RecordingConnection, psycopg.Connection[Any]):
            """A recording connection of psycopg."""

        return RecordingPsycopg


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
    """Raised by the application inside a block, so that its work is rolled back."""


@dataclass
class Attempt:
    """One piece of work, as the application saw it; its commit, as the connection saw it."""

    number: int
    began: float
    acquired: float | None = None
    leaving: float | None = None
    """When the release began: after the body of the block, or after its commit."""
    ended: float | None = None
    stopped: bool = False
    """Whether the worker was stopped while it held the connection."""
    done: bool = False
    """Whether the body ended without an error, so that the block has to commit."""
    commit: Commit = Commit.UNTRIED
    committed: bool = False
    """Whether the block was left without an error, so that the application counts its work as committed."""
    error: str | None = None
    message: str = ""
    """The moment of the error, and its text."""

    def fail(self, error: Exception) -> None:
        """Record the error that the application gets."""
        self.error = code_of(error) or type(error).__name__
        if self.acquired is None:
            moment = "while it waited"
        elif not self.done:
            moment = "in the block"
        elif self.commit in {Commit.IN_DOUBT, Commit.REFUSED}:
            moment = "in the commit"
        else:
            moment = "at the release"
        self.message = f"{moment}: {text_of(error)}"


def code_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error, or None."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)


def text_of(error: BaseException | None) -> str:
    """Return the text of an error and its causes, with their SQLSTATEs."""
    return "" if error is None else f"{code_of(error) or ''} {error} {text_of(error.__cause__)}".strip()


class Application:
    """Workers on a pool, whose blocks commit.

    They run ``statement``; ``abandons`` makes them raise inside the block. `stop_at_hold` makes the holders of
    connections wait until `go_on`.
    """

    def __init__(self, new_block: Callable[[], AbstractContextManager[Any]], workers: int) -> None:
        self.statement = QUICK
        self.abandons = False
        self.attempts: list[Attempt] = []
        """Attempts that have ended."""
        self.current_attempts: dict[str, Attempt] = {}
        """The latest attempt of each worker."""
        self.asked: list[float] = []
        """When each block was requested, by a worker or by a fault."""
        self.violations: list[str] = []
        self._new_block = new_block
        self._holders = HolderCheck()
        self._numbers = count(1)
        self._over = threading.Event()
        self._pause = threading.Event()
        self._idle = threading.Semaphore(0)
        self._stop_at_hold = False
        self._go = threading.Event()
        self.threads = [threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(workers)]

    def start(self) -> None:
        """Start the workers."""
        for thread in self.threads:
            thread.start()

    def pause(self) -> None:
        """Let the workers finish their attempts, and rest."""
        self._pause.set()
        for _ in self.threads:
            self._idle.acquire()

    def resume(self) -> None:
        """Let resting workers continue."""
        self._pause.clear()

    def stop_at_hold(self) -> None:
        """Stop each worker that holds a connection, between two statements, from now on."""
        self._go.clear()
        self._stop_at_hold = True

    def go_on(self) -> None:
        """Let stopped workers continue."""
        self._stop_at_hold = False
        self._go.set()

    def stop(self, patience: float) -> int:
        """End all work; return how many workers hang."""
        self._over.set()
        self.go_on()
        self.resume()
        deadline = monotonic() + patience
        for thread in self.threads:
            thread.join(max(0.0, deadline - monotonic()))
        return sum(thread.is_alive() for thread in self.threads)

    def new_block(self) -> AbstractContextManager[Any]:
        """Request a block with a connection from the pool."""
        self.asked.append(monotonic())
        return self._new_block()

    def _work(self) -> None:
        while not self._over.wait(PAUSE):
            if self._pause.is_set():
                self._idle.release()
                while self._pause.is_set() and not self._over.is_set():
                    self._over.wait(PAUSE)
                continue
            current.attempt = attempt = Attempt(next(self._numbers), monotonic())
            self.current_attempts[threading.current_thread().name] = attempt
            self._attempt(attempt)

    def _attempt(self, attempt: Attempt) -> None:
        try:
            with self.new_block() as conn:
                attempt.acquired = monotonic()
                try:
                    with self._holders.hold(getattr(conn, "dbapi_connection", conn)):
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

    # Attempts in progress

    def waiting(self) -> list[Attempt]:
        """Return the attempts that wait for a connection."""
        return [each for each in [*self.current_attempts.values()] if each.acquired is None and each.ended is None]

    def holding(self) -> list[Attempt]:
        """Return the attempts whose block is running."""
        return [
            each for each in [*self.current_attempts.values()] if each.acquired is not None and each.leaving is None
        ]

    def stopped(self) -> list[Attempt]:
        """Return the attempts that hold a connection and are stopped."""
        return [each for each in self.holding() if each.stopped]

    def releasing(self) -> list[Attempt]:
        """Return the attempts whose release is in progress."""
        return [each for each in [*self.current_attempts.values()] if each.leaving is not None and each.ended is None]

    # Results

    def errors(self) -> Counter[str]:
        """Return the errors that the application got, by SQLSTATE or class name."""
        return Counter(attempt.error for attempt in self.attempts if attempt.error is not None)

    def in_doubt(self) -> int:
        """Return how many errors leave open whether the work was committed."""
        return sum(each.error is not None and each.commit is Commit.IN_DOUBT for each in self.attempts)

    def first_good(self, since: float) -> float | None:
        """Return the seconds from a time to the end of the first work that began after it and was committed."""
        ends = [each.ended for each in [*self.attempts] if each.committed and each.began >= since and each.ended]
        return min(ends) - since if ends else None

    def longest_wait(self) -> float:
        """Return the seconds of the longest checkout, whether it got a connection or not."""
        return max(((each.acquired or each.ended or 0.0) - each.began for each in self.attempts), default=0.0)

    def longest_release(self) -> float:
        """Return the seconds of the longest release, from the end of the body or of the commit."""
        return max((each.ended - each.leaving for each in self.attempts if each.ended and each.leaving), default=0.0)

    def longest_work(self) -> float:
        """Return the seconds of the longest work, from the request to the end."""
        return max((each.ended - each.began for each in self.attempts if each.ended), default=0.0)

    def check_commits(self, dsn: str) -> None:
        """Compare what the application was told with what the connections saw and what the database has."""
        with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
            cursor.execute("select id from work union select id from slow_work")
            stored = {number for (number,) in cursor.fetchall()}
        kept = [each for each in self.attempts if each.number in stored]
        lost = [each for each in self.attempts if each.committed and each.number not in stored]
        found = {
            "a connection had two holders": len(self._holders.violations),
            "reported as committed and lost": len(lost),
            "silently committed": sum(not each.done or each.commit is Commit.UNTRIED for each in kept),
            "committed and reported as failed": sum(
                each.error is not None and each.commit is not Commit.IN_DOUBT for each in kept
            ),
        }
        self.violations += [f"{what}: {number}" for what, number in found.items() if number]
