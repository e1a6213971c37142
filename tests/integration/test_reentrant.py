"""A reentrant pool: a block inside a block uses the same connection, and fails for itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import errors

from otel_pgpool import PoolError, PoolTimeout
from otel_pgpool.driver import savepoint
from otel_pgpool.pool.reentrant import ReentrantContext
from tests.support.calls import calls_in
from tests.support.database import ask, kill
from tests.support.pools import Recorder, make
from tests.support.processes import in_child
from tests.support.scripts import run_program
from tests.support.telemetry import Signals
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool


class ShopError(Exception):
    """An error of the program's own."""


@pytest.fixture
def pool(dsn: str, admin: connection) -> Iterator[ConnectionPool]:
    """Make a pool of one connection, in which a nested checkout would wait in vain, and an empty table."""
    ask(admin, "create table done (step int unique)")
    with make(1, 1, dsn, timeout=0.2, reentrant=True) as pool:
        yield pool
        assert pool.stats().used == 0
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
    ask(admin, "drop table done")


@contextmanager
def raises(kind: type[BaseException], match: str | None = None) -> Iterator[None]:
    """Expect an error of blocks, which are more than one statement."""
    with pytest.raises(kind, match=match):
        yield


def do(conn: connection, step: int) -> None:
    ask(conn, f"insert into done values ({step})")


def steps(admin: connection) -> list[int]:
    """Return the steps that are committed."""
    with admin.cursor() as cur:
        cur.execute("select step from done order by step")
        return [step for (step,) in cur.fetchall()]


def test_one_connection(pool: ConnectionPool, admin: connection) -> None:
    """Every level has the outer one; only the outermost block commits, and it is one checkout."""
    with pool.connection() as outer:
        do(outer, 1)
        with pool.connection() as inner:
            assert inner is outer
            do(inner, 2)
            with pool.connection(timeout=0) as innermost:
                assert innermost is outer
                do(innermost, 3)
            assert steps(admin) == []
        assert (pool.stats().used, sum(pool.stats().checkouts.values())) == (1, 1)
        do(outer, 4)
        assert steps(admin) == []
    assert steps(admin) == [1, 2, 3, 4]


@pytest.mark.parametrize("work_before", [True, False])
def test_a_failed_block_inside(pool: ConnectionPool, admin: connection, work_before: bool) -> None:
    """It rolls back its own work, whether the program or a statement has raised, and whatever came before."""
    with pool.connection() as conn:
        if work_before:
            do(conn, 1)
        with raises(ShopError), pool.connection() as inner:
            do(inner, 2)
            raise ShopError
        with raises(errors.UniqueViolation), pool.connection() as inner:
            ask(inner, "insert into done values (3), (3)")
        do(conn, 4)
    assert steps(admin) == [1, 4] if work_before else [4]


def test_a_failed_block_in_the_middle(pool: ConnectionPool, admin: connection) -> None:
    """It takes with it what the blocks inside it have done, and they are not asked."""
    with pool.connection() as conn:
        do(conn, 1)
        with raises(ShopError), pool.connection():
            do(conn, 2)
            with pool.connection():
                do(conn, 3)
            raise ShopError
        with pool.connection():
            do(conn, 4)
            with raises(ShopError), pool.connection():
                do(conn, 5)
                raise ShopError
    assert steps(admin) == [1, 4]


def test_a_failed_outermost_block(pool: ConnectionPool, admin: connection) -> None:
    """Nothing is committed, and the error is raised through every level."""
    with raises(ShopError), pool.connection() as conn:
        do(conn, 1)
        with pool.connection():
            do(conn, 2)
            with pool.connection():
                raise ShopError
    with raises(ShopError), pool.connection() as conn:
        with pool.connection():
            do(conn, 3)
        raise ShopError
    assert steps(admin) == []


def test_a_statement_that_failed_and_was_handled(pool: ConnectionPool, admin: connection) -> None:
    """The block's work is lost without an error, as that of any block; that of the block around it is not."""
    with pool.connection() as conn:
        do(conn, 1)
        with pool.connection():
            do(conn, 2)
            with suppress(errors.UniqueViolation):
                do(conn, 1)
        do(conn, 3)
    assert steps(admin) == [1, 3]


