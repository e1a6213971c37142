"""What programs derive from psycopg2's pools: the whole of their getconn is in the checkout, and each is told once."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import connection
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

from tests.support.database import ask
from tests.support.instrumentation import EXHAUSTED, denied, instrumented, lent, name_of, tracker_of
from tests.support.telemetry import assert_exactly, is_child, until
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.telemetry import Signals

Pool = Any


@pytest.fixture(params=["before", "after"])
def define(request: pytest.FixtureRequest, signals: Signals) -> Iterator[Callable[[Any], Any]]:
    """Decorate a class that is made before the instrumentation begins, or after; it has begun either way afterwards."""
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(instrumented(signals, long_hold=None))

        def made_before(cls: Any) -> Any:
            begin()
            return cls

        if request.param == "after":
            begin()
        yield made_before if request.param == "before" else lambda cls: cls


def is_one_checkout(signals: Signals, dsn: str, **changes: Any) -> dict[str, Any]:
    """There is one checkout, with all its attributes, ended; these are told in the totals too."""
    span = signals.checkout()
    assert_exactly(span.attributes, lent(dsn, **changes))
    assert signals.live() == []
    assert sum(signals.values("otel_pgpool.checkouts", name_of(dsn)).values()) == 1
    return dict(span.attributes or {})


# getconn of their own


def test_with_a_semaphore(signals: Signals, define: Any, dsn: str) -> None:
    """The wait for the program's own semaphore is in the checkout's."""

    @define
    class Waiting(ThreadedConnectionPool):
        def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
            self.places = threading.BoundedSemaphore(maxconn)
            super().__init__(minconn, maxconn, *args, **kwargs)

        def getconn(self, *args: Any, **kwargs: Any) -> Any:
            self.places.acquire()
            try:
                return super().getconn(*args, **kwargs)
            except BaseException:
                self.places.release()
                raise

        def putconn(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().putconn(*args, **kwargs)
            finally:
                self.places.release()

    pool = Waiting(1, 1, dsn)
    conn = pool.getconn()
    waiter = in_thread(pool.getconn)
    (_first, second) = until(lambda: spans if len(spans := signals.live()) == 2 else None)
    began = time.monotonic()
    assert wait_until(lambda: time.monotonic() - began > 0.05)
    pool.putconn(conn)
    assert waiter.result(PATIENCE) is conn
    pool.putconn(conn)
    spans = signals.named("pool.checkout")
    assert len(spans) == 2
    for span in spans:
        assert_exactly(span.attributes, lent(dsn))
    assert spans[1].context == second.get_span_context()
    assert spans[1].attributes is not None
    assert spans[1].attributes["otel_pgpool.wait_time"] > 0.05
    assert signals.values("otel_pgpool.checkouts", name_of(dsn)) == {("idle",): 2, ("queued",): 0, ("new",): 0}


def test_with_retries(signals: Signals, define: Any, dsn: str) -> None:
    """One that asks until it is served is one checkout, which has queued, and no timeout."""

    @define
    class Retrying(ThreadedConnectionPool):
        asked = 0

        def getconn(self, key: object = None) -> Any:
            while True:
                try:
                    return super().getconn(key)
                except PoolError:
                    self.asked += 1
                    time.sleep(0.001)

    pool = Retrying(1, 1, dsn)
    conn = pool.getconn()
    waiter = in_thread(pool.getconn)
    assert wait_until(lambda: pool.asked > 3)
    assert tracker_of(pool).stats().waiting == 1
    pool.putconn(conn)
    pool.putconn(waiter.result(PATIENCE))
    checkouts = sorted(signals.named("pool.checkout"), key=lambda span: span.start_time or 0)  # either may end first
    assert [(span.attributes or {})["otel_pgpool.path"] for span in checkouts] == ["idle", "queued"]
    assert tracker_of(pool).stats().waiting == 0
    assert signals.values("db.client.connection.timeouts", name_of(dsn)) == {(): 0}
    assert signals.logged("timeout") == []


def test_that_tries_what_it_got(signals: Signals, define: Any, dsn: str) -> None:
    """One that throws dead connections away lends one: the others are discarded, and hold nothing."""

    @define
    class Checking(SimpleConnectionPool):
        def getconn(self, key: object = None) -> Any:
            while True:
                conn = super().getconn(key)
                try:
                    conn.cursor().execute("select 1")
                    conn.rollback()
                except psycopg2.Error:
                    self.putconn(conn, key, close=True)
                    continue
                return conn

    pool = Checking(2, 2, dsn)
    for conn in pool._pool:
        conn.close()
    pool.putconn(pool.getconn())
    is_one_checkout(signals, dsn, path="new", **{"connection.id": 3})
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 2}
    assert signals.values("otel_pgpool.connections.created", name_of(dsn)) == {(): 3}
    assert is_child(signals.named("pool.connect")[2], signals.checkout())


def test_as_a_context_manager(signals: Signals, define: Any, dsn: str) -> None:
    """A getconn that is a context manager around the stock one: one checkout, from entry to exit, no span left over."""

    @define
    class Managed(ThreadedConnectionPool):
        @contextmanager
        def getconn(self) -> Iterator[Any]:
            conn = super().getconn()
            try:
                yield conn
            finally:
                self.putconn(conn)

    pool = Managed(1, 1, dsn)
    manager = pool.getconn()
    assert signals.live() == []
    with manager as conn:
        assert ask(conn, "select 1") == 1
        assert len(signals.live()) == 1
    is_one_checkout(signals, dsn)


def test_that_returns_an_object_of_its_own(signals: Signals, define: Any, dsn: str) -> None:
    """Where the program wraps connections, what the stock pool gave inside is what is lent."""

    class Wrapped:
        def __init__(self, conn: connection) -> None:
            self.conn = conn

    @define
    class Wrapping(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return Wrapped(super().getconn(key))

        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            super().putconn(conn.conn, key, close)

    pool = Wrapping(1, 1, dsn)
    wrapped = pool.getconn()
    assert type(wrapped) is Wrapped
    assert len(signals.live()) == 1
    pool.putconn(wrapped)
    is_one_checkout(signals, dsn)


def test_that_returns_none(signals: Signals, define: Any, dsn: str) -> None:
    """One that swallows the stock error has failed all the same."""

    @define
    class Polite(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            try:
                return super().getconn(key)
            except PoolError:
                return None

    pool = Polite(0, 0, dsn)
    assert pool.getconn() is None
    assert_exactly(signals.checkout().attributes, denied(dsn, "timeout", "timeout", "idle"))


def test_that_goes_beyond_the_pool(signals: Signals, define: Any, dsn: str) -> None:
    """A connection made beside an exhausted pool is a checkout too, and ends with its return."""

    @define
    class Overflowing(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            try:
                return super().getconn(key)
            except PoolError:
                return psycopg2.connect(*self._args, **self._kwargs)

        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            if id(conn) in self._rused:
                super().putconn(conn, key, close)
            else:
                conn.close()

    pool = Overflowing(0, 0, dsn)
    pool.putconn(pool.getconn())
    is_one_checkout(signals, dsn)
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("idle",): 1}


def test_with_other_parameters(signals: Signals, define: Any, dsn: str) -> None:
    """A first parameter that is no key is not taken for one, whatever keys are in use."""

    @define
    class Timed(ThreadedConnectionPool):
        def getconn(self, timeout: float = 5, *, user: str = "") -> Any:
            return super().getconn()

        def putconn(self, given: Any, *, failed: bool = False) -> None:
            super().putconn(conn=given, close=failed)

    pool = Timed(2, 2, dsn)
    first = pool.getconn(1)
    assert 1 in pool._used
    second = pool.getconn(1, user="me")
    assert second is not first
    assert [live.name for live in signals.live()] == ["pool.checkout"] * 2
    pool.putconn(given=second)
    pool.putconn(first, failed=True)
    outcomes = [span.attributes["otel_pgpool.outcome"] for span in signals.named("pool.checkout")]  # type: ignore[index]
    assert outcomes == ["released", "discarded"]
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}


@pytest.mark.parametrize("parameter", ["key", "name"])
def test_with_keys(signals: Signals, define: Any, dsn: str, parameter: str) -> None:
    """A key that is handed on is one checkout, however the parameter is called."""

    class Keyed(ThreadedConnectionPool):
        pass

    namespace: dict[str, Any] = {"Keyed": Keyed}
    exec(  # noqa: S102 - for the parameter's name
        f"def getconn(self, {parameter}=None): return super(Keyed, self).getconn({parameter})", namespace
    )
    Keyed.getconn = namespace["getconn"]  # type: ignore[method-assign]
    pool = define(type("Derived", (Keyed,), {"getconn": namespace["getconn"]}))(2, 2, dsn)
    conn = pool.getconn("me")
    assert pool.getconn("me") is conn
    pool.putconn(conn, "me")
    assert_exactly(signals.checkout().attributes, lent(dsn))
    assert tracker_of(pool).held == {}
    assert sum(signals.values("otel_pgpool.checkouts", name_of(dsn)).values()) == 1


def test_that_raises_after_it_was_served(signals: Signals, define: Any, dsn: str) -> None:
    """What a program does to the connection inside its getconn may fail: the checkout has failed with it."""

    @define
    class Preparing(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            conn = super().getconn(key)
            try:
                conn.cursor().execute("select 'secret-word' from nowhere")
            except psycopg2.Error:
                self.putconn(conn, close=True)
                raise
            return conn

    pool = Preparing(1, 1, dsn)
    with pytest.raises(psycopg2.errors.UndefinedTable):
        pool.getconn()
    assert_exactly(signals.checkout().attributes, denied(dsn, "error", "42P01"))
    assert tracker_of(pool).held == {}
    assert "secret-word" not in signals.everything()


# putconn and closeall of their own


def test_close_inside_putconn(signals: Signals, define: Any, dsn: str) -> None:
    """A putconn that has the stock one close the connection: one checkout, one connection discarded."""

    class Spendthrift(ThreadedConnectionPool):
        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            super().putconn(conn, key, close=True)

    @define
    class Heir(Spendthrift):
        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            super().putconn(conn, key, close)

    pool = Heir(1, 1, dsn)
    pool.putconn(pool.getconn())
    is_one_checkout(signals, dsn, outcome="discarded")
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}
    assert len(signals.logged("discarded")) == 1


def test_putconn_that_catches(signals: Signals, define: Any, dsn: str) -> None:
    """A putconn that tries again, closing, after the stock one has failed gives back once."""

    class Brittle(connection):
        def rollback(self) -> None:
            raise psycopg2.OperationalError("rollback failed")

    @define
    class Careful(ThreadedConnectionPool):
        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            try:
                super().putconn(conn, key, close)
            except psycopg2.Error:
                super().putconn(conn, key, close=True)

    pool = Careful(1, 1, dsn, connection_factory=Brittle)
    conn = pool.getconn()
    ask(conn, "select 1")
    pool.putconn(conn)
    is_one_checkout(signals, dsn, outcome="discarded", error="OperationalError")
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}
    assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 0}


def test_closeall_of_their_own(signals: Signals, define: Any, dsn: str) -> None:
    """Each connection is closed once."""

    @define
    class Closing(ThreadedConnectionPool):
        def closeall(self) -> None:
            super().closeall()

    pool = Closing(3, 3, dsn)
    pool.getconn()
    pool.closeall()
    is_closed = [record.attributes["otel_pgpool.reason"] for record in signals.logged("discarded")]
    assert is_closed == ["closed"] * 3
    assert_exactly(signals.checkout().attributes, lent(dsn, outcome="discarded"))


def test_connect_of_their_own(signals: Signals, define: Any, dsn: str) -> None:
    """A `_connect` around the stock one is one connect."""

    @define
    class Prepared(ThreadedConnectionPool):
        def _connect(self, key: object = None) -> Any:
            conn = super()._connect(key)  # type: ignore[misc]
            conn.autocommit = True
            return conn

    pool = Prepared(0, 1, dsn)
    pool.putconn(pool.getconn())
    is_one_checkout(signals, dsn, path="new")
    assert is_child(signals.one("pool.connect"), signals.checkout())


# Of the abstract pool


def test_methods_of_other_names(signals: Signals, define: Any, dsn: str) -> None:
    """A pool with `borrow` and `give` is seen where it must pass: at the abstract pool's steps."""

    @define
    class Library(AbstractConnectionPool):
        def borrow(self) -> Any:
            return self._getconn()  # type: ignore[attr-defined]

        def give(self, conn: Any, **how: Any) -> None:
            self._putconn(conn, **how)  # type: ignore[attr-defined]

        def shut(self) -> None:
            self._closeall()  # type: ignore[attr-defined]

    pool = Library(1, 1, dsn)
    pool.give(pool.borrow())
    is_one_checkout(signals, dsn)
    pool.borrow()
    pool.shut()
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn, outcome="discarded"))
    assert signals.points("db.client.connection.max", name_of(dsn)) == []


