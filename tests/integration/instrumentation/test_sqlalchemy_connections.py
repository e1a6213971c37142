"""Instrumented engines of SQLAlchemy: how their connections are made, lost, and taken along."""

from __future__ import annotations

import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import event, exc
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool

from tests.support.database import kill, lives, refused_port
from tests.support.instrumentation import instrumented
from tests.support.processes import in_child
from tests.support.sqlalchemy_engines import (
    Engines,
    attribute,
    borrow,
    denied,
    driver,
    engine_tracker,
    hooked,
    listening,
    parameters_of,
    select,
    told,
    waits,
)
from tests.support.telemetry import (
    MOMENT,
    Signals,
    assert_exactly,
    is_child,
    server_attributes,
    start_attributes,
    status_of,
    until,
)
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

NOWHERE = "postgresql+psycopg2://"


def discarded(signals: Signals, name: str) -> dict[str, float]:
    values = signals.values("otel_pgpool.connections.discarded", name)
    return {reason: count for (reason,), count in values.items()}


def retries(span: Any) -> list[str]:
    """Return the error types of the failed attempts of a checkout."""
    return [happened.attributes["error.type"] for happened in span.events if happened.name == "pool.retry"]


# Connects that fail


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool])
def test_connect_that_fails(signals: Signals, instrumentation: None, engines: Engines, poolclass: type) -> None:
    """The program gets SQLAlchemy's error; the checkout, its connect, the log and the metrics name psycopg2's."""
    with refused_port() as port:
        engine = engines(f"postgresql+psycopg2://postgres:s3cret@127.0.0.1:{port}/postgres", poolclass=poolclass)
        with pytest.raises(exc.OperationalError, match="refused") as failure:
            engine.connect()
    name = engine_tracker(engine).name
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    failed = signals.checkout()
    assert_exactly(failed.attributes, denied(dsn, name, "new", "error", "OperationalError", retries=1))
    assert status_of(failed) == ("ERROR", str(failure.value.orig).splitlines()[0])
    assert retries(failed) == ["OperationalError"]
    connect = signals.one("pool.connect")
    assert is_child(connect, failed)
    expected = {**start_attributes(dsn, name), "otel_pgpool.attempt": 1, "error.type": "OperationalError"}
    assert_exactly(connect.attributes, expected)
    assert status_of(connect) == status_of(failed)
    (created,) = signals.points("db.client.connection.create_time", name)
    assert created.attributes["error.type"] == "OperationalError"
    (started,) = signals.logged("outage_started")
    assert started.record.levelname == "ERROR"
    stats = engine_tracker(engine).stats()
    assert (stats.used, stats.idle, stats.connecting, stats.errors, stats.created) == (0, 0, 0, 1, 0)
    assert "s3cret" not in signals.everything()