def test_a_transaction_in_error(pool: ConnectionPool, admin: connection) -> None:
    """No block begins inside it: the server refuses the savepoint, and the connection stays usable."""
    with pool.connection() as conn:
        with suppress(errors.SyntaxError):
            ask(conn, "selec")
        with raises(errors.InFailedSqlTransaction), pool.connection():
            pytest.fail("it has begun")
        conn.rollback()
        with pool.connection():
            do(conn, 1)
    assert steps(admin) == [1]


def test_autocommit(pool: ConnectionPool, admin: connection) -> None:
    """Each statement is committed, at every level; a transaction that the program begins is treated as one."""
    with pool.connection() as conn:
        conn.autocommit = True
        do(conn, 1)
        with raises(ShopError), pool.connection() as inner:
            do(inner, 2)
            raise ShopError
        assert steps(admin) == [1, 2]
        ask(conn, "begin; insert into done values (3); select 1")
        with raises(ShopError), pool.connection():
            do(conn, 4)
            raise ShopError
        with pool.connection():
            do(conn, 5)
        ask(conn, "commit; select 1")
        with raises(ShopError), pool.connection():
            ask(conn, "begin; insert into done values (6); select 1")
            raise ShopError
        do(conn, 7)
    assert steps(admin) == [1, 2, 3, 5, 7]
    with pool.connection() as conn:
        assert not conn.autocommit


def test_one_after_the_other(pool: ConnectionPool, admin: connection) -> None:
    """A context may be entered again, at any level, and a savepoint does not outlive its block."""
    context = pool.connection()
    with pool.connection() as conn:
        do(conn, 0)
        for step in (1, 2):
            with context:
                do(conn, step)
        with context, raises(PoolError, match=r"this connection\(\) is in use"), context:
            pass
        with raises(errors.InvalidSavepointSpecification), pool.connection():
            ask(conn, "rollback to savepoint otel_pgpool_1; select 1")
    with context as conn:
        do(conn, 3)
    with raises(PoolError, match="not in use"):
        context.__exit__(None, None, None)
    assert steps(admin) == [0, 1, 2, 3]


# The program ends the transaction


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("goes_on", [True, False])
def test_an_end_of_the_transaction_inside(pool: ConnectionPool, admin: connection, end: str, goes_on: bool) -> None:
    """It belongs to the outermost block. The block inside says so, and nothing that follows is committed."""
    with raises(PoolError, match="only the outermost block"), pool.connection() as conn:
        do(conn, 1)
        with raises(PoolError, match="only the outermost block"), pool.connection():
            getattr(conn, end)()
            if goes_on:
                do(conn, 2)
        with suppress(errors.InFailedSqlTransaction):
            do(conn, 3)
    assert steps(admin) == ([1] if end == "commit" else [])


def test_a_rollback_inside_before_an_error(pool: ConnectionPool, admin: connection) -> None:
    """The error is raised as it is; the outermost block, whose work is lost too, does not end as if nothing was."""
    with raises(PoolError, match="only the outermost block"), pool.connection() as conn:
        do(conn, 1)
        with raises(ShopError), pool.connection():
            conn.rollback()
            raise ShopError
        do(conn, 2)
    assert steps(admin) == []


def test_an_end_of_the_transaction_outside(pool: ConnectionPool, admin: connection) -> None:
    """The outermost block may commit whenever it likes, and so may one inside that has begun the transaction."""
    with pool.connection() as conn:
        do(conn, 1)
        conn.commit()
        with pool.connection():
            do(conn, 2)
            conn.commit()
        assert steps(admin) == [1, 2]
        do(conn, 3)
        conn.rollback()
    assert steps(admin) == [1, 2]


# Blocks that do not end in reverse order


def rows(pool: ConnectionPool, step: int) -> Iterator[int]:
    """Do a step, and yield twice inside the block."""
    with pool.connection() as conn:
        do(conn, step)
        yield step
        yield step


def test_a_closed_generator(pool: ConnectionPool, admin: connection) -> None:
    """It has not failed: what was done since it began, by whomever, stays."""
    with pool.connection() as conn:
        do(conn, 1)
        for step in rows(pool, 2):
            do(conn, step + 1)
            break
        generator = rows(pool, 4)
        next(generator)
        cycle: list[Any] = [generator]
        cycle.append(cycle)
        del generator, cycle
        do(conn, 5)
        gc.collect()
        do(conn, 6)
    assert steps(admin) == [1, 2, 3, 4, 5, 6]