def test_grandchild_of_the_abstract_pool(signals: Signals, define: Any, dsn: str) -> None:
    """What derives from such a pool is told once, and its connection discarded once."""

    class Library(AbstractConnectionPool):
        def borrow(self) -> Any:
            return self._getconn()  # type: ignore[attr-defined]

        def give(self, conn: Any, **how: Any) -> None:
            self._putconn(conn, **how)  # type: ignore[attr-defined]

    class Branch(Library):
        pass

    @define
    class Desk(Branch):
        def _getconn(self, key: object = None) -> Any:
            return super()._getconn(key)  # type: ignore[misc]

    pool = Desk(1, 1, dsn)
    pool.give(pool.borrow(), close=True)
    is_one_checkout(signals, dsn, outcome="discarded")
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}


def test_half_of_the_names(signals: Signals, define: Any, dsn: str) -> None:
    """A pool with a `getconn` and a `release` is seen at both."""

    @define
    class Half(AbstractConnectionPool):
        lock = threading.Condition()

        def getconn(self) -> Any:
            with self.lock:
                while len(self._used) >= self.maxconn:  # type: ignore[attr-defined]
                    assert self.lock.wait(PATIENCE)
                return self._getconn()  # type: ignore[attr-defined]

        def release(self, conn: Any) -> None:
            with self.lock:
                self._putconn(conn)  # type: ignore[attr-defined]
                self.lock.notify()

    pool = Half(1, 1, dsn)
    conn = pool.getconn()
    waiter = in_thread(pool.getconn)
    until(lambda: len(signals.live()) == 2)
    pool.release(conn)
    pool.release(waiter.result(PATIENCE))
    assert len(signals.named("pool.checkout")) == 2
    assert signals.live() == []


