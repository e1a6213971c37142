"""Pools of SQLAlchemy's that no engine has: known by the first connection that they lend."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import connection, parse_dsn
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.instrumentation import lent, name_of
from tests.support.sqlalchemy_engines import attribute, hooked, told
from tests.support.telemetry import MOMENT, assert_exactly, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.telemetry import Signals

Make = Any


@pytest.fixture
def make(dsn: str) -> Iterator[Make]:
    """Make a pool on the server."""
    made: list[Any] = []

    def make(cls: type[Any] = QueuePool, **options: Any) -> Any:
        made.append(cls(lambda: psycopg2.connect(dsn), **options))
        return made[-1]

    yield make
    for pool in made:
        pool.dispose()


def test_checkouts(signals: Signals, instrumentation: None, make: Make, dsn: str) -> None:
    """Spans and totals as of an engine's, the first checkout's too; the name is where it leads."""
    pool = make(pool_size=1)
    for _ in range(2):
        raw = pool.connect()
        pid = raw.dbapi_connection.get_backend_pid()
        raw.close()
    first, second = signals.named("pool.checkout")
    assert_exactly(first.attributes, lent(dsn, path="new", **{"connection.id": 1, "connection.pid": pid}))
    assert_exactly(second.attributes, lent(dsn, **{"connection.id": 1, "connection.pid": pid}))
    (connect,) = signals.named("pool.connect")
    assert connect.parent is not None
    assert connect.parent.span_id == first.context.span_id
    assert signals.values("otel_pgpool.connections.created", name_of(dsn)) == {(): 1}
    assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 1}
    assert (first.attributes or {})["server.address"] == parse_dsn(dsn)["host"]
    assert attribute(first, "wait_time") > 0


def test_waits_and_timeouts(signals: Signals, instrumentation: None, make: Make) -> None:
    """A pool that is full lets its callers wait: both are told, with the links to who holds."""
    pool = make(pool_size=1, max_overflow=0, timeout=PATIENCE, logging_name="bare")
    held = pool.connect()
    waiter = in_thread(pool.connect)
    until(lambda: signals.values("db.client.connection.pending_requests", "bare") == {(): 1})
    held.close()
    waiter.result(PATIENCE).close()
    assert told(signals, "path") == ["new", "queued"]
    assert len(signals.named("pool.wait")) == 1
    pool._timeout = 0.05
    held = pool.connect()
    with pytest.raises(QueuePoolTimeout):
        pool.connect()
    assert told(signals, "outcome")[-1] == "timeout"
    held.close()


def test_first_checkouts_that_wait(signals: Signals, instrumentation: None, dsn: str) -> None:
    """The first checkouts of a pool that nobody knows yet have their waits, in a connect or for a release."""
    may_connect = threading.Event()

    def creator() -> Any:
        assert may_connect.wait(PATIENCE)
        return psycopg2.connect(dsn)

    pool = QueuePool(creator, pool_size=1, max_overflow=0, timeout=PATIENCE)
    connecting = in_thread(pool.connect)
    until(lambda: pool.overflow() == 0)
    waiting = in_thread(pool.connect)
    until(lambda: len(pool._pool.not_empty._waiters) == 1)  # type: ignore[attr-defined]  # a thread's condition
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2 * MOMENT)
    may_connect.set()
    connecting.result(PATIENCE).close()
    waiting.result(PATIENCE).close()
    first, second = signals.named("pool.checkout")
    assert told(signals, "path") == ["new", "queued"]
    assert min(told(signals, "wait_time")) > MOMENT
    for span in (first, second):
        assert (
            span.start_time + (attribute(span, "wait_time") + attribute(span, "hold_time")) * 1e9 <= span.end_time + 1e6
        )
        assert (span.attributes or {})["server.address"] == parse_dsn(dsn)["host"]
    connect, wait = signals.one("pool.connect"), signals.one("pool.wait")
    assert first.start_time <= connect.start_time < connect.end_time <= first.end_time
    assert second.start_time <= wait.start_time < wait.end_time <= second.end_time
    pool.dispose()


def test_first_checkout_that_times_out(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A caller who began to wait before the pool was known, and waits in vain, is reported with the holder."""
    may_connect = threading.Event()

    def creator() -> Any:
        assert may_connect.wait(PATIENCE)
        return psycopg2.connect(dsn)

    pool = QueuePool(creator, pool_size=1, max_overflow=0, timeout=20 * MOMENT)
    connecting = in_thread(pool.connect)
    until(lambda: pool.overflow() == 0)
    waiting = in_thread(pool.connect)
    until(lambda: len(pool._pool.not_empty._waiters) == 1)  # type: ignore[attr-defined]  # a thread's condition
    may_connect.set()
    held = connecting.result(PATIENCE)
    with pytest.raises(QueuePoolTimeout):
        waiting.result(PATIENCE)
    assert told(signals, "outcome") == ["timeout"]
    assert len(signals.one("pool.wait").links) == 1
    held.close()
    pool.dispose()


