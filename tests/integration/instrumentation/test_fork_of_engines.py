"""Engines and pools of SQLAlchemy made before a fork: the child leaves the parent's connections alone.

Each deed is the first thing that the child does, so that nothing else has seen before it where it runs.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from tests.support.database import IN_TRANSACTION, ask
from tests.support.forked_pools import states
from tests.support.processes import in_child
from tests.support.sqlalchemy_engines import borrow, driver, engine_tracker, fill, hooked, select
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

pytestmark = pytest.mark.usefixtures("fork")


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


@pytest.mark.parametrize("deed", ENDS)
def test_engine(
    signals: Signals,
    engines: Engines,
    admin: connection,
    deed: Callable[[Any, Any], None],
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
            in_child(lambda: deed(engine, held))
            assert states(admin, pids) == before
            assert driver(held).info.transaction_status == IN_TRANSACTION
            assert ask(driver(held), "select count(*) from of_the_parent") == 0
            assert len(signals.live()) == 1
        assert signals.live() == []
        assert borrow(engine) in pids


def test_dropped_by_the_child(signals: Signals, engines: Engines, admin: connection) -> None:
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

        assert int(in_child(child)) != pid
        assert states(admin, [pid]) == before
        held.pop().close()


def test_what_comes_back_is_not_lent(signals: Signals, engines: Engines, admin: connection) -> None:
    """Nor is it heard of again, but counted: a rollback in the child takes it from the child."""
    with hooked(signals):
        engine = engines(pool_size=1, max_overflow=0, pool_reset_on_return=None)
        raw: Any = engine.raw_connection()
        pid = ask(raw.dbapi_connection, "select pg_backend_pid()")
        before = states(admin, [pid])

        def child() -> Any:
            raw.close()
            return borrow(engine), borrow(engine), engine_tracker(engine).stats().discarded["forked"]

        first, second, forked = in_child(child).strip("()").split(", ")
        assert first == second != str(pid)
        assert forked == "1"
        assert states(admin, [pid]) == before
        raw.close()


@pytest.mark.parametrize("pool", [NullPool, StaticPool, QueuePool])
def test_other_pools(signals: Signals, engines: Engines, pool: type[Any]) -> None:
    """Kinds that keep one connection, or none."""
    with hooked(signals):
        engine = engines(poolclass=pool)
        with engine.connect() as held:
            pid = select(held, "select pg_backend_pid()")
            assert int(in_child(lambda: borrow(engine))) != pid
            assert select(held, "select pg_backend_pid()") == pid


def test_pool_without_an_engine(signals: Signals, dsn: str, admin: connection) -> None:
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

        assert in_child(child) == "set()"
        assert states(admin, [pid, spare]) == before
        held.close()
        pool.dispose()


def test_uninstrumented_dialect(signals: Signals, engines: Engines) -> None:
    """What the instrumentation has put before the methods of a dialect is gone with it."""
    engine = engines()
    before = {**vars(engine.dialect)}
    with hooked(signals):
        borrow(engine)
        assert vars(engine.dialect).keys() - before.keys()
    assert not {"do_rollback", "do_close", "do_terminate"} & vars(engine.dialect).keys()