def test_a_block_that_outlives_the_outermost(pool: ConnectionPool, admin: connection) -> None:
    """Neither commits: the outermost is rolled back with an error, and the other one uses the connection no more."""
    outer, inner = rows(pool, 1), rows(pool, 2)
    next(outer)
    next(inner)
    next(outer)
    with raises(PoolError, match="must end in reverse order"):
        next(outer)
    assert pool.stats().used == 0
    with pool.connection() as conn:
        do(conn, 3)
        next(inner)
        with raises(PoolError, match="must end in reverse order"):
            next(inner)
        with pool.connection():
            do(conn, 4)
    assert steps(admin) == [3, 4]


def test_a_block_that_outlives_another_inside(pool: ConnectionPool, admin: connection) -> None:
    """Both are rolled back with an error each, and the outermost goes on."""
    with pool.connection() as conn:
        do(conn, 1)
        outer, inner = pool.connection(), pool.connection()
        outer.__enter__()
        inner.__enter__()
        do(conn, 2)
        for context in (outer, inner):
            with raises(PoolError, match="must end in reverse order"):
                context.__exit__(None, None, None)
        do(conn, 3)
    assert steps(admin) == [1, 3]


def test_an_error_hides_no_error(pool: ConnectionPool) -> None:
    """Where blocks end in the wrong order because of an error, this error is raised."""
    outer, inner = pool.connection(), pool.connection()
    outer.__enter__()
    inner.__enter__()
    error = ShopError()
    outer.__exit__(ShopError, error, None)
    inner.__exit__(ShopError, error, None)


def test_dropped_contexts(pool: ConnectionPool, admin: connection) -> None:
    """One inside is as if it had ended with the block around it; the connection of an outermost one is reclaimed."""
    with pool.connection() as conn:
        do(conn, 1)
        pool.connection().__enter__()
        do(conn, 2)
        with pool.connection():
            do(conn, 3)
    assert steps(admin) == [1, 2, 3]
    del conn
    pool.connection().__enter__()
    assert wait_until(lambda: pool.stats().discarded.get("reclaimed") == 1)


# Other flows


def test_other_threads(pool: ConnectionPool) -> None:
    """They wait for a connection of their own, also in a copy of the context."""

    def use() -> int:
        with pool.connection() as conn, pool.connection() as inner:
            assert inner is conn
            return conn.info.backend_pid

    with pool.connection() as conn:
        context = contextvars.copy_context()
        for arguments in ((use,), (context.run, use)):
            with raises(PoolTimeout):
                in_thread(*arguments).result(PATIENCE)
        pid = conn.info.backend_pid
    assert in_thread(use).result(PATIENCE) == pid


def test_a_thread_that_serves_another_request(dsn: str) -> None:
    """A block of another context is not inside, although the thread of both is one, as in a framework's thread pool."""
    first, second = copy_context(), copy_context()
    with make(2, 2, dsn, timeout=0.2, reentrant=True) as pool:
        slow, fast = pool.connection(), pool.connection()
        conn = first.run(slow.__enter__)
        other = second.run(fast.__enter__)
        assert other is not conn
        inside = pool.connection()
        assert first.run(inside.__enter__) is conn
        first.run(inside.__exit__, None, None, None)
        second.run(fast.__exit__, None, None, None)
        first.run(slow.__exit__, None, None, None)
        assert pool.stats().used == 0


def test_tasks_of_asyncio(dsn: str) -> None:
    """A task that runs while another one is inside a block gets a connection of its own."""

    async def use(others: list[connection]) -> None:
        with pool.connection() as conn:
            others.append(conn)
            await asyncio.sleep(0)
            with pool.connection() as inner:
                assert inner is conn
            await asyncio.sleep(0)

    async def use_both() -> None:
        await asyncio.gather(use(conns), use(conns))

    conns: list[connection] = []  # of the tasks
    with make(0, 2, dsn, timeout=0.5, reentrant=True) as pool:
        asyncio.run(use_both())
        assert conns[0] is not conns[1]
        with pool.connection() as conn:
            asyncio.run(use(conns))
            assert conns[2] is not conn, "a task is no part of what runs its loop"


