"""Children of forks made in C, of which Python is told nothing: the parent's connections are left alone all the same.

Each deed is the first thing that the child does, so that nothing else has seen before it where it runs.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import AbstractConnectionPool, PoolError, ThreadedConnectionPool
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from tests.support.database import IN_TRANSACTION, ask
from tests.support.forked_pools import DEEDS, states, use, warm
from tests.support.instrumentation import STOCK, instrumented, quietly, tracker_of
from tests.support.processes import fork_in_c, in_child
from tests.support.sqlalchemy_engines import borrow, driver, engine_tracker, fill, hooked, select
from tests.support.telemetry import until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

FORKS = (os.fork, fork_in_c)


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("cls", STOCK)
def test_stock_pool(
    signals: Signals,
    dsn: str,
    admin: connection,
    cls: type[Any],
    deed: Callable[[Any, connection], None],
) -> None:
    """Whatever the child does first, the server hears nothing on the parent's sockets, and a transaction goes on."""
    with instrumented(signals):
        pool = cls(2, 3, dsn)
        pids = warm(pool)
        held = pool.getconn("held") if deed.__name__ == "end_by_putconn_key" else pool.getconn()
        ask(held, "create temporary table of_the_parent ()")
        before = states(admin, pids)
        in_child(lambda: deed(pool, held), fork_in_c)
        assert states(admin, pids) == before
        assert held.info.transaction_status == IN_TRANSACTION
        assert ask(held, "select count(*) from of_the_parent") == 0
        pool.closeall()


@pytest.mark.parametrize("deed", DEEDS)
def test_quiet_pool(dsn: str, admin: connection, deed: Callable[[Any, connection], None]) -> None:
    """The same where nothing is recorded, and the shortest way is taken."""
    with quietly():
        pool = ThreadedConnectionPool(2, 3, dsn)
        pids = warm(pool)
        held = pool.getconn("held") if deed.__name__ == "end_by_putconn_key" else pool.getconn()
        ask(held, "create temporary table of_the_parent ()")
        before = states(admin, pids)
        in_child(lambda: deed(pool, held), fork_in_c)
        assert states(admin, pids) == before
        assert ask(held, "select count(*) from of_the_parent") == 0
        pool.closeall()


def test_pool_of_the_programs_own(signals: Signals, dsn: str) -> None:
    """One that stands on the abstract pool's own steps."""

    class Own(AbstractConnectionPool):
        def take(self) -> Any:
            return self._getconn()

        def put(self, conn: Any) -> None:
            self._putconn(conn)

    with instrumented(signals):
        pool = Own(1, 2, dsn)
        conn = pool.take()
        pid = ask(conn, "select pg_backend_pid()")
        pool.put(conn)
        assert int(in_child(lambda: ask(pool.take(), "select pg_backend_pid()"), fork_in_c)) != pid
        pool._closeall()


def test_figures_are_the_childs_own(signals: Signals, dsn: str) -> None:
    """Totals and levels that are read first of all."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(2, 3, dsn)
        held = pool.getconn()

        def levels() -> Any:
            stats = tracker_of(pool).stats()
            return stats.used, stats.idle, stats.created, dict(stats.discarded)

        assert in_child(levels, fork_in_c) == str((0, 0, 0, {"forked": 2}))
        pool.putconn(held)
        pool.closeall()


def test_long_holds_are_watched(signals: Signals, dsn: str) -> None:
    """The child has a thread of its own that watches."""
    with instrumented(signals, long_hold=0.05):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())

        def child() -> int:
            pool.getconn()
            until(lambda: signals.logged("long_hold"))
            return len(signals.logged("long_hold"))

        assert in_child(child, fork_in_c) == "1"
        pool.closeall()


def test_fork_while_another_thread_holds_the_lock(signals: Signals, dsn: str) -> None:
    """A lock of a thread that the child does not have is a lock no more."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 2, dsn)
        use(pool)
        with pool._lock:
            assert int(in_child(lambda: use(pool), fork_in_c))
        pool.closeall()