# Classes


def test_alias(signals: Signals, define: Any, dsn: str) -> None:
    """A class that takes the stock methods over as they stand when it is made is told once."""

    @define
    class Alias(ThreadedConnectionPool):
        getconn = ThreadedConnectionPool.getconn
        putconn = ThreadedConnectionPool.putconn
        take = ThreadedConnectionPool.getconn

    pool = Alias(1, 1, dsn)
    pool.putconn(pool.getconn(), close=True)
    is_one_checkout(signals, dsn, outcome="discarded")
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}
    pool.putconn(pool.take())
    assert len(signals.named("pool.checkout")) == 2


def test_alias_of_a_step(signals: Signals, define: Any, dsn: str) -> None:
    """A pool may give the abstract pool's steps names of its own, as psycopg2's own classes do."""

    @define
    class Library(AbstractConnectionPool):
        borrow = AbstractConnectionPool._getconn  # type: ignore[attr-defined]
        give = AbstractConnectionPool._putconn  # type: ignore[attr-defined]
        shut = AbstractConnectionPool._closeall  # type: ignore[attr-defined]

    pool = Library(1, 1, dsn)
    pool.give(pool.borrow())
    is_one_checkout(signals, dsn)
    pool.borrow()
    pool.shut()
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn, outcome="discarded"))


