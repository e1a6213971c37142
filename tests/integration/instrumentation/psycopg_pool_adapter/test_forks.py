"""Pools of psycopg_pool that were opened before a fork: reported by default, and begun anew on request."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolTimeout
from psycopg_pool.pool import AddConnection

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from tests.support.forked_pools import states
from tests.support.instrumentation import instrumented, name_of, tracker_of
from tests.support.processes import fork_in_c, in_child
from tests.support.psycopg_pools import backend, opened, settled
from tests.support.telemetry import PATIENCE
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from tests.support.telemetry import Signals

Pool = Any


@pytest.fixture
def instrumentation(signals: Signals) -> Iterator[None]:
    with instrumented(signals, long_hold=None):
        yield


@pytest.fixture
def repaired(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_PGPOOL_FORK_REPAIR", "1")
    with instrumented(signals, long_hold=None):
        yield


def use(pool: Pool) -> int:
    with pool.connection(PATIENCE) as conn:
        return backend(conn)


def reports(signals: Signals) -> list[tuple[str, str]]:
    """Return the level and the text of each report about a fork."""
    records = [each.record for each in signals.records.all]
    return [(each.levelname, each.getMessage()) for each in records if "forked child" in each.getMessage()]


# By default


def test_report(signals: Signals, dsn: str, instrumentation: None) -> None:
    """The first checkout in the child is reported once, with what to do; the connections count as forked."""
    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        held = pool.getconn()

        def child() -> str:
            assert reports(signals) == []
            first = tracker_of(pool).discards
            pools_own = [pool.getconn()]  # the parent's: it stays unused here
            pool.putconn(pools_own[0])
            pool.putconn(pool.getconn())
            return json.dumps([reports(signals), dict(first), tracker_of(pool).stats().checkouts["idle"]])

        ((level, text),), discards, idle = json.loads(in_child(child))
        assert level == "ERROR"
        assert text.startswith(f"pool {name_of(dsn)}: opened in process ")
        assert "both processes use the same connections (2)" in text
        assert "open the pool after the fork, or set OTEL_PGPOOL_FORK_REPAIR=1" in text
        assert (discards, idle) == ({"forked": 2}, 2)
        assert reports(signals) == []
        pool.putconn(held)


def test_attributes_of_the_report(signals: Signals, dsn: str, instrumentation: None) -> None:
    """The record of an inherited pool has an event name and the pool's, for alerts."""
    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)

        def child() -> str:
            pool.putconn(pool.getconn())
            (record,) = signals.logged("forked")
            return str(vars(record.record)["db.client.connection.pool.name"])

        assert in_child(child) == name_of(dsn)


def test_null_pool_without_connections(signals: Signals, dsn: str, instrumentation: None) -> None:
    """A pool whose callers connect, and which has no connection at the fork, works in the child: no report."""
    with NullConnectionPool(dsn, max_size=2) as pool:
        pool.wait()

        def child() -> str:
            with pool.connection() as conn:
                conn.execute("select 1")
            return json.dumps(reports(signals))

        assert json.loads(in_child(child)) == []


def test_null_pool_with_a_connection(signals: Signals, dsn: str, instrumentation: None) -> None:
    """If the parent has checked out a connection, the report says that the child shares this one; others it opens."""
    with NullConnectionPool(dsn, max_size=2) as pool, pool.connection():

        def child() -> str:
            with pool.connection() as conn:
                conn.execute("select 1")
            return json.dumps(reports(signals))

        ((_level, text),) = json.loads(in_child(child))
        assert "the child shares the connections that the parent has checked out (1); open the pool after" in text


def test_pool_of_the_child(signals: Signals, dsn: str, instrumentation: None) -> None:
    """A pool that is opened after the fork is not reported."""

    def child() -> list[Any]:
        with opened(ConnectionPool, dsn, 1) as pool:
            assert use(pool)
            assert not tracker_of(pool).discards
        return reports(signals)

    assert in_child(child) == "[]"


def test_closed_pool(signals: Signals, dsn: str, instrumentation: None) -> None:
    """A pool that was closed before the fork is not reported."""
    with opened(ConnectionPool, dsn, 1) as pool:
        settled(pool)

    def child() -> list[Any]:
        with pytest.raises(psycopg.OperationalError):
            pool.getconn()
        return reports(signals)

    assert in_child(child) == "[]"


# Repaired


