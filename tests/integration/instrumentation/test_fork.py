"""Stock pools made before a fork: the child has connections and figures of its own, and leaves the parent's alone."""

from __future__ import annotations

import gc
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import connection
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

import otel_pgpool.instrumentation as hook
from otel_pgpool import PgPoolInstrumentor
from tests.support.database import IN_TRANSACTION, ask
from tests.support.forked_pools import DEEDS, end_by_putconn_key, states, use, warm
from tests.support.instrumentation import EXHAUSTED, instrumented, lent, name_of, quietly, tracker_of
from tests.support.processes import in_child
from tests.support.telemetry import MOMENT, assert_exactly, until
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.support.telemetry import Signals

Pool = Any


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize(
    ("cls", "instrument"),
    [(SimpleConnectionPool, instrumented), (ThreadedConnectionPool, instrumented), (ThreadedConnectionPool, quietly)],
)
@pytest.mark.usefixtures("fork")
def test_child_does_not_touch_the_parents_sessions(
    dsn: str,
    admin: connection,
    cls: type[Pool],
    instrument: Callable[[], AbstractContextManager[Any]],
    deed: Callable[[Any, connection], None],
) -> None:
    """Whatever the child does first, the server hears nothing on the parent's sockets, and a transaction goes on."""
    with instrument():
        pool = cls(2, 3, dsn)
        pids = warm(pool)
        key = ["held"] if deed is end_by_putconn_key else []
        held = pool.getconn(*key)
        ask(held, "create temporary table of_the_parent ()")
        before = states(admin, pids)
        in_child(lambda: deed(pool, held))
        assert states(admin, pids) == before
        assert held.info.transaction_status == IN_TRANSACTION
        assert ask(held, "select count(*) from of_the_parent") == 0
        pool.putconn(held, *key)
        assert use(pool) in pids


@pytest.mark.parametrize("moment", ["before the instrumentation", "before the instrumentation and used", "after"])
def test_child_has_backends_of_its_own(signals: Signals, dsn: str, moment: str) -> None:
    """The child connects anew, for a pool that nobody has used since the instrumentation came on as well."""
    pool = None if moment == "after" else ThreadedConnectionPool(2, 3, dsn)
    with instrumented(signals):
        pool = pool or ThreadedConnectionPool(2, 3, dsn)
        if moment == "before the instrumentation and used":
            use(pool)
        pids = [conn.get_backend_pid() for conn in pool._pool]
        assert int(in_child(lambda: use(pool))) not in pids
        assert use(pool) in pids


@pytest.mark.parametrize("instrument", [instrumented, quietly])
@pytest.mark.usefixtures("fork")
def test_figures_are_the_childs_own(dsn: str, instrument: Callable[[], AbstractContextManager[Any]]) -> None:
    """Levels and totals of the child begin at nothing, also where they are read first of all."""
    with instrument():
        pool = ThreadedConnectionPool(2, 3, dsn)
        held = pool.getconn()

        def child() -> str:
            first = tracker_of(pool).stats()
            pool.putconn(held)
            use(pool)
            after = tracker_of(pool).stats()
            levels = [first.used, first.idle, first.created, dict(first.discarded)]
            return json.dumps([*levels, after.used, after.checkouts["new"]])

        assert json.loads(in_child(child)) == [0, 0, 0, {"forked": 2}, 0, 1]
        pool.putconn(held)


def test_levels_and_totals_are_the_childs_own(signals: Signals, dsn: str) -> None:
    """What the parent holds, has done and was refused is not counted in the child, nor the other way round."""
    with instrumented(signals, long_hold=0.02):
        pool = ThreadedConnectionPool(1, 2, dsn)
        name = name_of(dsn)
        held = [pool.getconn(), pool.getconn()]
        with pytest.raises(PoolError):
            pool.getconn()
        # The watch's last word: a fork in the middle of it would leave locks of the SDK's held in the child.
        until(lambda: len(signals.logged("long_hold")) == 2 and signals.logged("utilization_critical"))

        def figures() -> dict[str, Any]:
            names = [f"db.client.connection.{each}" for each in ("count", "max", "pending_requests", "timeouts")]
            own = ("utilization", "oldest_hold", "checkouts", "long_holds", "connections.created")
            names += [f"otel_pgpool.{each}" for each in (*own, "connections.discarded")]
            return {each: list(map(list, signals.values(each, name).items())) for each in names}

        def child() -> str:
            fresh = figures()
            conn = pool.getconn()
            during = figures()
            pool.putconn(conn)
            return json.dumps([fresh, during])

        fresh, during = json.loads(in_child(child))
        assert fresh == {
            "db.client.connection.count": [[["used"], 0], [["idle"], 0]],
            "db.client.connection.max": [[[], 2]],
            "db.client.connection.pending_requests": [[[], 0]],
            "db.client.connection.timeouts": [[[], 0]],
            "otel_pgpool.utilization": [[[], 0.0]],
            "otel_pgpool.oldest_hold": [[[], 0.0]],
            "otel_pgpool.checkouts": [[["idle"], 0], [["queued"], 0], [["new"], 0]],
            "otel_pgpool.long_holds": [[[], 0]],
            "otel_pgpool.connections.created": [[[], 0]],
            "otel_pgpool.connections.discarded": [[["forked"], 2]],
        }
        assert during["db.client.connection.count"] == [[["used"], 1], [["idle"], 0]]
        assert during["otel_pgpool.utilization"] == [[[], 0.5]]
        assert during["otel_pgpool.checkouts"] == [[["idle"], 0], [["queued"], 0], [["new"], 1]]
        assert during["otel_pgpool.connections.created"] == [[[], 1]]
        assert signals.values("db.client.connection.count", name) == {("used",): 2, ("idle",): 0}
        assert signals.values("otel_pgpool.connections.discarded", name) == {}
        for conn in held:
            pool.putconn(conn)
        assert sum(signals.values("otel_pgpool.checkouts", name).values()) == 2