def test_waiters_are_the_parents(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of the parent's queue stands in the child's."""
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", str(PATIENCE))
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()
        future = in_thread(pool.getconn)
        until(lambda: len(tracker_of(pool).waiting) == 1)
        assert int(in_child(lambda: use(pool), fork_in_c)) != conn.get_backend_pid()
        pool.putconn(conn)
        pool.putconn(future.result(PATIENCE))
        pool.closeall()


def test_stranger_stays_one(signals: Signals, dsn: str) -> None:
    """A connection that was never lent is refused in the child as ever."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())

        def refused() -> str:
            conn = pool.getconn()
            pool.putconn(conn)
            with pytest.raises(PoolError):
                pool.putconn(conn)
            return "refused"

        assert in_child(refused, fork_in_c) == "refused"
        pool.closeall()


# SQLAlchemy: what was lent is `held`, a connection of an engine in a transaction


def by_work(engine: Any, held: Any) -> None:
    """Borrow."""
    assert borrow(engine)


def by_close(engine: Any, held: Any) -> None:
    """Leave the parent's block: what it would roll back, and give back to the pool."""
    held.close()
    assert borrow(engine)


def by_rollback(engine: Any, held: Any) -> None:
    """End the parent's transaction, and close."""
    if hasattr(held, "rollback"):  # not in SQLAlchemy 1.4
        held.rollback()
    held.close()


def by_return_of_the_raw_one(engine: Any, held: Any) -> None:
    """Give back what lies below."""
    held.connection.close()


def by_invalidate(engine: Any, held: Any) -> None:
    """Close what was lent, by the program's wish."""
    held.invalidate()


def by_dispose(engine: Any, held: Any) -> None:
    """Close everything, and go on."""
    engine.dispose()
    assert borrow(engine)


def by_dispose_of_the_pool(engine: Any, held: Any) -> None:
    """Likewise, past the engine."""
    engine.pool.dispose()
    assert borrow(engine)


ENDS = (
    by_work,
    by_close,
    by_rollback,
    by_return_of_the_raw_one,
    by_invalidate,
    by_dispose,
    by_dispose_of_the_pool,
)


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("deed", ENDS)
def test_engine(
    signals: Signals,
    engines: Engines,
    admin: connection,
    deed: Callable[[Any, Any], None],
    fork: Callable[[], int],
) -> None:
    """Whatever the child does first, the server hears nothing on the parent's sockets, and a transaction goes on."""
    with hooked(signals):
        engine = engines(pool_size=2)
        fill(engine, 2)
        with engine.connect() as held:
            pid = select(held, "select pg_backend_pid()")
            ask(driver(held), "create temporary table of_the_parent ()")
            pids = [pid, *(record.dbapi_connection.get_backend_pid() for record in engine.pool._pool.queue)]  # type: ignore[attr-defined]  # a QueuePool's
            before = states(admin, pids)
            assert len(before) == 2
            in_child(lambda: deed(engine, held), fork)
            assert states(admin, pids) == before
            assert driver(held).info.transaction_status == IN_TRANSACTION
            assert ask(driver(held), "select count(*) from of_the_parent") == 0
        assert borrow(engine) in pids


@pytest.mark.parametrize("fork", FORKS)
def test_dropped_by_the_child(signals: Signals, engines: Engines, admin: connection, fork: Callable[[], int]) -> None:
    """What the collector gives back is left alone too."""
    with hooked(signals):
        engine = engines()
        held: list[Any] = [engine.raw_connection()]
        pid = ask(held[0].dbapi_connection, "select pg_backend_pid()")
        before = states(admin, [pid])

        def child() -> int:
            held.clear()
            gc.collect()
            return borrow(engine)

        assert int(in_child(child, fork)) != pid
        assert states(admin, [pid]) == before
        held.pop().close()


@pytest.mark.parametrize("fork", FORKS)
def test_what_comes_back_is_not_lent(
    signals: Signals, engines: Engines, fork: Callable[[], int], admin: connection
) -> None:
    """Nor is it heard of again: a rollback in the child takes it from the child."""
    with hooked(signals):
        engine = engines(pool_size=1, max_overflow=0, pool_reset_on_return=None)
        raw: Any = engine.raw_connection()
        pid = ask(raw.dbapi_connection, "select pg_backend_pid()")
        before = states(admin, [pid])

        def child() -> Any:
            raw.close()
            return borrow(engine), borrow(engine), engine_tracker(engine).stats().discarded["forked"]

        first, second, forked = in_child(child, fork).strip("()").split(", ")
        assert first == second != str(pid)
        assert forked == "0"
        assert states(admin, [pid]) == before
        raw.close()


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("pool", [NullPool, StaticPool, QueuePool])
def test_other_pools(signals: Signals, engines: Engines, pool: type[Any], fork: Callable[[], int]) -> None:
    """Kinds that keep one connection, or none."""
    with hooked(signals):
        engine = engines(poolclass=pool)
        with engine.connect() as held:
            pid = select(held, "select pg_backend_pid()")
            assert int(in_child(lambda: borrow(engine), fork)) != pid
            assert select(held, "select pg_backend_pid()") == pid


@pytest.mark.parametrize("fork", FORKS)
def test_pool_without_an_engine(signals: Signals, dsn: str, fork: Callable[[], int], admin: connection) -> None:
    """It begins anew in its place, and what was lent before never comes back to it."""
    with hooked(signals):
        pool = QueuePool(lambda: psycopg2.connect(dsn), pool_size=2, max_overflow=0, timeout=PATIENCE)
        held, other = pool.connect(), pool.connect()
        pid = ask(held.dbapi_connection, "select pg_backend_pid()")
        spare = ask(other.dbapi_connection, "select pg_backend_pid()")
        other.close()
        before = states(admin, [pid, spare])

        def child() -> Any:
            held.close()
            conns = [pool.connect() for _ in range(2)]
            return {ask(conn.dbapi_connection, "select pg_backend_pid()") for conn in conns} & {pid, spare}

        assert in_child(child, fork) == "set()"
        assert states(admin, [pid, spare]) == before
        held.close()
        pool.dispose()


def test_uninstrumented_dialect(signals: Signals, engines: Engines) -> None:
    """What the hook has put before the methods of a dialect is gone with it."""
    engine = engines()
    before = {**vars(engine.dialect)}
    with hooked(signals):
        borrow(engine)
        assert vars(engine.dialect).keys() - before.keys()
    assert not {"do_rollback", "do_close", "do_terminate"} & vars(engine.dialect).keys()