GREENLETS = (
    """
from gevent import monkey
monkey.patch_all()
import gevent
""",
    """
import greenlet
class gevent:
    sleep = staticmethod(lambda _seconds: hub.switch())
hub = greenlet.getcurrent()
""",
)

USE = """
import os
from otel_pgpool import ConnectionPool
pool = ConnectionPool(0, 2, os.environ["DATABASE_URL"], timeout=1, reentrant=True, observer=None)
seen = []
def use():
    with pool.connection() as conn:
        seen.append(conn)
        gevent.sleep(0)
        with pool.connection() as inner:
            print(inner is conn)
        gevent.sleep(0)
"""

RUN = (
    """
gevent.joinall([gevent.spawn(use), gevent.spawn(use)], raise_error=True)
print(seen[0] is not seen[1])
""",
    """
flows = [greenlet.greenlet(use), greenlet.greenlet(use)]
for _ in range(3):
    for flow in flows:
        flow.switch()
print(seen[0] is not seen[1])
""",
)


@pytest.mark.parametrize("kind", [0, 1], ids=["gevent", "bare"])
def test_greenlets(dsn: str, kind: int) -> None:
    """Each is a flow of its own, whether threads are patched or not."""
    done = run_program(dsn, GREENLETS[kind] + USE + RUN[kind])
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_a_fork_inside_a_block(pool: ConnectionPool, admin: connection) -> None:
    """The child gets a connection of its own, which its block commits; the parent's is left alone."""

    def use() -> bool:
        with pool.connection() as own, pool.connection() as inner:
            do(own, 2)
            return own is inner is not conn

    def leave() -> None:
        context.__exit__(None, None, None)

    with pool.connection() as conn:
        do(conn, 1)
        assert in_child(use) == "True"
        context = pool.connection()
        context.__enter__()
        assert in_child(leave) == "None"
        do(conn, 3)
        context.__exit__(None, None, None)
    assert steps(admin) == [1, 2, 3]


# Other calls


def test_by_hand(dsn: str) -> None:
    """`getconn` always checks a connection out, and a block inside such a hold is an outermost one."""
    with make(0, 3, dsn, timeout=PATIENCE, reentrant=True) as pool:
        with pool.connection() as conn:
            by_hand = pool.getconn()
            assert by_hand is not conn
            with pool.connection() as inner:
                assert inner is conn
            pool.putconn(by_hand)
        by_hand = pool.getconn()
        with pool.connection() as conn:
            assert conn is not by_hand
        pool.putconn(by_hand)


def test_putconn_inside(pool: ConnectionPool, admin: connection) -> None:
    """It is refused at every level, and what the blocks did is committed."""
    with pool.connection() as conn:
        do(conn, 1)
        with pool.connection() as inner:
            do(inner, 2)
            with raises(PoolError, "block has it"):
                pool.putconn(inner)
        with raises(PoolError, "block has it"):
            pool.putconn(conn)
        do(conn, 3)
    assert steps(admin) == [1, 2, 3]


def test_another_pool(pool: ConnectionPool, dsn: str) -> None:
    """Its blocks are not inside those of this pool."""
    with make(1, 1, dsn, reentrant=True) as other, pool.connection() as conn, other.connection() as its:
        assert its is not conn
        with pool.connection() as inner, other.connection() as its_inner:
            assert (inner, its_inner) == (conn, its)


def test_off_by_default(dsn: str) -> None:
    """A nested checkout is one of its own, and a block costs the same calls as ever."""

    def block() -> None:
        with pool.connection():
            pass

    with make(0, 2, dsn) as pool:
        with pool.connection() as conn, pool.connection() as inner:
            assert inner is not conn
        assert not {"__init__", "current_flow"} & calls_in(block).keys()
    with raises(ValueError, match=r"^reentrant must be True or False, not 1"):
        make(0, 1, dsn, reentrant=1)


def test_suspension(pool: ConnectionPool) -> None:
    """A holder may begin blocks inside."""
    with pool.connection() as conn:
        pool.suspend()
        with pool.connection() as inner:
            assert inner is conn
    pool.resume()