def end_by_exit(pool: Pool, held: Any) -> None:
    pass


def end_by_work(pool: Pool, held: Any) -> None:
    assert use(pool) != held.info.backend_pid


def end_by_putconn(pool: Pool, held: Any) -> None:
    pool.putconn(held)
    assert use(pool) != held.info.backend_pid


def end_by_commit(pool: Pool, held: Any) -> None:
    with pytest.raises(psycopg.OperationalError):
        held.commit()


def end_by_close(pool: Pool, held: Any) -> None:
    held.close()
    pool.close()


DEEDS = [end_by_exit, end_by_work, end_by_putconn, end_by_commit, end_by_close]


@pytest.mark.parametrize("deed", DEEDS)
def test_child_does_not_touch_the_parents_sessions(
    dsn: str, admin: connection, repaired: None, deed: Callable[[Pool, Any], None]
) -> None:
    """Whatever the child does, the server hears nothing on the parent's sockets, and a transaction goes on."""
    with opened(ConnectionPool, dsn, 2, max_size=3) as pool:
        settled(pool)
        held = pool.getconn()
        held.execute("create temporary table of_the_parent ()")
        pids = [held.info.backend_pid, *(conn.info.backend_pid for conn in pool._pool)]
        before = states(admin, pids)
        in_child(lambda: deed(pool, held))
        assert states(admin, pids) == before
        assert held.execute("select count(*) from of_the_parent").fetchone() == (0,)
        pool.putconn(held)
        assert use(pool) in pids


@pytest.mark.parametrize("fork", [None, fork_in_c])
@pytest.mark.parametrize("cls", [ConnectionPool, NullConnectionPool])
def test_child_has_backends_of_its_own(
    signals: Signals, dsn: str, repaired: None, cls: type[Pool], fork: Callable[[], int] | None
) -> None:
    """The child's pool begins anew, and grows to its maximum; its totals are its own and those of ``get_stats()``."""
    with opened(cls, dsn, 2) as pool:
        held = pool.getconn()
        settled(pool)

        def child() -> str:
            conns = [pool.getconn(), pool.getconn()]
            pids = [backend(conn) for conn in conns]
            stats = tracker_of(pool).stats()
            for conn in conns:
                pool.putconn(conn)
            theirs = pool.get_stats()
            assert theirs["requests_num"] == sum(tracker_of(pool).stats().checkouts.values()) == 2
            assert theirs["connections_num"] == tracker_of(pool).stats().created
            pool.close()
            return json.dumps([pids, stats.used, stats.maxconn, reports(signals)])

        pids, used, size, ((level, text),) = json.loads(in_child(child, fork))
        assert held.info.backend_pid not in pids
        assert len(set(pids)) == 2
        assert (used, size) == (2, 2)
        assert level == "INFO"
        assert "begun anew" in text
        pool.putconn(held)
        assert use(pool)


