"""A program's own objects, which refuse what the library does not ask: the program goes on as uninstrumented."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, cast

import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy
from psycopg2.pool import PoolError, SimpleConnectionPool, ThreadedConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import QueuePool

from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.adapters.psycopg2.driver import Psycopg2Driver
from otel_pgpool.instrumentation.adapters.sqlalchemy import events, install, wrappers
from otel_pgpool.instrumentation.pending_connects import PendingConnect
from otel_pgpool.instrumentation.tracker import PoolTracker
from otel_pgpool.types import TransactionStatus
from tests.support.instrumentation import quietly
from tests.support.sqlalchemy_engines import borrow, hooked
from tests.support.telemetry import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

IDLE = psycopg2.extensions.TRANSACTION_STATUS_IDLE
INERROR = psycopg2.extensions.TRANSACTION_STATUS_INERROR


class UnexpectedError(RuntimeError):
    """Of a strict object."""


class Info:
    transaction_status = IDLE


class Strict:
    """A connection as a program's tests have it: it has what the stock pool asks, and writes it down."""

    __slots__ = ("asked",)  # and no weak reference

    def __init__(self) -> None:
        object.__setattr__(self, "asked", [])

    def __getattribute__(self, name: str) -> Any:
        asked = object.__getattribute__(self, "asked")
        if name == "asked":
            return asked
        if name in ("closed", "__class__"):  # which pools look at, and Python
            return object.__getattribute__(self, name) if name == "__class__" else 0
        asked.append(name)
        if name == "info":
            return Info
        if name in ("close", "rollback"):
            return lambda: None
        raise UnexpectedError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise UnexpectedError(name)


class Closing(Strict):
    """Likewise; not even ``closed`` can be read."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name == "closed":
            raise UnexpectedError(name)
        return super().__getattribute__(name)


def played(cls: type[Any], made: type[Strict], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the results of every operation on a stock pool, and the calls that its connections received."""
    conns: list[Strict] = []

    def connect(*_args: Any, **_kwargs: Any) -> Any:
        conns.append(made())
        return conns[-1]

    monkeypatch.setattr(psycopg2, "connect", connect)
    results: list[Any] = []

    def attempt(deed: Callable[[], Any]) -> Any:
        try:
            result = deed()
        except Exception as error:  # noqa: BLE001 - compared below
            results.append((type(error), str(error)))
            return None
        results.append(type(result))
        return result

    pool = attempt(lambda: cls(1, 2, "dbname=shop"))
    first = attempt(pool.getconn)
    second = attempt(lambda: pool.getconn("key"))
    attempt(lambda: pool.getconn("key"))
    attempt(pool.getconn)
    attempt(lambda: pool.putconn(first))
    attempt(lambda: pool.putconn(first))
    attempt(lambda: pool.putconn(second, "key"))
    attempt(lambda: pool.putconn(attempt(pool.getconn), close=True))
    attempt(lambda: pool.putconn(Strict()))
    attempt(pool.closeall)
    attempt(pool.getconn)
    attempt(pool.closeall)
    return [results, [conn.asked for conn in conns]]


