"""Faults of the application's process: forks, suspensions, and connections that are dropped without a release."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.chaos.runner import MAXCONN, TIMEOUT, WORKERS, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from tests.chaos.runner import FaultRun


CHILD_PATIENCE = 4.0


def forked_while_held(run: FaultRun) -> float:
    """Fork while connections are checked out."""
    run.wait_for(run.app.holding)
    return forked(run)


def forked_while_waited_for(run: FaultRun) -> float:
    """Fork while all connections are held, and the other workers wait."""
    run.hold_all()
    run.wait_for(lambda: len(run.app.waiting()) == WORKERS - MAXCONN)
    if run.ours is not None:
        pool = run.ours.pool
        run.wait_for(lambda: pool.stats().waiting == WORKERS - MAXCONN)
    return forked(run)


def forked(run: FaultRun) -> float:
    """Fork; the child works on the inherited pool, and ends by `os._exit`."""
    parents = run.backends()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            use_in_child(run, parents)
            os._exit(0)
        os._exit(1)
    run.app.go_on()
    deadline = monotonic() + CHILD_PATIENCE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if status:
                run.notes.append("the child failed")
            return monotonic()
        if monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            run.notes.append("the child hung")
            return monotonic()
        time.sleep(0.01)


def use_in_child(run: FaultRun, parents: Collection[int]) -> None:
    """Use the pool in the child; the answers must come from backends that are not the parent's."""
    with run.app.new_block() as conn, conn.cursor() as cursor:
        for number in range(20):
            cursor.execute("select %s::int, pg_backend_pid()", (number,))
            answer, backend = cursor.fetchone()
            assert answer == number
            assert backend not in parents


FORKS = {
    "forked-holding": Fault(
        "fork with connections checked out",
        "the child runs 20 statements on the pool that it has inherited, and ends by `os._exit`",
        forked_while_held,
        extra_backends=MAXCONN,  # the child's own
    ),
    "forked-waiting": Fault(
        "fork while threads wait for a connection",
        "the same, while all connections are held",
        forked_while_waited_for,
        extra_backends=MAXCONN,  # the child's own
    ),
}


SUSPEND = 'kill -STOP "$0"; sleep "$1"; kill -CONT "$0"'


def suspend(seconds: float) -> float:
    """Suspend this process; return a moment at which it was suspended."""
    began = monotonic()
    subprocess.run(["/bin/sh", "-c", SUSPEND, str(os.getpid()), str(seconds)], check=True)
    return began + seconds  # the shell sends the signal after a moment, which is far shorter


def suspended_while_held(run: FaultRun) -> float:
    """Suspend while half of the workers hold a connection, and the others wait, until after their timeout."""
    run.hold_all()
    return suspended(run, TIMEOUT + run.away)


def suspended_at_work(run: FaultRun) -> float:
    """Suspend in the middle of statements."""
    run.app.statement, before = "insert into work select %s from pg_sleep(0.05)", run.app.statement
    run.wait_for(lambda: run.in_state("active", "insert into work select"))
    mended = suspended(run, TIMEOUT + run.away)
    run.app.statement = before
    return mended


def suspended(run: FaultRun, seconds: float) -> float:
    """Suspend, let the workers finish, and take the suspension out of their times: the pool cannot work meanwhile."""
    still = suspend(seconds)
    ended = monotonic()
    run.app.go_on()
    run.app.pause()
    for attempt in run.app.attempts:
        if attempt.began < still < (attempt.acquired or attempt.ended or still):
            attempt.began += seconds
        if attempt.leaving and attempt.leaving < still < (attempt.ended or still):
            attempt.leaving += seconds
    run.app.resume()
    return ended


SUSPENSIONS = {
    "suspended-holding": Fault(
        "application suspended while all connections are held",
        "SIGSTOP for longer than the timeout, SIGCONT; times without the suspension",
        suspended_while_held,
        errors=MAXCONN,
    ),
    "suspended-working": Fault(
        "application suspended at work", "the same, in the middle of statements", suspended_at_work, errors=MAXCONN
    ),
}


class Cycle:
    """An object in a reference cycle, which only the garbage collector can free."""

    def __init__(self, kept: object) -> None:
        self.kept = kept
        self.itself = self


def entered_block(run: FaultRun) -> tuple[Any, Any]:
    """Enter a block without leaving it; return the block and its connection, in a transaction."""
    block = run.app.new_block()
    conn = block.__enter__()
    with conn.cursor() as cursor:
        cursor.execute("select 1")
    return block, conn


def rows(run: FaultRun) -> Iterator[int]:
    """Hold a connection between the rows of a generator."""
    with run.app.new_block() as conn, conn.cursor() as cursor:
        cursor.execute("select 1")
        yield 1
        yield 2


def begun(run: FaultRun) -> Iterator[int]:
    """Return a generator that has yielded one row."""
    generator = rows(run)
    next(generator)
    return generator


def drop_all(run: FaultRun, enter: Callable[[FaultRun], object]) -> float:
    """Drop every connection at once, and let the resting workers need them."""
    run.app.pause()
    kept: list[object] = [enter(run) for _ in range(MAXCONN)]
    run.app.resume()
    kept.clear()
    return monotonic()


def dropped(run: FaultRun) -> float:
    return drop_all(run, entered_block)


def dropped_in_cycles(run: FaultRun) -> float:
    drop_all(run, lambda run: Cycle(entered_block(run)))
    gc.collect()
    return monotonic()


def never_finished(run: FaultRun) -> float:
    drop_all(run, lambda run: Cycle(begun(run)))
    gc.collect()
    return monotonic()


def holders_die(run: FaultRun) -> float:
    """End threads that keep a connection in a `threading.local`, as frameworks do."""
    kept_here = threading.local()

    def hold_and_die() -> None:
        kept_here.entered_block = entered_block(run)

    run.app.pause()
    threads = [threading.Thread(target=hold_and_die, name=f"holder-{n}") for n in range(MAXCONN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.app.resume()
    return monotonic()


DROPS = {
    "dropped": Fault(
        "connections dropped without a release",
        "the last reference to each of the four is deleted",
        dropped,
        ours_alone=True,
    ),
    "dropped-in-cycles": Fault(
        "the same, in cycles", "the garbage collector finds all four", dropped_in_cycles, ours_alone=True
    ),
    "never-finished": Fault(
        "generators that are never finished",
        "the garbage collector closes four in the middle of a block",
        never_finished,
        ours_alone=True,
    ),
    "holders-died": Fault(
        "threads that end while they hold",
        "four threads, their connections in a `threading.local`",
        holders_die,
        ours_alone=True,
    ),
}