def test_outage_that_ends(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """A server that is reached again is told once, with the attempts that it took."""
    with refused_port() as port:
        ports = {"port": str(port)}
        engine = engines(connect_args=ports)

        def choose(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            parameters.update(ports)

        with listening(engine, "do_connect", choose):
            for _ in range(3):
                with pytest.raises(exc.OperationalError):
                    engine.connect()
            ports["port"] = parameters_of(dsn)["port"]
            borrow(engine)
    assert len(signals.logged("outage_started")) == 1
    (ended,) = signals.logged("outage_ended")
    assert ended.attributes["otel_pgpool.attempts"] == 3
    assert [attribute(span, "attempt") for span in signals.named("pool.connect")] == [1, 2, 3, 4]
    assert told(signals, "retries") == [1, 1, 1, 0]


def test_first_connect_that_is_refused_by_the_program(
    signals: Signals, instrumentation: None, engines: Engines
) -> None:
    """A listener to ``connect`` that raises fails the checkout; the program gets its exception."""

    def refuse(*_args: Any) -> None:
        raise ValueError("not this one")

    engine = engines()
    with listening(engine, "connect", refuse), pytest.raises(ValueError, match=r"^not this one$"):
        engine.connect()
    failed = signals.checkout()
    assert (failed.attributes or {})["error.type"] == "ValueError"
    assert attribute(failed, "outcome") == "error"
    borrow(engine)
    assert engine_tracker(engine).stats().used == 0
    assert signals.live() == []


# Where to


def test_creator(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """With a ``creator`` the URL says nothing: where a connection leads is in each span, the first one's too."""
    engine = engines(NOWHERE, creator=lambda: psycopg2.connect(dsn))
    borrow(engine)
    borrow(engine)
    first, _second = signals.named("pool.checkout")
    for span in signals.named("pool.checkout"):
        assert server_attributes(dsn).items() <= (span.attributes or {}).items()
        assert (span.attributes or {})["db.namespace"] == parameters_of(dsn)["dbname"]
    assert told(signals, "path") == ["new", "idle"]
    assert is_child(signals.one("pool.connect"), first)


def test_creator_of_connections_that_exist(signals: Signals, engines: Engines, dsn: str) -> None:
    """The first checkout tells where the pool leads, also if its connection was opened before the instrumentation."""
    engine = engines(NOWHERE, creator=lambda: psycopg2.connect(dsn))
    borrow(engine)
    with hooked(signals):
        borrow(engine)
    span = signals.checkout()
    assert attribute(span, "path") == "idle"
    assert server_attributes(dsn).items() <= (span.attributes or {}).items()
    assert (span.attributes or {})["db.namespace"] == parameters_of(dsn)["dbname"]


def test_creator_that_fails(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Its error is a failed connect, of which no text is told: it may quote the DSN."""
    engine = engines(NOWHERE, creator=lambda: psycopg2.connect("host=127.0.0.1 s3cret-word"))
    with pytest.raises(exc.ProgrammingError, match="s3cret-word"):
        engine.connect()
    failed, connect = signals.checkout(), signals.one("pool.connect")
    assert (failed.attributes or {})["error.type"] == (connect.attributes or {})["error.type"] == "ProgrammingError"
    assert is_child(connect, failed)
    assert attribute(failed, "path") == "new"
    assert "s3cret" not in signals.everything()


def test_creator_with_an_error_of_its_own(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """What is no error of psycopg2's is the checkout's, by its name alone."""

    def creator() -> Any:
        raise KeyError("s3cret-word")

    with pytest.raises(KeyError, match="s3cret-word"):
        engines(NOWHERE, creator=creator).connect()
    failed = signals.checkout()
    assert (failed.attributes or {})["error.type"] == "KeyError"
    assert status_of(failed) == ("ERROR", None)
    assert "s3cret" not in signals.everything()


class _UnreadableError(Exception):
    @property
    def orig(self) -> Any:
        raise RuntimeError("not known yet")


class _StrangeError(Exception):
    orig = "a text"


@pytest.mark.parametrize("kind", [_UnreadableError, _StrangeError])
def test_error_with_an_attribute_of_another_meaning(
    signals: Signals, instrumentation: None, engines: Engines, kind: type[Exception]
) -> None:
    """An error of the program need not have the driver's error as its ``orig``: its checkout fails as any other."""

    def creator() -> Any:
        raise kind

    engine = engines(NOWHERE, creator=creator)
    with pytest.raises(kind):
        engine.connect()
    assert (signals.checkout().attributes or {})["error.type"] == kind.__name__
    assert engine_tracker(engine).stats().errors == 1


def test_wait_of_a_creator_is_no_connect(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """A creator's connect begins when it is its turn, and not when its caller began to wait."""
    engine = engines(NOWHERE, creator=lambda: psycopg2.connect(dsn), pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    held = engine.connect()
    waiter = threading.Thread(target=borrow, args=[engine])
    waiter.start()
    until(lambda: engine_tracker(engine).stats().waiting == 1)
    so_far = engine_tracker(engine).stats().oldest_hold
    until(lambda: engine_tracker(engine).stats().oldest_hold > so_far + 2 * MOMENT)
    held.invalidate()
    held.close()
    waiter.join(PATIENCE)
    _first, second = signals.named("pool.connect")
    wait = signals.one("pool.wait")
    assert second.start_time is not None
    assert wait.start_time is not None
    assert second.start_time - wait.start_time > MOMENT * 1e9


def test_connect_args(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """What ``connect_args`` add to the URL is where it leads, and what is secret in them is told nowhere."""
    parameters = parameters_of(dsn)
    engine = engines(NOWHERE, connect_args={**parameters, "application_name": "own"})
    borrow(engine)
    borrow(engine)
    for span in signals.named("pool.checkout"):
        assert server_attributes(dsn).items() <= (span.attributes or {}).items()
        assert (span.attributes or {})["db.namespace"] == parameters["dbname"]
    with refused_port() as port, pytest.raises(exc.OperationalError):
        engines(NOWHERE, connect_args={**parameters, "port": port, "password": "refused"}).connect()
    description = status_of(signals.named("pool.connect")[-1])[1] or ""
    assert description.endswith("Connection refused")  # as libpq quotes no password, the word is nobody's secret
    assert parameters["password"] not in signals.everything()


def test_unreadable_url(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Arguments that nobody understands cost the program nothing more than without the instrumentation."""
    engine = engines("postgresql+psycopg2://postgres@127.0.0.1/postgres?colour=s3cret-blue")
    with pytest.raises(exc.ProgrammingError, match="colour"):
        engine.connect()
    assert (signals.checkout().attributes or {})["error.type"] == "ProgrammingError"
    assert "s3cret" not in signals.everything()


# Connections that are lost


def test_invalidated_by_the_program(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """It ends the checkout: the connection is closed, as the program wants it; its next use is a checkout anew."""
    engine = engines()
    with engine.connect() as conn:
        pid = select(conn, "select pg_backend_pid()")
        conn.invalidate()
        gone = signals.checkout()
        assert attribute(gone, "outcome") == "discarded"
        assert (gone.attributes or {}).get("error.type") is None
        assert attribute(gone, "connection.pid") == pid
        assert engine_tracker(engine).stats().used == 0
        if conn.in_transaction():
            conn.get_transaction().rollback()
        assert select(conn, "select pg_backend_pid()") != pid
        assert len(signals.live()) == 1
    assert told(signals, "outcome") == ["discarded", "released"]
    assert told(signals, "path") == ["new", "new"]
    assert discarded(signals, engines.name) == {"returned_closed": 1}
    assert signals.logged("connection_lost") == []


def test_invalidated_for_a_reason(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """With an exception the connection is one that was lost."""
    with engines().connect() as conn:
        conn.invalidate(ConnectionResetError("so it seems"))
    assert told(signals, "outcome") == ["discarded"]
    assert discarded(signals, engines.name) == {"broken": 1}
    (lost,) = signals.logged("connection_lost")
    assert lost.attributes["error.type"] == "ConnectionResetError"
    assert lost.span_context.span_id == signals.checkout().get_span_context().span_id


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool])
def test_disconnect_in_a_query(
    signals: Signals, instrumentation: None, engines: Engines, admin: connection, poolclass: type
) -> None:
    """A backend that dies under a query is told as lost; that the query failed is not the pool's failure."""
    engine = engines(poolclass=poolclass)
    with engine.connect() as conn:
        pid = select(conn, "select pg_backend_pid()")
        kill(admin, [pid])
        with pytest.raises(exc.DBAPIError) as failure:
            select(conn)
        assert failure.value.connection_invalidated
    span = signals.checkout()
    assert attribute(span, "outcome") == "discarded"
    assert status_of(span) == ("UNSET", None)
    assert discarded(signals, engines.name) == {"broken": 1}
    (lost,) = signals.logged("connection_lost")
    assert lost.attributes["otel_pgpool.connection.pid"] == pid
    assert engine_tracker(engine).stats().used == 0
    borrow(engine)
    assert told(signals, "path") == ["new", "new"]


def test_disconnect_seen_on_return(
    signals: Signals, instrumentation: None, engines: Engines, admin: connection
) -> None:
    """A backend found dead by the rollback on return is told as lost, as in a query."""
    engine = engines()
    raw = engine.raw_connection()
    pid = raw.dbapi_connection.info.backend_pid
    with raw.cursor() as cur:
        cur.execute("select 1")
    kill(admin, [pid])
    raw.close()
    span = signals.checkout()
    assert attribute(span, "outcome") == "discarded"
    assert discarded(signals, engines.name) == {"broken": 1}
    (lost,) = signals.logged("connection_lost")
    assert lost.attributes["otel_pgpool.connection.pid"] == pid
    assert lost.attributes["error.type"]
    assert engine_tracker(engine).stats().used == 0


def test_pre_ping(signals: Signals, instrumentation: None, engines: Engines, admin: connection) -> None:
    """A dead idle connection costs a retry and a connect; the others of its age are drained when they are asked for."""
    engine = engines(pool_pre_ping=True)
    with engine.connect() as one, engine.connect() as two:
        pids = [driver(one).info.backend_pid, driver(two).info.backend_pid]
    kill(admin, pids[1:])
    signals.spans.ended.clear()
    with engine.connect() as one, engine.connect() as two:
        assert not {driver(one).info.backend_pid, driver(two).info.backend_pid} & {*pids}
    second, first = signals.named("pool.checkout")
    assert [attribute(span, "path") for span in (first, second)] == ["new", "new"]
    assert [attribute(span, "retries") for span in (first, second)] == [1, 0]
    assert retries(first) == ["InvalidatePoolError"]
    assert status_of(first) == ("UNSET", None)
    assert discarded(signals, engines.name) == {"broken": 1, "drained": 1}
    assert signals.value("otel_pgpool.retries", pool_name=engines.name) == 1
    (lost,) = signals.logged("connection_lost")
    assert lost.attributes["otel_pgpool.connection.pid"] == pids[1]


def test_pre_ping_without_a_server(
    signals: Signals, instrumentation: None, engines: Engines, admin: connection, dsn: str
) -> None:
    """A dead idle connection that cannot be replaced fails the checkout, after two attempts."""
    with refused_port() as port:
        ports = [parameters_of(dsn)["port"], str(port)]
        engine = engines(pool_pre_ping=True)

        def choose(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            parameters["port"] = ports.pop(0)

        with listening(engine, "do_connect", choose):
            kill(admin, [borrow(engine)])
            with pytest.raises(exc.OperationalError):
                engine.connect()
    _served, failed = signals.named("pool.checkout")
    assert retries(failed) == ["InvalidatePoolError", "OperationalError"]
    assert (attribute(failed, "outcome"), attribute(failed, "path")) == ("error", "new")
    stats = engine_tracker(engine).stats()
    assert (stats.used, stats.connecting) == (0, 0)


def test_soft_invalidation(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A connection that shall not be used again is served to its end, and replaced when it is next asked for."""
    engine = engines()
    raw = engine.raw_connection()
    pid = raw.dbapi_connection.info.backend_pid
    raw.invalidate(soft=True)
    assert signals.named("pool.checkout") == []
    raw.close()
    assert borrow(engine) != pid
    assert told(signals, "outcome") == ["released", "released"]
    assert told(signals, "path") == ["new", "new"]
    assert told(signals, "retries") == [0, 0]
    assert discarded(signals, engines.name) == {"drained": 1}


def test_connection_closed_while_it_is_lent(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A static pool that is disposed of closes what is out: that hold ends when it is given back."""
    engine = engines(poolclass=StaticPool)
    raw = engine.raw_connection()
    engine.dispose()
    assert signals.named("pool.checkout") == []
    raw.close()
    assert told(signals, "outcome") == ["discarded"]
    assert signals.live() == []


def test_connection_replaced_while_it_is_lent(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A static pool finds the one that is out past its age, and makes itself another one: both holds end."""
    engine = engines(poolclass=StaticPool, pool_recycle=3600)

    def grow_old(_conn: connection, record: Any, _fairy: Any) -> None:
        record.starttime -= 7200

    with listening(engine, "checkout", grow_old):
        one = engine.raw_connection()
        two = engine.raw_connection()
    assert told(signals, "outcome") == ["discarded"]
    two.close()
    assert told(signals, "outcome") == ["discarded", "released"]
    assert signals.live() == []
    one.detach()


def test_recycle(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A connection past its age is replaced when it is asked for."""
    engine = engines(pool_recycle=3600)

    def grow_old(_conn: connection, record: Any) -> None:
        record.starttime -= 7200

    with listening(engine, "checkin", grow_old):
        pid = borrow(engine)
        assert borrow(engine) != pid
    assert told(signals, "path") == ["new", "new"]
    assert told(signals, "retries") == [0, 0]
    assert discarded(signals, engines.name) == {"expired": 1}


@pytest.mark.parametrize("times", [1, 2])
def test_listener_that_refuses(signals: Signals, instrumentation: None, engines: Engines, times: int) -> None:
    """A listener of the program's that raises ``DisconnectionError`` gets another connection, twice at most."""
    engine = engines()
    left = [times]

    def refuse(*_args: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise exc.DisconnectionError("not this one")

    with listening(engine, "checkout", refuse):
        if times == 2:
            with pytest.raises(exc.InvalidRequestError, match="closed"):
                engine.connect()
        else:
            borrow(engine)
    span = signals.checkout()
    assert retries(span) == ["DisconnectionError"] * times
    assert attribute(span, "outcome") == ("released" if times == 1 else "error")
    assert (span.attributes or {}).get("error.type") == (None if times == 1 else "InvalidRequestError")
    assert discarded(signals, engines.name)["check_failed"] == times
    assert len(signals.named("pool.connect")) == times + 1
    stats = engine_tracker(engine).stats()
    assert stats.used == 0
    assert stats.created - sum(stats.discarded.values()) == stats.idle


def test_listener_with_an_error_of_its_own(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A listener that raises something else fails the checkout, and costs the pool the connection."""
    engine = engines()

    def fail(*_args: Any) -> None:
        raise ValueError("of the program")

    with listening(engine, "checkout", fail), pytest.raises(ValueError, match=r"^of the program$"):
        engine.connect()
    failed = signals.checkout()
    assert (attribute(failed, "outcome"), (failed.attributes or {})["error.type"]) == ("error", "ValueError")
    assert (attribute(failed, "path"), attribute(failed, "retries")) == ("new", 0)
    stats = engine_tracker(engine).stats()
    assert (stats.used, stats.idle) == (0, 0)
    assert (stats.created, stats.discarded) == (1, {"check_failed": 1})


def test_listener_that_asks_another_engine(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """A listener may use another engine, hooked or not, in the middle of a checkout: each keeps its own."""
    other, foreign = engines(pool_logging_name="other"), engines("sqlite://")

    def ask_others(*_args: Any) -> None:
        borrow(other)
        with foreign.connect() as conn:
            select(conn)

    engine = engines(pool_size=1, max_overflow=0)
    with listening(engine, "do_connect", ask_others), listening(engine, "checkout", ask_others):
        borrow(engine)
        borrow(engine)
    spans = signals.named("pool.checkout")
    names = [(span.attributes or {})["db.client.connection.pool.name"] for span in spans]
    assert sorted(names) == sorted([engines.name] * 2 + ["other"] * 3)
    assert signals.live() == []
    for each, created in ((engine, 1), (other, 1)):
        stats = engine_tracker(each).stats()
        assert (stats.created, stats.used, stats.idle, stats.connecting) == (created, 0, 1, 0)


# Connections that are taken along


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0},
        {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0},
        {"poolclass": NullPool},
        {"poolclass": StaticPool},
    ],
)
def test_detach(signals: Signals, instrumentation: None, engines: Engines, options: dict[str, Any]) -> None:
    """A detached connection is the program's own from then on: its checkout ends, and its place is free."""
    engine = engines(**options)
    with engine.connect() as conn:
        pid = select(conn, "select pg_backend_pid()")
        conn.detach()
        span = signals.checkout()
        assert attribute(span, "outcome") == "discarded"
        assert attribute(span, "connection.pid") == pid
        assert engine_tracker(engine).stats().used == 0
        assert borrow(engine) != pid
        assert select(conn, "select pg_backend_pid()") == pid
    assert told(signals, "outcome") == ["discarded", "released"]
    assert discarded(signals, engines.name)["returned_closed"] == 1


def test_detach_for_somebody_who_waits(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Whoever waits gets the place of a detached connection, and makes one for it."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    with engine.connect() as conn:
        waiter = in_thread(borrow, engine)
        until(waits(engine))
        conn.detach()
        assert waiter.result(PATIENCE) != select(conn, "select pg_backend_pid()")
    assert told(signals, "outcome") == ["discarded", "released"]
    assert len(signals.one("pool.wait").links) == 1
    stats = engine_tracker(engine).stats()
    assert (stats.used, stats.waiting, stats.idle) == (0, 0, 1)


def drop(engine: Engine) -> tuple[int, int]:
    """Check out and lose the connection; its backend and its serial."""
    conn = engine.connect()
    select(conn)
    pid = driver(conn).info.backend_pid
    (hold,) = engine_tracker(engine).held
    return pid, hold.slot.serial


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_leak(signals: Signals, instrumentation: None, engines: Engines, poolclass: type) -> None:
    """A connection that the garbage collector gives back is told as reclaimed, with the line that lost it."""
    engine = engines(poolclass=poolclass)
    pid, serial = drop(engine)
    gc.collect()
    (span,) = until(lambda: signals.named("pool.checkout"))
    assert attribute(span, "outcome") == "reclaimed"
    assert (attribute(span, "connection.pid"), attribute(span, "connection.id")) == (pid, serial)
    assert status_of(span) == ("UNSET", None)
    (record,) = signals.logged("reclaimed")
    assert record.record.levelname == "WARNING"
    assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0].endswith(" drop")
    assert record.span_context.span_id == span.get_span_context().span_id
    assert engine_tracker(engine).stats().used == 0
    borrow(engine)
    assert told(signals, "outcome") == ["reclaimed", "released"]


def test_leak_that_overflows(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """What is one too many is closed, by the garbage collector too."""
    engine = engines(pool_size=1, max_overflow=1)
    with engine.connect():
        pass
    with engine.connect():
        lost = engine.connect()
        select(lost)
    del lost
    gc.collect()
    until(lambda: len(signals.named("pool.checkout")) == 3)
    assert sorted(told(signals, "outcome")) == ["reclaimed", "released", "released"]
    assert until(lambda: discarded(signals, engines.name)) == {"idle": 1}


def test_leak_of_a_dead_one(signals: Signals, instrumentation: None, engines: Engines, admin: connection) -> None:
    """A lost connection whose backend has died is told from the watch, never from inside the garbage collector."""
    engine = engines()
    tellers: list[str] = []

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if vars(record).get("otel_pgpool.event") in ("connection_lost", "reclaimed"):
                tellers.append(threading.current_thread().name)

    teller = Teller()
    logging.getLogger("otel_pgpool").addHandler(teller)
    try:
        conn = engine.connect()
        select(conn)
        kill(admin, [driver(conn).info.backend_pid])
        del conn
        gc.collect()
        until(lambda: signals.named("pool.checkout") and discarded(signals, engines.name))
    finally:
        logging.getLogger("otel_pgpool").removeHandler(teller)
    assert told(signals, "outcome") == ["reclaimed"]
    assert discarded(signals, engines.name) == {"broken": 1}
    assert {*tellers} == {"otel_pgpool-watch"}
    assert engine_tracker(engine).stats().used == 0


def test_leaks_do_not_gather(signals: Signals, instrumentation: None, engines: Engines, admin: connection) -> None:
    """A worker that leaks each of its connections keeps its pool, and every leak is one span."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)

    def leak() -> int:
        return drop(engine)[0]

    pids = set()
    for count in range(1, 11):
        pids.add(leak())
        gc.collect()
        until(lambda count=count: len(signals.named("pool.checkout")) == count)
    assert len(pids) == 1
    assert lives(admin, pids.pop())
    assert told(signals, "outcome") == ["reclaimed"] * 10


def test_dead_thread(signals: Signals, engines: Engines) -> None:
    """A connection whose borrower's thread has ended is still told of as held."""
    engine = engines()
    kept: list[Any] = []
    with hooked(signals, long_hold=PATIENCE):
        thread = threading.Thread(target=lambda: kept.append(engine.connect()), name="gone")
        thread.start()
        thread.join(PATIENCE)
        engine_tracker(engine).long_hold = 0.0
        (record,) = until(lambda: signals.logged("long_hold"))
        assert record.attributes["thread.name"] == "gone"
        assert "code.stacktrace" not in record.attributes
        kept.pop().close()
    assert (signals.checkout().attributes or {})["thread.name"] == "gone"


@pytest.mark.usefixtures("instrumentation")
def test_disposed_while_some_are_out_or_wait(signals: Signals, engines: Engines) -> None:
    """The totals go on, what the old pool's users still do included, and its connections are all counted as gone."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE, pool_logging_name="disposed")
    conn = engine.connect()
    waiting = [in_thread(borrow, engine) for _ in range(3)]
    assert wait_until(lambda: len(signals.live()) == 4)
    assert wait_until(lambda: signals.value("db.client.connection.pending_requests", pool_name="disposed") == 3)
    engine.dispose()
    assert signals.value("db.client.connection.pending_requests", pool_name="disposed") == 3
    conn.close()
    del conn
    for each in waiting:
        each.result(PATIENCE)
    borrow(engine)
    gc.collect()
    assert signals.values("otel_pgpool.checkouts", "disposed") == {("idle",): 0, ("queued",): 3, ("new",): 2}
    assert signals.value("db.client.connection.pending_requests", pool_name="disposed") == 0
    assert signals.value("otel_pgpool.connections.created", pool_name="disposed") == 2
    assert wait_until(lambda: signals.values("otel_pgpool.connections.discarded", "disposed") == {("drained",): 1})
    engine.dispose()
    borrow(engine)
    assert signals.values("otel_pgpool.checkouts", "disposed") == {("idle",): 0, ("queued",): 3, ("new",): 3}


def test_statements_are_no_slower(signals: Signals, engines: Engines) -> None:
    """SQLAlchemy keeps flags that somebody listens to statements: of other engines they stay as they were."""
    with instrumented(signals):
        engine = engines()
        borrow(engine)
        assert not Engine._has_events
        assert not Dialect._has_events
        assert engine.dialect._has_events
    assert "_has_events" not in vars(engine.dialect)
    event.listen(engine, "do_execute", lambda *_args: None)
    with instrumented(signals):
        borrow(engine)
    assert engine.dialect._has_events


@pytest.mark.usefixtures("instrumentation")
@pytest.mark.parametrize("pool", [QueuePool, StaticPool])
def test_forgotten_in_a_child(signals: Signals, engines: Engines, pool: type[Pool]) -> None:
    """Each kind of pool counts the connection of the parent's that it has left behind."""
    engine = engines(poolclass=pool, pool_logging_name="forked")
    borrow(engine)
    told = in_child(lambda: signals.values("otel_pgpool.connections.discarded", "forked"))
    assert told == str({("forked",): 1})
    assert signals.values("otel_pgpool.connections.discarded", "forked") == {}