def test_histograms_are_the_childs_own(signals: Signals, dsn: str) -> None:
    """A child exports what it recorded itself, and not its parent's records once more."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        for _ in range(5):
            use(pool)

        def counts() -> list[int]:
            names = ("wait_time", "use_time", "create_time")
            points = [signals.points(f"db.client.connection.{name}", name_of(dsn)) for name in names]
            return [sum(point.count for point in each) for each in points]

        def child() -> list[list[int]]:
            fresh = counts()
            use(pool)
            return [fresh, counts()]

        assert json.loads(in_child(child)) == [[0, 0, 0], [1, 1, 1]]
        assert counts() == [5, 5, 1]


def test_spans_are_ended_once(signals: Signals, dsn: str) -> None:
    """A hold of the parent's is ended by the parent alone; the child has spans of its own, numbered afresh."""
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()

        def child() -> list[Any]:
            pool.putconn(conn)
            before = len(signals.named("pool.checkout"))
            use(pool)
            span = signals.checkout()
            attributes = dict(span.attributes or {})
            assert_exactly(attributes, lent(dsn, path="new", **{"connection.id": 1}))
            return [before, attributes["otel_pgpool.connection.pid"]]

        before, pid = json.loads(in_child(child))
        assert before == 0
        assert pid != conn.get_backend_pid()
        pool.putconn(conn)
        assert_exactly(signals.checkout().attributes, lent(dsn))


def test_long_holds_of_the_parent_are_told_by_the_parent(signals: Signals, dsn: str) -> None:
    """A hold from before the fork is no hold of the child's; one of the child's own is watched there."""
    with instrumented(signals, long_hold=0.05):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()

        def child() -> int:
            signals.records.all.clear()  # if the fork was late
            pool.getconn()
            until(lambda: signals.logged("long_hold"))
            assert not wait_until(lambda: len(signals.logged("long_hold")) > 1, MOMENT)
            return len(signals.logged("long_hold"))

        assert int(in_child(child)) == 1
        until(lambda: signals.logged("long_hold"))
        pool.putconn(conn)
        assert len(signals.logged("long_hold")) == 1


@pytest.mark.usefixtures("fork")
def test_long_holds_are_watched(signals: Signals, dsn: str) -> None:
    """The child has a thread of its own that watches."""
    with instrumented(signals, long_hold=0.05):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())

        def child() -> int:
            pool.getconn()
            until(lambda: signals.logged("long_hold"))
            return len(signals.logged("long_hold"))

        assert in_child(child) == "1"


@pytest.mark.usefixtures("fork")
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

        assert in_child(refused) == "refused"


@pytest.mark.usefixtures("fork")
def test_fork_while_a_thread_holds_the_pools_lock(signals: Signals, dsn: str) -> None:
    """A child that was forked in the middle of another thread's getconn can use its pool."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 2, dsn)
        use(pool)
        with pool._lock:
            pid = int(in_child(lambda: use(pool)))
        assert pid not in [conn.get_backend_pid() for conn in pool._pool]


def test_locks_of_the_programs_own(signals: Signals, dsn: str) -> None:
    """A `_lock` that a program gave its pool stays of its kind in the child."""

    class Reentrant(SimpleConnectionPool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._lock = threading.RLock()
            super().__init__(*args, **kwargs)

        def getconn(self, key: object = None) -> Any:
            with self._lock, self._lock:
                return super().getconn(key)

    class Signalling(ThreadedConnectionPool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._lock = threading.Condition()

        def putconn(self, *args: Any, **kwargs: Any) -> None:
            super().putconn(*args, **kwargs)
            with self._lock:
                self._lock.notify()

    with instrumented(signals):
        for cls in (Reentrant, Signalling):
            pool = cls(1, 1, dsn)
            assert int(in_child(lambda pool=pool: use(pool))) != use(pool)


@pytest.mark.usefixtures("fork")
def test_waiters_are_the_parents(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody of the parent's queue stands in the child's, and the parent's is served as ever."""
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", str(PATIENCE))
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()
        future = in_thread(pool.getconn)
        until(lambda: len(tracker_of(pool).waiting) == 1)

        def child() -> int:
            assert signals.values("db.client.connection.pending_requests", name_of(dsn)) == {(): 0}
            return use(pool)

        assert int(in_child(child)) != conn.get_backend_pid()
        pool.putconn(conn)
        pool.putconn(future.result(PATIENCE))


