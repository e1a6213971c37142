"""A forked child has a pool of its own and never touches its parent's sessions."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import PoolError
from tests.support.database import IN_TRANSACTION, ask
from tests.support.forked_pools import DEEDS, end_by_putconn_key, states
from tests.support.internals import core_of
from tests.support.pools import fill, make, pid_of_a_checkout
from tests.support.processes import in_child
from tests.support.scripts import run_program
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool


pytestmark = pytest.mark.usefixtures("fork")


def test_child_has_a_backend_of_its_own(dsn: str) -> None:
    """The child's checkouts are served by sessions of the child's; the parent's go on."""
    with make(1, 2, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 2)
        child = int(in_child(lambda: pid_of_a_checkout(pool)))
        assert child not in pids
        assert sorted(fill(pool, 2)) == sorted(pids)


def test_child_sees_its_own_levels(dsn: str) -> None:
    """In the child nothing is out, nothing waits, and what it inherited is told as left behind."""
    with make(2, 3, dsn) as pool:
        held = pool.getconn()

        def levels() -> Any:
            stats = pool.stats()
            return stats.used, stats.waiting, stats.discarded.get("forked"), pool.holders(), pool.name

        assert in_child(levels) == str((0, 0, 2, [], pool.name))
        assert pool.stats().used == 1
        assert pool.stats().discarded == {}
        pool.putconn(held)


def end_by_drain(pool: ConnectionPool, held: connection) -> None:
    pool.drain()
    pool.check()
    pool.resize(0, 1)


def end_by_close(pool: ConnectionPool, held: connection) -> None:
    pool.close(0)


@pytest.mark.parametrize(
    "deed", [*(each for each in DEEDS if each is not end_by_putconn_key), end_by_drain, end_by_close]
)
def test_child_does_not_touch_the_parents_sessions(
    dsn: str, admin: connection, deed: Callable[[ConnectionPool, connection], None]
) -> None:
    """Whatever the child does, the server hears nothing on the parent's sockets, and a transaction goes on."""
    with make(2, 3, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 2)
        held = pool.getconn()
        ask(held, "create temporary table of_the_parent ()")
        before = states(admin, pids)
        assert in_child(lambda: deed(pool, held)) == "None"
        assert states(admin, pids) == before
        assert held.info.transaction_status == IN_TRANSACTION
        assert ask(held, "select to_regclass('of_the_parent')") == "of_the_parent"
        held.commit()
        pool.putconn(held)
        assert sorted(fill(pool, 2)) == sorted(pids)


@pytest.mark.parametrize("raises", [False, True])
def test_block_across_a_fork(dsn: str, admin: connection, raises: bool) -> None:
    """The child leaves a block that its parent entered: neither commit nor rollback, and nothing joins its pool."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        block = pool.connection()
        with block as conn:
            pid = ask(conn, "select pg_backend_pid()")
            ask(conn, "create temporary table of_the_parent ()")
            before = states(admin, [pid])

            def leave() -> int:
                error = ValueError("of the child") if raises else None
                block.__exit__(type(error) if error else None, error, None)
                return pid_of_a_checkout(pool)

            assert int(in_child(leave)) != pid
            assert states(admin, [pid]) == before
            assert ask(conn, "select to_regclass('of_the_parent')") == "of_the_parent"
        assert fill(pool, 1) == [pid]


def test_second_putconn_in_the_child(dsn: str) -> None:
    """Strangers stay strangers in the child."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        fill(pool, 1)

        def twice() -> str:
            conn = pool.getconn()
            pool.putconn(conn)
            with pytest.raises(PoolError):
                pool.putconn(conn)
            return "refused"

        assert in_child(twice) == "refused"


def test_fork_while_others_are_at_work(dsn: str) -> None:
    """A fork at any moment: locks, waiters and connectors of the parent's threads do not exist in the child."""
    stop = threading.Event()
    with make(1, 2, dsn, timeout=PATIENCE) as pool:

        def work() -> None:
            while not stop.is_set():
                conn = pool.getconn()
                pool.putconn(conn, close=True)

        workers = [in_thread(work) for _ in range(4)]
        try:
            for _ in range(10):
                assert int(in_child(lambda: pid_of_a_checkout(pool))) > 0
        finally:
            stop.set()
        for worker in workers:
            worker.result(PATIENCE)