def test_failed_connects(signals: Signals, instrumentation: None, make: Make, dsn: str) -> None:
    """Of a pool that is known: it got nothing, and raises what it always raised."""
    pool = make(logging_name="bare")
    pool.connect().close()
    pool.dispose()

    def refuse() -> Any:
        raise psycopg2.OperationalError("gone")

    pool._creator = refuse
    with pytest.raises(psycopg2.OperationalError, match=r"^gone$"):
        pool.connect()
    assert told(signals, "outcome") == ["released", "error"]
    assert signals.logged("outage_started")
    pool._creator = lambda: psycopg2.connect(dsn)
    pool.connect().close()
    assert signals.logged("outage_ended")


def test_first_connect_that_fails(signals: Signals, instrumentation: None) -> None:
    """Of a pool that nobody knows yet nothing is told, and it raises what it always raised."""

    def refuse() -> Any:
        raise psycopg2.OperationalError("gone")

    with pytest.raises(psycopg2.OperationalError, match=r"^gone$"):
        QueuePool(refuse).connect()
    assert signals.named("pool.checkout") == []


@pytest.mark.parametrize("cls", [NullPool, StaticPool])
def test_other_kinds(signals: Signals, instrumentation: None, make: Make, cls: type[Any]) -> None:
    """They are seen likewise."""
    pool = make(cls)
    for _ in range(2):
        pool.connect().close()
    assert told(signals, "outcome") == ["released"] * 2


def test_made_before_the_hook(signals: Signals, make: Make, dsn: str) -> None:
    """What was idle then is no new connection; after the instrumentation nothing is left of it."""
    pool = make(pool_size=2)
    pool.connect().close()
    with hooked(signals):
        pool.connect().close()
        assert told(signals, "path") == ["idle"]
        assert signals.named("pool.connect") == []
    pool.connect().close()
    assert len(signals.named("pool.checkout")) == 1
    assert {name for name in vars(pool) if "otel" in name} == set()


def test_with_a_dialect_of_its_own(signals: Signals, instrumentation: None, make: Make) -> None:
    """As Django's pools have it, for ``pre_ping``."""
    pool = make(pre_ping=True, dialect=create_engine("postgresql+psycopg2://").dialect)
    for _ in range(2):
        pool.connect().close()
    assert told(signals, "path") == ["new", "idle"]


def test_pool_in_a_listener_of_another(signals: Signals, instrumentation: None, make: Make) -> None:
    """Each request is told for its own pool."""
    inner, outer = make(logging_name="inner"), make(logging_name="outer")
    inner.connect().close()
    outer.connect().close()

    def listener(*_: Any) -> None:
        inner.connect().close()

    from sqlalchemy import event

    event.listen(outer, "checkout", listener)
    outer.connect().close()
    names = [(span.attributes or {})["db.client.connection.pool.name"] for span in signals.named("pool.checkout")]
    assert names == ["inner", "outer", "inner", "outer"]


@pytest.mark.parametrize(
    "creator", [lambda: sqlite3.connect(":memory:", check_same_thread=False), object, lambda: None]
)
def test_other_drivers(signals: Signals, instrumentation: None, creator: Callable[[], Any]) -> None:
    """Their pools are left alone."""
    pool = QueuePool(creator, reset_on_return=None)
    given = creator()
    if given is None:
        with pytest.raises(Exception):  # noqa: B017, PT011 - SQLAlchemy's own, which differ
            pool.connect()
    else:
        pool.connect().close()
    assert signals.named("pool.checkout") == []
    assert not isinstance(vars(pool).get("_otel_pgpool"), PoolTracker)
    with suppress(AttributeError):  # only a connection can be closed
        given.close()
        pool.dispose()


def test_behind_a_proxy(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A connection that an agent has wrapped is psycopg2's all the same."""
    import wrapt

    pool = QueuePool(lambda: wrapt.ObjectProxy(psycopg2.connect(dsn)))
    raw: Any = pool.connect()
    assert not issubclass(type(raw.dbapi_connection), connection)
    pid = raw.dbapi_connection.get_backend_pid()
    raw.close()
    assert attribute(signals.checkout(), "connection.pid") == pid
    pool.dispose()


def test_interrupt_when_the_first_span_has_started(
    signals: Signals, instrumentation: None, make: Make, interrupted_start: None
) -> None:
    """The first checkout, recorded when its pool is known, has the interrupt as its error; the next is as before."""
    pool = make(pool_size=1)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    assert (signals.checkout().attributes or {})["error.type"] == "KeyboardInterrupt"
    pool.connect().close()
    assert told(signals, "outcome") == ["error", "released"]