@pytest.mark.parametrize("made", [Strict, Closing])
@pytest.mark.parametrize("cls", [SimpleConnectionPool, ThreadedConnectionPool])
def test_strict_connections(cls: type[Any], made: type[Strict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, errors, their order and what the connections are asked: all as without the instrumentation."""
    without = played(cls, made, monkeypatch)
    with quietly():
        with_it = played(cls, made, monkeypatch)
    assert with_it == without


@pytest.mark.parametrize("made", [Strict, Closing])
@pytest.mark.parametrize("cls", [SimpleConnectionPool, ThreadedConnectionPool])
def test_strict_connections_where_all_is_told(
    signals: Signals, cls: type[Any], made: type[Strict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with spans and records; a connection is asked for its backend only when that is told."""
    without, asked_without = played(cls, made, monkeypatch)
    with hooked(signals):
        with_it, asked = played(cls, made, monkeypatch)
    assert with_it == without
    told = {"get_backend_pid"}
    assert [[name for name in each if name not in told] for each in asked] == asked_without
    assert signals.named("pool.checkout")


class Named(psycopg2.extensions.connection):
    """A connection of the program's own, which counts who asks it."""

    asked: list[str]

    def get_backend_pid(self) -> int:
        self.asked.append("get_backend_pid")
        return 1

    @property
    def info(self) -> Any:
        self.asked.append("info")
        return super().info

    @property
    def closed(self) -> Any:
        return super().closed


def test_connections_of_a_class_of_the_programs_own(signals: Signals, dsn: str, engines: Engines) -> None:
    """What the program has written over psycopg2's is not called, though pid and place are told."""
    asked: list[str] = []
    Named.asked = asked
    with hooked(signals):
        engine = engines(connect_args={"connection_factory": Named}, pool_reset_on_return=None)
        asked_by_sqlalchemy = len(asked)
        raw: Any = engine.raw_connection()
        raw.close()
        pool = ThreadedConnectionPool(1, 1, dsn, connection_factory=Named)
        del asked[:]
        conn = pool.getconn()
        assert asked == []
        pool.putconn(conn)
        assert asked == ["info"]  # the stock pool's own look at the transaction
        pool.closeall()
    assert asked_by_sqlalchemy == 0
    assert [span.attributes["otel_pgpool.connection.pid"] > 1 for span in signals.named("pool.checkout")] == [True] * 2


class Talkative(psycopg2.extensions.connection):
    """A connection of the program's own, which has another answer to each question."""

    def get_backend_pid(self) -> int:
        return 1

    def get_transaction_status(self) -> int:
        return INERROR


def test_long_hold_of_a_connection_of_the_programs_own(signals: Signals, dsn: str) -> None:
    """The transaction's status is psycopg2's, and what the program has written over it is not called."""
    with hooked(signals, long_hold=0.02):
        pool = ThreadedConnectionPool(1, 1, dsn, connection_factory=Talkative)
        conn = pool.getconn()
        (record,) = until(lambda: signals.logged("long_hold"))
        pool.putconn(conn)
        pool.closeall()
    assert record.attributes["otel_pgpool.transaction.status"] == "idle"


@pytest.mark.parametrize("made", [Strict, Closing])
def test_transaction_status_of_another_kind_of_connection(made: type[Strict]) -> None:
    """Unknown, and the connection is not asked."""
    conn = made()
    assert Psycopg2Driver.transaction_status(cast("Any", None), conn) is TransactionStatus.UNKNOWN
    assert conn.asked == []


def test_pools_that_refuse_what_is_ours(signals: Signals, dsn: str) -> None:
    """Those whose attributes raise where they have not been asked for serve as ever."""

    class Odd(ThreadedConnectionPool):
        def __getattribute__(self, name: str) -> Any:
            if "otel" in name:
                raise UnexpectedError(name)
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: object) -> None:
            if "otel" in name:
                raise UnexpectedError(name)
            super().__setattr__(name, value)

    for mode in (lambda: hooked(signals, long_hold=0.0001), quietly):
        with mode():
            pool = Odd(1, 1, dsn)
            conn = pool.getconn()
            with pytest.raises(PoolError, match="exhausted"):
                pool.getconn()
            pool.putconn(conn)
            pool.closeall()


def test_pools_without_what_stock_pools_have(signals: Signals, dsn: str) -> None:
    """One that keeps no limits, and neither its own book nor the order of a return."""

    class Limitless(SimpleConnectionPool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            del self.maxconn, self.minconn

        def getconn(self, key: object = None) -> Any:
            return self._connect(key)

        def putconn(self, conn: Any, key: object = None, close: bool = False) -> None:
            self._used.clear()
            conn.close()

    for mode in (lambda: hooked(signals, long_hold=0.0001), quietly):
        with mode():
            pool = Limitless(1, 1, dsn)
            pool.putconn(pool.getconn())
            pool.closeall()


@pytest.mark.parametrize(
    "step",
    [(PoolTracker, "_diagnosis"), (PoolTracker, "register"), (PoolTracker, "_end_hold"), (PendingConnect, "report")],
)
def test_a_tracker_that_raises(
    signals: Signals, dsn: str, engines: Engines, step: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises inside its guarded steps is logged once a minute, and the program has its connection."""

    def raising(*_: Any, **__: Any) -> Any:
        raise UnexpectedError("of ours")

    with hooked(signals):
        monkeypatch.setattr(*step, raising)
        pool, engine = ThreadedConnectionPool(1, 1, dsn), engines()
        for _ in range(3):
            conn = pool.getconn()
            with pytest.raises(PoolError):
                pool.getconn()
            pool.putconn(conn)
            borrow(engine)
        pool.closeall()
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["engine_name", "engine_target", "pool_owner"])
@pytest.mark.parametrize("error", [UnexpectedError("of ours"), KeyboardInterrupt()])
def test_adoption_of_an_engine_that_fails(
    signals: Signals, engines: Engines, name: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine serves, one record says what was wrong; an interrupt is the program's to see."""

    def raising(*_: Any, **__: Any) -> Any:
        raise error

    engine = engines()
    with hooked(signals), pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, name, raising)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                borrow(engine)
        else:
            for _ in range(3):
                borrow(engine)
            engine.dispose()
            borrow(engine)
    records = [
        record for record in caplog.records if record.name == "otel_pgpool" and "UnexpectedError" in record.getMessage()
    ]
    assert len(records) == isinstance(error, UnexpectedError)


def test_listeners_that_raise(signals: Signals, engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event of SQLAlchemy's meets goes no further than the log."""

    def raising(*_: Any, **__: Any) -> Any:
        raise UnexpectedError("of ours")

    for known in ("call_key_of", "current_call_key", "driver_connection", "partial", "is_connection_closed"):
        monkeypatch.setattr(events, known, raising)
    monkeypatch.setattr(wrappers, "driver_of_connection", raising)
    monkeypatch.setattr(PoolTracker, "discarded", raising)
    with hooked(signals):
        engine = engines()
        borrow(engine)
        conn = engine.connect()
        conn.invalidate()
        conn.close()
        raw: Any = engine.raw_connection()
        raw.detach()
        raw.close()
        engine.dispose()
        borrow(engine)


class Plain(DefaultDialect):
    """A dialect that has no attribute ``driver``, as dialects need not."""

    name = "plain"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return sqlite3

    @classmethod
    def dbapi(cls) -> Any:  # type: ignore[override]  # SQLAlchemy 1.4's name
        return sqlite3

    def create_connect_args(self, url: Any) -> Any:
        return [":memory:"], {}

    def do_ping(self, dbapi_connection: Any) -> bool:
        return True

    def initialize(self, connection: Any) -> None:
        pass


def test_dialect_without_a_driver(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    """Its engines are left alone, and nothing is complained of."""
    registry.register("plain", __name__, "Plain")
    with hooked(signals):
        for _ in range(2):
            engine = create_engine("plain://")
            with engine.connect() as conn:
                assert conn.exec_driver_sql("select 1").scalar() == 1
            engine.dispose()
    assert [record for record in caplog.records if record.name == "otel_pgpool"] == []
    assert signals.named("pool.checkout") == []


def test_engines_of_the_programs_own(signals: Signals, engines: Engines) -> None:
    """One whose URL and whose pool's name raise is served as any."""

    class Url:
        def __getattr__(self, name: str) -> Any:
            raise UnexpectedError(name)

    model = engines()
    engine = Engine(model.pool, model.dialect, Url())  # type: ignore[arg-type]  # on purpose
    with hooked(signals):
        borrow(engine)
    assert len(signals.named("pool.checkout")) == 1


def test_fairies_of_the_programs_own(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A pool that lends what is no fairy of SQLAlchemy's."""

    class Lent:
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            raise UnexpectedError(name)

    class Lending(QueuePool):
        def connect(self) -> Any:
            super().connect().close()
            return lent

    lent = Lent()
    pool = Lending(lambda: psycopg2.connect(dsn))
    assert pool.connect() is lent
    engine = create_engine("postgresql+psycopg2://", pool=pool)
    assert engine.raw_connection() is lent
    pool.dispose()


def test_error_that_cannot_be_read(signals: Signals, engines: Engines) -> None:
    """What a creator raises reaches the program as it is, though its text cannot be had."""

    class Mute(psycopg2.OperationalError):
        def __str__(self) -> str:
            raise UnexpectedError("str")

    mute = Mute()

    def refuse() -> Any:
        raise mute

    pool = QueuePool(refuse)
    engine = engines(creator=refuse)
    with hooked(signals):
        with pytest.raises(Mute):
            pool.connect()
        with pytest.raises((Mute, sqlalchemy.exc.DBAPIError, UnexpectedError)):
            engine.raw_connection()
    assert error_type(mute) == "Mute"