def test_waiter_of_the_parent_is_served(dsn: str) -> None:
    """A fork while somebody waits: the parent's waiter gets the parent's connection."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().waiting == 1)
        assert int(in_child(lambda: pid_of_a_checkout(pool))) != held.info.backend_pid
        pool.putconn(held)
        pool.putconn(waiting.result(PATIENCE))


def test_grandchild(dsn: str) -> None:
    """A child of the child, too."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pid = fill(pool, 1)[0]

        def generations() -> bool:
            mine = pid_of_a_checkout(pool)
            childs = int(in_child(lambda: pid_of_a_checkout(pool)))
            return len({pid, mine, childs}) == 3 and pid_of_a_checkout(pool) == mine

        assert in_child(generations) == "True"


def test_child_that_has_threads_already(dsn: str) -> None:
    """A child whose first checkout comes when it has threads of its own, several of which check out at once."""
    with make(1, 4, dsn, timeout=PATIENCE) as pool:
        (pid,) = fill(pool, 1)
        # A thread that runs at a fork made in C costs the child its GIL.
        assert wait_until(lambda: core_of(pool).parked)

        def work() -> list[int]:
            together = threading.Barrier(4)

            def ask_together() -> int:
                together.wait(PATIENCE)
                return pid_of_a_checkout(pool)

            return [each.result(PATIENCE) for each in [in_thread(ask_together) for _ in range(4)]]

        assert str(pid) not in in_child(work)


def test_unopened_pool_in_pre_fork_servers(dsn: str) -> None:
    """`open=False` before the fork: each child opens its own, and the parent none."""
    with closing(make(1, 2, dsn, open=False, timeout=PATIENCE)) as pool:
        children = {int(in_child(lambda: pid_of_a_checkout(pool))) for _ in range(2)}
        assert len(children) == 2
        assert pool.stats().size == 0


def test_closed_pool_stays_closed(dsn: str) -> None:
    """A pool closed before the fork is closed in the child."""
    pool = make(1, 1, dsn)
    pool.close()

    def refused() -> bool:
        with pytest.raises(PoolError):
            pool.getconn()
        return pool.closed

    assert in_child(refused) == "True"


PROGRAM = """
import ctypes, os, sys
from otel_pgpool import ConnectionPool
pool = ConnectionPool(2, 2, os.environ["DATABASE_URL"], observer=None)
held = pool.getconn()
held.cursor().execute("create temporary table of_the_parent ()")
child = os.fork() if sys.argv[1] == "python" else ctypes.PyDLL(None).fork()
if child == 0:
    with pool.connection() as conn:
        conn.cursor().execute("select 1")
    sys.exit(0)  # with everything that an interpreter does at its end
assert os.waitpid(child, 0)[1] == 0
held.cursor().execute("select * from of_the_parent")
held.commit()
pool.putconn(held)
pool.close()
"""


def test_child_that_ends_like_a_program(dsn: str, fork: str) -> None:
    """At the end of the child's interpreter all its objects go: the parent's sessions stay."""
    ended = run_program(dsn, PROGRAM, fork, options=("-W", "ignore:This process:DeprecationWarning"))  # of the fork
    assert (ended.returncode, ended.stderr) == (0, "")


def tell_backend(queue: Any, pool: ConnectionPool) -> None:
    queue.put(pid_of_a_checkout(pool))


def test_multiprocessing_fork(dsn: str) -> None:
    """A worker of multiprocessing that was forked."""
    context = multiprocessing.get_context("fork")
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pid = fill(pool, 1)[0]
        queue = context.SimpleQueue()
        worker = context.Process(target=tell_backend, args=(queue, pool))
        worker.start()
        worker.join(PATIENCE)
        assert worker.exitcode == 0
        assert queue.get() != pid
        assert fill(pool, 1) == [pid]


def test_multiprocessing_spawn_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool cannot be sent to another process, and the error says what to do."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # for the resource tracker, which outlives the report
    context = multiprocessing.get_context("spawn")
    with make(0, 1, dsn) as pool:
        worker = context.Process(target=os.getpid, args=(pool,))
        with pytest.raises(TypeError, match="create one in each process"):
            worker.start()


def test_child_counts_and_closes_what_the_parent_had_set_aside(dsn: str) -> None:
    """Connections that the parent is checking at the fork belong to the parent like the idle ones."""
    with make(2, 2, dsn) as pool:
        fill(pool, 2)
        core = core_of(pool)
        aside = core.begin_check(core.idle_slots()[:1])
        numbers = [slot.conn.fileno() for slot in core.members if slot.conn is not None]
        forked = in_child(lambda: [pool.stats().discarded["forked"], *(is_open(number) for number in numbers)])
        assert forked == "[2, False, False]"
        for slot in aside:
            core.check_passed(slot, time.monotonic())


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