def test_getconn_that_forks(signals: Signals, dsn: str) -> None:
    """A fork inside a program's own getconn leaves no trace of it in the child."""

    class Forking(ThreadedConnectionPool):
        fork: Any = None

        def getconn(self, key: object = None) -> Any:
            fork, self.fork = self.fork, None
            return super().getconn(key) if fork is None else fork()

    with instrumented(signals):
        pool = Forking(1, 1, dsn)

        def child() -> int:
            use(pool)
            return len(signals.named("pool.checkout"))

        pool.fork = lambda: in_child(child)
        assert pool.getconn() == "1"


@pytest.mark.usefixtures("fork")
def test_abstract_pool(signals: Signals, dsn: str, admin: connection) -> None:
    """What derives from the abstract pool is as safe."""

    class Library(AbstractConnectionPool):
        def borrow(self) -> Any:
            return self._getconn()  # type: ignore[attr-defined]

        def give(self, conn: Any) -> None:
            self._putconn(conn)  # type: ignore[attr-defined]

    with instrumented(signals):
        pool = Library(2, 2, dsn)
        pids = warm(pool)
        held = pool.borrow()
        before = states(admin, pids)

        def child() -> int:
            pool.give(held)
            conn = pool.borrow()
            pid = ask(conn, "select pg_backend_pid()")
            pool.give(conn)
            assert isinstance(pid, int)
            return pid

        assert int(in_child(child)) not in pids
        assert states(admin, pids) == before


class Closing(connection):
    """A program's own connection that closes itself when it goes, as some write for tidiness."""

    def __del__(self) -> None:
        self.close()


def test_connections_that_close_themselves(signals: Signals, dsn: str, admin: connection) -> None:
    """Even those do not end the parent's sessions when the child lets go of them."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(2, 2, dsn, connection_factory=Closing)
        pids = warm(pool)
        pool.getconn()

        def child() -> int:
            pid = use(pool)
            gc.collect()
            return pid

        before = states(admin, pids)
        assert int(in_child(child)) not in pids
        assert states(admin, pids) == before


def test_closed_pool(signals: Signals, dsn: str) -> None:
    """A pool closed by the parent is closed in the child."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.closeall()

        def child() -> str:
            with pytest.raises(PoolError) as caught:
                pool.getconn()
            return str(caught.value)

        assert in_child(child) == "connection pool is closed"


def test_grandchild(signals: Signals, dsn: str) -> None:
    """A child that forks is a parent like any other."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        mine = use(pool)

        def child() -> str:
            theirs = use(pool)
            return json.dumps([theirs, int(in_child(lambda: use(pool))), use(pool)])

        theirs, grandchild, theirs_still = json.loads(in_child(child))
        assert len({mine, theirs, grandchild}) == 3
        assert theirs == theirs_still


def test_limit_is_the_childs_own(signals: Signals, dsn: str) -> None:
    """A pool that the parent has exhausted is free in the child, and exhausted there by the child alone."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.getconn()

        def child() -> str:
            pool.getconn()
            with pytest.raises(PoolError) as caught:
                pool.getconn()
            return str(caught.value)

        assert in_child(child) == EXHAUSTED


def test_uninstrument_in_the_child(signals: Signals, dsn: str, admin: connection) -> None:
    """The child may take the instrumentation off: its pool is a stock pool with connections of its own."""
    with instrumented(signals) as instrumentor:
        pool = ThreadedConnectionPool(1, 2, dsn)
        pids = warm(pool)
        before = states(admin, pids)

        def child() -> int:
            instrumentor.uninstrument()
            return use(pool)

        assert int(in_child(child)) not in pids
        assert states(admin, pids) == before


def test_error_of_the_child_is_not_the_parents(signals: Signals, dsn: str) -> None:
    """An outage that the child sees is the child's."""
    with instrumented(signals):
        pool = ThreadedConnectionPool(0, 1, dsn)

        def child() -> int:
            pool._args = ("host=127.0.0.1 port=1 user=postgres",)
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn()
            return len(signals.logged("outage_started"))

        assert int(in_child(child)) == 1
        assert signals.logged("outage_started") == []


def test_locks_that_another_thread_held_at_the_fork(instrumentation: None) -> None:
    """A child can end the instrumentation, although the parent was about to change it."""
    held, done = threading.Event(), threading.Event()

    def change() -> None:
        installed = hook._installed
        assert installed is not None
        with hook._lock, installed._lock:
            held.set()
            done.wait(PATIENCE)

    def child() -> None:
        signal.alarm(10)
        PgPoolInstrumentor().uninstrument()

    thread = threading.Thread(target=change)
    thread.start()
    held.wait(PATIENCE)
    try:
        in_child(child)
    finally:
        done.set()
        thread.join()
