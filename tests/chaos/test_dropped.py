"""Connections that the program does not release: dropped, collected, held at the interpreter's exit or at close()."""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
import pytest

from benchmarks.row import OURS
from otel_pgpool import PoolClosed
from tests.chaos.process import DROPS
from tests.chaos.runner import play
from tests.support.database import ask
from tests.support.pools import pool_threads
from tests.support.scripts import run
from tests.support.telemetry import PATIENCE, Signals, until
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from psycopg2.extensions import connection


@pytest.mark.parametrize("name", DROPS)
def test_the_application_goes_on(name: str) -> None:
    """The application sees no error, and the slots of dropped connections are free again at once."""
    outcome = play(DROPS[name], OURS, 0.0)
    assert (outcome.failures(), outcome.errors) == ([], {})


def test_a_dead_threads_connection_that_somebody_keeps(dsn: str) -> None:
    """A hold outlasts its thread while another object keeps the connection; its thread is reported as ended."""
    with Signals() as signals, signals.pool(1, 1, dsn) as pool:
        kept: list[connection] = []
        in_thread(lambda: kept.append(pool.getconn()), name="the late").result(PATIENCE)
        until(lambda: [holder.thread for holder in pool.holders()] == ["the late (ended)"])
        assert pool.stats().used == 1
        assert ask(kept[0], "select 1") == 1
        pool.putconn(kept.pop())
        assert (pool.stats().used, pool.stats().idle) == (0, 1)
        assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "released"
        assert signals.live() == []


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_close_with_waiters_and_holders(dsn: str) -> None:
    """Waiters get an error at once, holders finish and commit, and no span, thread, descriptor or session is left."""
    descriptors = open_descriptors()
    enough = threading.Event()
    with Signals() as signals:
        with signals.pool(2, 4, dsn, timeout=PATIENCE, long_hold=0.02) as pool:

            def hold() -> int:
                with pool.connection() as conn:
                    found = ask(conn, "select 42")
                    enough.wait(PATIENCE)
                    return int(found)

            def wait() -> float:
                with pytest.raises(PoolClosed):
                    pool.getconn()
                return monotonic()

            holders = [in_thread(hold) for _ in range(4)]
            until(lambda: pool.stats().used == 4)
            waiters = [in_thread(wait) for _ in range(32)]
            until(lambda: pool.stats().waiting == 32)
            began = monotonic()
            closing = in_thread(pool.close, PATIENCE)
            assert max(waiter.result(PATIENCE) for waiter in waiters) - began < PATIENCE / 4
            assert not closing.done()
            enough.set()
            assert [holder.result(PATIENCE) for holder in holders] == [42] * 4
            closing.result(PATIENCE)
            stats = pool.stats()
            assert (stats.size, stats.used, stats.idle, stats.waiting, stats.connecting) == (0, 0, 0, 0, 0)
            assert stats.errors == 32
        assert signals.live() == []
        assert len(signals.named("pool.checkout")) == 36
    assert pool_threads() == []
    until(lambda: open_descriptors() <= descriptors)


EXITING = """
import atexit, os, sys, threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
from otel_pgpool import ConnectionPool

pool = ConnectionPool(1, 2, os.environ["DATABASE_URL"], application_name="exiting", timeout=60)

def rows():
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute("select 1")
        yield cursor.fetchone()

class Knot:
    def __init__(self, **kept):
        self.kept, self.itself = kept, self

class Returner:
    def __init__(self):
        self.conn = pool.getconn()
    def __del__(self):
        pool.putconn(self.conn)

def in_a_daemon(work):
    threading.Thread(target=work, daemon=True).start()

def hold(reached):
    with pool.connection() as conn:
        conn.cursor().execute("select 1")
        reached.set()
        threading.Event().wait()
"""

EXITS = {
    "a connection checked out": "conn = pool.getconn()",
    "a generator": "generator = rows(); next(generator)",
    "a generator in a cycle": "generator = rows(); next(generator); Knot(generator=generator); del generator",
    "a connection in a cycle": "Knot(conn=pool.getconn())",
    "a finalizer that returns": "returner = Returner()",
    "a finalizer in a cycle": "Knot(returner=Returner())",
    "a daemon that holds": "reached = threading.Event(); in_a_daemon(lambda: hold(reached)); reached.wait()",
    "a daemon that waits": "conns = [pool.getconn(), pool.getconn()]; in_a_daemon(pool.getconn)\n"
    "while not pool.stats().waiting: pass",
    "a checkout at exit": "atexit.register(lambda: pool.putconn(pool.getconn()))",
    "close at exit": "conn = pool.getconn(); atexit.register(pool.close, 0.1)",
    "a pool that is closed": "conn = pool.getconn(); pool.close(0)",
}


@pytest.mark.parametrize("what", EXITS)
def test_interpreter_exit(dsn: str, what: str) -> None:
    """A program with open checkouts ends without output, and so do its sessions."""
    ended = run(EXITING + EXITS[what], DATABASE_URL=dsn)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    admin = psycopg2.connect(dsn)
    admin.autocommit = True
    until(lambda: not ask(admin, "select count(*) from pg_stat_activity where application_name = 'exiting'"))
    admin.close()


def test_exit_from_inside_a_block(dsn: str) -> None:
    """If a program exits inside a block, its work is rolled back, and it ends with its own status."""
    ended = run(
        f"{EXITING}\nwith pool.connection() as conn:\n    conn.cursor().execute('select 1')\n    sys.exit(3)",
        DATABASE_URL=dsn,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "")