def test_fork_during_a_check(dsn: str, admin: connection, repaired: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that the pool checks at the fork are left to the parent, too."""
    checking, goes_on = threading.Event(), threading.Event()

    def check(conn: Any) -> None:
        checking.set()
        assert goes_on.wait(PATIENCE)

    with opened(ConnectionPool, dsn, 2) as pool:
        settled(pool)
        conns = [*pool._pool]
        monkeypatch.setattr(pool, "check_connection", check)
        checker = in_thread(pool.check)
        assert checking.wait(PATIENCE)

        def child() -> str:
            for conn in conns:
                conn.close()
            return json.dumps(tracker_of(pool).stats().discarded)

        before = states(admin, [conn.info.backend_pid for conn in conns])
        assert json.loads(in_child(child)) == {"forked": 2}
        assert states(admin, [conn.info.backend_pid for conn in conns]) == before
        goes_on.set()
        checker.result(PATIENCE)
        assert {use(pool) for _ in range(4)} <= {conn.info.backend_pid for conn in conns}


def test_release_after_the_instrumentation(dsn: str, repaired: None) -> None:
    """A connection of the parent never enters the child's pool."""
    with opened(ConnectionPool, dsn, 1) as pool:
        held = pool.getconn()

        def child() -> str:
            use(pool)
            PgPoolInstrumentor().uninstrument()
            pool.putconn(held)
            return str(held in pool._pool or use(pool) == pid)

        pid = held.info.backend_pid
        assert in_child(child) == "False"
        held.execute("select 1")
        pool.putconn(held)


def test_waiter_of_the_parent(dsn: str, repaired: None) -> None:
    """Callers that wait in the parent, and locks that are held there, do not concern the child."""
    with opened(ConnectionPool, dsn, 1) as pool, pool._lock:
        assert int(in_child(lambda: use(pool))) > 0


def _child_of_multiprocessing(pool: Pool, told: Any) -> None:
    told.put(use(pool))
    pool.close()


def test_multiprocessing(dsn: str, repaired: None) -> None:
    """Children of ``multiprocessing`` that were forked use the pool, and so does the parent at the same time."""
    context = multiprocessing.get_context("fork")
    with opened(ConnectionPool, dsn, 1) as pool:
        mine = use(pool)
        told = context.SimpleQueue()
        children = [context.Process(target=_child_of_multiprocessing, args=(pool, told)) for _ in range(2)]
        for child in children:
            child.start()
        pids = {told.get() for _ in children}
        for child in children:
            child.join(PATIENCE)
        assert len(pids) == 2
        assert mine not in pids
        assert use(pool) == mine


def test_child_of_a_child(dsn: str, repaired: None) -> None:
    """A pool that a child has not used before it forks itself begins anew in its child."""
    with opened(ConnectionPool, dsn, 1) as pool:
        mine = use(pool)
        theirs = int(in_child(lambda: in_child(lambda: use(pool))))
        assert theirs != mine
        assert use(pool) == mine


def test_wait_first(dsn: str, repaired: None) -> None:
    """A child may wait for its pool to be full before its first checkout."""
    with opened(ConnectionPool, dsn, 1) as pool:

        def child() -> int:
            pool.wait(PATIENCE)
            return len(pool._pool)

        assert in_child(child) == "1"


def test_resize_first(dsn: str, repaired: None) -> None:
    """A child may resize its pool before its first checkout, and opens no more connections than that."""
    with opened(ConnectionPool, dsn, 1) as pool:

        def child() -> int:
            tasks: list[Any] = []
            pool.run_task = tasks.append
            pool.resize(2, 2)
            with suppress(PoolTimeout):
                pool.wait(0.01)
            return sum(isinstance(task, AddConnection) for task in tasks)

        assert in_child(child) == "2"


def test_pools_that_are_equal(dsn: str, repaired: None) -> None:
    """Of pools whose class compares them, so that they are not hashable, each begins anew."""

    class Compared(ConnectionPool[Any]):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Compared)

        __hash__ = None  # type: ignore[assignment]  # as Python sets it

    with opened(Compared, dsn, 1) as one, opened(Compared, dsn, 1) as two:
        mine = {use(one), use(two)}
        theirs = json.loads(in_child(lambda: json.dumps([use(one), use(two)])))
        assert len({*mine, *theirs}) == 4


def test_private_part_that_is_missing(
    signals: Signals, dsn: str, repaired: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a release lacks a private part, the pool stays as it is, and the report says so."""
    monkeypatch.setattr(private, "STATE", (*private.STATE, "_of_a_later_release"))
    with opened(ConnectionPool, dsn, 1) as pool:
        settled(pool)

        def child() -> str:
            pool.putconn(pool.getconn())
            return json.dumps(reports(signals))

        ((level, text),) = json.loads(in_child(child))
        assert level == "ERROR"
        assert "has no _of_a_later_release" in text


@pytest.mark.parametrize("is_bare", [False, True])
def test_pool_for_asyncio(dsn: str, repaired: None, is_bare: bool) -> None:
    """A pool for asyncio begins anew in the loop of the child, also if its method is called before the loop runs."""

    async def parent() -> None:
        async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            await pool.wait()
            async with pool.connection() as conn:
                mine = conn.info.backend_pid

            async def in_a_loop_of_the_child() -> int:
                async with pool.connection(PATIENCE) as conn:
                    pid: int = conn.info.backend_pid
                await pool.close()
                return pid

            def child() -> int:
                asyncio.events._set_running_loop(None)
                if not is_bare:
                    return asyncio.run(in_a_loop_of_the_child())
                pid: int = asyncio.run(pool.getconn(PATIENCE)).info.backend_pid
                return pid

            assert int(in_child(child)) != mine
            async with pool.connection() as conn:
                assert conn.info.backend_pid == mine

    asyncio.run(parent())