def test_a_lost_connection(pool: ConnectionPool, admin: connection) -> None:
    """Each level raises what its own statement raised, and the connection is discarded."""
    with raises(psycopg2.OperationalError), pool.connection() as conn:
        do(conn, 1)
        with pool.connection():
            kill(admin, [conn.info.backend_pid])
            ask(conn, "select 1")
    with raises(psycopg2.Error), pool.connection() as conn:
        do(conn, 1)
        kill(admin, [conn.info.backend_pid])
        with pool.connection():
            pytest.fail("it has begun")
    with pool.connection() as conn:
        do(conn, 1)
        with pool.connection():
            conn.close()
    assert pool.stats().discarded == {"broken": 2, "returned_closed": 1}
    assert steps(admin) == []


@pytest.mark.parametrize("step", ["begin", "keep", "undo"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt(
    pool: ConnectionPool, admin: connection, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    """Just before or after any step of a block inside: it is raised, nothing is committed, and nothing is held."""
    original = getattr(savepoint, step)

    def interrupted(*args: Any) -> object:
        result = None if before else original(*args)
        monkeypatch.setattr(savepoint, step, original)
        raise KeyboardInterrupt(result)

    with raises(KeyboardInterrupt), pool.connection() as conn:
        do(conn, 1)
        monkeypatch.setattr(savepoint, step, interrupted)
        with pool.connection():
            do(conn, 2)
            if step == "undo":
                raise ShopError
    assert steps(admin) == []
    with pool.connection() as conn:
        do(conn, 3)
        monkeypatch.setattr(savepoint, step, interrupted)
        with suppress(KeyboardInterrupt), pool.connection():
            do(conn, 4)
            if step == "undo":
                raise ShopError
        monkeypatch.setattr(savepoint, step, original)
        with suppress(psycopg2.Error):  # in error, if the savepoint had ended already
            do(conn, 5)
    assert steps(admin) in ([3, 5], [])


@pytest.mark.parametrize("step", ["_problem", "is_held"])
def test_an_interrupt_of_the_outermost_block(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Before its end, or at the begin of one inside: the connection is released, without a commit."""

    def interrupted(*_args: object) -> object:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with raises(KeyboardInterrupt), pool.connection() as conn:
        do(conn, 1)
        monkeypatch.setattr(ReentrantContext, step, property(interrupted) if step == "is_held" else interrupted)
        if step == "is_held":
            pool.connection().__enter__()
    assert pool.stats().used == 0


def test_evict_on(dsn: str) -> None:
    """An error that a block inside has raised counts if the outermost block ends with it."""
    with make(1, 1, dsn, reentrant=True, evict_on=["22012"]) as pool:
        with pool.connection() as conn, suppress(errors.DivisionByZero), pool.connection():
            ask(conn, "select 1/0")
        assert not conn.closed
        with suppress(errors.DivisionByZero), pool.connection() as conn, pool.connection():
            ask(conn, "select 1/0")
        assert conn.closed


# What is observed


def test_spans(dsn: str) -> None:
    """There is one for the outermost block, with the number of the blocks inside it."""
    with Signals() as signals, signals.pool(1, 1, dsn, reentrant=True) as pool:
        with pool.connection():
            for _ in range(2):
                with pool.connection(), pool.connection():
                    pass
        assert (signals.checkout().attributes or {})["otel_pgpool.blocks_inside"] == 4
        with pool.connection():
            pass
        assert "otel_pgpool.blocks_inside" not in (signals.named("pool.checkout")[1].attributes or {})


def test_expected_hold(dsn: str) -> None:
    """It counts for the outermost block only; an invalid one is refused at every level."""
    with make(1, 1, dsn, reentrant=True, long_hold=0.02) as pool:
        with pool.connection(expected_hold=None), pool.connection(expected_hold=0.001):
            assert pool.stats().oldest_hold == 0
        with raises(ValueError, match="expected_hold"):
            pool.connection(expected_hold=-1)
        assert pool.stats().long_holds == 0
        with pool.connection(), pool.connection(expected_hold=None):
            assert wait_until(lambda: pool.stats().long_holds == 1)


def test_the_observer(dsn: str) -> None:
    """It is notified of one checkout, which tells how many blocks were inside."""
    recorder = Recorder()
    with make(1, 1, dsn, reentrant=True, observer=recorder) as pool:
        with pool.connection(), pool.connection():
            pass
        (held,) = [args[0] for args in recorder.calls("released")]
        assert (held.outcome, held.blocks_inside, len(recorder.calls("started"))) == ("committed", 1, 1)