def test_diamond(signals: Signals, define: Any, dsn: str) -> None:
    """So is a class that comes by its getconn twice."""

    class Left(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    class Right(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    @define
    class Both(Left, Right):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    pool = Both(1, 1, dsn)
    pool.putconn(pool.getconn())
    is_one_checkout(signals, dsn)


def test_mixin(signals: Signals, define: Any, dsn: str) -> None:
    """A getconn from a class that is no pool is passed through to the stock one."""

    class Counted:
        count = 0

        def getconn(self, key: object = None) -> Any:
            self.count += 1
            return super().getconn(key)  # type: ignore[misc]

    @define
    class Both(Counted, ThreadedConnectionPool):
        pass

    pool = Both(1, 1, dsn)
    pool.putconn(pool.getconn())
    assert pool.count == 1
    is_one_checkout(signals, dsn)


def test_classes_with_keywords(signals: Signals, instrumentation: None) -> None:
    """A program's own `__init_subclass__` works as ever, and so does the error where there is none."""
    seen = []

    class Registered(ThreadedConnectionPool):
        def __init_subclass__(cls, /, label: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append((cls.__name__, label))

    class Labelled(Registered, label="mine"):
        pass

    assert seen == [("Labelled", "mine")]
    with pytest.raises(TypeError, match=r"Wrong.__init_subclass__\(\) takes no keyword arguments$"):

        class Wrong(ThreadedConnectionPool, label="mine"):  # type: ignore[call-arg]
            pass


def test_class_that_cannot_be_changed(signals: Signals, dsn: str) -> None:
    """A class that refuses new attributes stays as it is, made before or after; the others are instrumented."""

    class Frozen(type):
        def __setattr__(cls, name: str, value: object) -> None:
            raise AttributeError("frozen")

    def make() -> type[Pool]:
        class Still(ThreadedConnectionPool, metaclass=Frozen):
            def getconn(self, key: object = None) -> Any:
                return super().getconn(key)

        return Still

    before = make()
    with instrumented(signals):
        for cls in (before, make()):
            pool = cls(1, 1, dsn)
            pool.putconn(pool.getconn())
            pool.closeall()
        assert len(signals.named("pool.checkout")) == 2


def test_pool_with_slots_and_attributes_of_its_own(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A pool that refuses new attributes works as ever; what is wrong is logged once."""

    class Strict(ThreadedConnectionPool):
        def __setattr__(self, name: str, value: object) -> None:
            if name.startswith("_otel"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    pool = Strict(1, 1, dsn)
    for _ in range(5):
        conn = pool.getconn()
        assert ask(conn, "select 1") == 1
        pool.putconn(conn)
    assert len([record for record in signals.records.all if record.record.levelname == "ERROR"]) == 1


def test_pool_that_shows_what_another_has(signals: Signals, define: Any, dsn: str) -> None:
    """A pool in front of another, whose attributes it passes off as its own, has telemetry of its own."""

    @define
    class Front(ThreadedConnectionPool):
        behind: Any = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.behind, name)

    cls = Front
    pool = cls(1, 2, dsn)
    pool.behind = ThreadedConnectionPool(1, 2, dsn)
    pool.putconn(pool.getconn())
    assert tracker_of(pool).stats().checkouts["idle"] == 1
    assert tracker_of(pool.behind).stats().checkouts["idle"] == 0
    pool.behind.closeall()


def test_threads_in_a_subclass(signals: Signals, define: Any, dsn: str) -> None:
    """Many threads in a getconn with retries: none counted twice, none lost, nothing out at the end."""

    @define
    class Retrying(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            while True:
                try:
                    return super().getconn(key)
                except PoolError:
                    time.sleep(0.0005)

    pool = Retrying(2, 3, dsn)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            conn = pool.getconn()
            assert ask(conn, "select 1") == 1
            pool.putconn(conn, close=chance.random() < 0.1)

    for future in [in_thread(work, seed) for seed in range(6)]:
        future.result(PATIENCE)
    spans = signals.named("pool.checkout")
    assert len(spans) == 150
    assert signals.live() == []
    stats = tracker_of(pool).stats()
    assert sum(stats.checkouts.values()) == 150
    assert stats.created - sum(stats.discarded.values()) == stats.size == stats.idle
    paths = [span.attributes["otel_pgpool.path"] for span in spans]  # type: ignore[index]
    assert paths.count("new") == stats.created - 2
    assert (tracker_of(pool).held, tracker_of(pool).waiting) == ({}, {})


def test_exhausted_subclass_raises_as_ever(signals: Signals, define: Any, dsn: str) -> None:
    """One span, one timeout, however many classes the error comes through."""

    class Outer(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return super().getconn(key)

    pool = define(type("Derived", (Outer,), {}))(0, 0, dsn)
    with pytest.raises(PoolError, match=f"^{EXHAUSTED}$"):
        pool.getconn()
    assert_exactly(signals.checkout().attributes, denied(dsn, "timeout", "timeout", "idle"))
    assert signals.values("db.client.connection.timeouts", name_of(dsn)) == {(): 1}


# Ways of their own


def test_that_lends_a_thread_its_own_once_more(signals: Signals, define: Any, dsn: str) -> None:
    """A hand-over ends the checkout before it, and nothing stays out when all has come back."""

    @define
    class Reentrant(ThreadedConnectionPool):
        depth = 0
        own: Any = None

        def getconn(self, key: object = None) -> Any:
            if not self.depth:
                self.own = super().getconn(key)
            self.depth += 1
            return self.own

        def putconn(self, conn: Any = None, key: object = None, close: bool = False) -> None:
            self.depth -= 1
            if not self.depth:
                super().putconn(conn, key, close)

    pool = Reentrant(1, 1, dsn)
    for _ in range(3):
        outer, inner = pool.getconn(), pool.getconn()
        assert inner is outer
        pool.putconn(inner)
        pool.putconn(outer)
    assert (len(tracker_of(pool).held), signals.live()) == (0, [])


class Releasing(ThreadedConnectionPool):
    """Gives back by a method of its own."""

    def release(self, conn: Any) -> None:
        with self._lock:
            self._putconn(conn)


def test_that_gives_back_in_its_own_way(signals: Signals, dsn: str) -> None:
    """What lies in the pool is held by nobody: its checkout ends with the next, and is never taken for a long hold."""
    with instrumented(signals, long_hold=PATIENCE):
        pool = Releasing(1, 1, dsn)
        for _ in range(3):
            pool.release(pool.getconn())
        assert len(tracker_of(pool).held) <= 1
        tracker_of(pool).long_hold = 0.001
        assert wait_until(lambda: not tracker_of(pool).held)
        assert signals.live() == []
        assert tracker_of(pool).long_holds == 0
        assert len(signals.named("pool.checkout")) == 3
        pool.closeall()


def test_that_gives_back_in_its_own_way_and_waits(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for such a return has it, though nobody tells."""
    monkeypatch.setenv("OTEL_PGPOOL_WAIT_TIMEOUT", str(PATIENCE))
    with instrumented(signals, long_hold=None):
        pool = Releasing(1, 1, dsn)
        conn = pool.getconn()
        waiting = in_thread(lambda: pool.putconn(pool.getconn()))
        assert wait_until(lambda: tracker_of(pool).stats().waiting)
        pool.release(conn)
        waiting.result(PATIENCE)
        pool.closeall()


def test_whose_overflow_is_closed_by_the_borrower(signals: Signals, define: Any, dsn: str) -> None:
    """A connection that was never the pool's, and went without a return, is not held for ever."""

    @define
    class Beside(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return psycopg2.connect(*self._args, **self._kwargs)

    pool = Beside(0, 0, dsn)
    conn = pool.getconn()
    assert len(tracker_of(pool).held) == 1
    conn.close()
    del conn
    assert wait_until(lambda: signals.named("pool.checkout"))
    assert tracker_of(pool).held == {}
    assert signals.checkout().attributes["otel_pgpool.outcome"] == "reclaimed"  # type: ignore[index]


@pytest.mark.parametrize("given", [None, "a word", ("a", "pair")])
def test_that_gives_something_else(signals: Signals, define: Any, dsn: str, given: object) -> None:
    """What is no connection ends its checkout at once: nobody will tell of its return."""

    @define
    class Odd(ThreadedConnectionPool):
        def getconn(self, key: object = None) -> Any:
            return given

    pool = Odd(0, 1, dsn)
    assert pool.getconn() is given
    is_one_checkout(signals, dsn, **{"connection.pid": 0})
    assert tracker_of(pool).slots == {}


def test_with_a_parameter_called_pool(signals: Signals, define: Any, dsn: str) -> None:
    """Keywords of the program's own collide with none of ours."""

    @define
    class Named(ThreadedConnectionPool):
        def getconn(self, key: object = None, *, pool: str = "main") -> Any:
            return super().getconn(key)

        def putconn(self, conn: Any = None, key: object = None, close: bool = False, *, pool: str = "main") -> None:
            super().putconn(conn, key, close)

    pool = Named(1, 1, dsn)
    pool.putconn(pool.getconn(pool="other"), pool="other")
    is_one_checkout(signals, dsn)


def test_that_cannot_be_made(signals: Signals, define: Any, dsn: str) -> None:
    """A pool whose constructor failed has neither name nor series, though an error keeps it alive."""
    errors: list[BaseException] = []

    @define
    class Refused(ThreadedConnectionPool):
        def _connect(self, key: object = None) -> Any:
            if len(errors) < 2:
                raise psycopg2.OperationalError("refused")
            return super()._connect(key)

    cls = Refused
    for _ in range(2):
        with pytest.raises(psycopg2.OperationalError) as refused:
            cls(1, 1, dsn)
        errors.append(refused.value)
    pool = cls(1, 1, dsn)
    assert tracker_of(pool).name == name_of(dsn)
    assert signals.points("db.client.connection.max", f"{name_of(dsn)} #2") == []


class Unreadable(ThreadedConnectionPool):
    """Keeps its connections in something that is no list."""

    _pool: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pool = None


def test_that_cannot_be_read(signals: Signals, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """It costs no other pool its figures, and is told of once a minute."""
    with instrumented(signals, long_hold=0.01):
        odd, well = Unreadable(0, 1, dsn), ThreadedConnectionPool(1, 3, dsn)
        conn = well.getconn()
        for _ in range(3):
            assert signals.value("db.client.connection.max", pool_name=tracker_of(well).name) == 3
        assert wait_until(lambda: tracker_of(well).long_holds)
        well.putconn(conn)
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1
        assert tracker_of(odd).name in errors[0]
        well.closeall()
        odd._pool = []
        odd.closeall()
