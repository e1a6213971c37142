"""Pools of psycopg2 in a program that does not know of the instrumentation: every checkout is told, however it ends."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.trace import SpanKind
from psycopg2 import extensions
from psycopg2.extensions import connection
from psycopg2.pool import PoolError, SimpleConnectionPool, ThreadedConnectionPool

from otel_pgpool import ConnectionPool, __version__
from tests.support.database import ask, kill, lives, refused_port
from tests.support.instrumentation import (
    CLOSED,
    EXHAUSTED,
    STOCK,
    UNKEYED,
    denied,
    instrumented,
    lent,
    name_of,
    quietly,
    tracker_of,
)
from tests.support.telemetry import assert_exactly, is_child, start_attributes, status_of, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.telemetry import Signals

Pool = Any


@contextmanager
def refusing(pool: Pool, port: int) -> Iterator[None]:
    """Let the pool's next connects be refused."""
    args, pool._args = pool._args, (f"host=127.0.0.1 port={port} user=postgres password=secret-word",)
    try:
        yield
    finally:
        pool._args = args


# Lent and given back


@pytest.mark.parametrize("cls", STOCK)
def test_checkout(signals: Signals, instrumentation: None, dsn: str, cls: type[Pool]) -> None:
    """A checkout is one span from getconn to putconn, under the caller's span and not current inside."""
    pool = cls(1, 2, dsn)
    with signals.tracer.start_as_current_span("order") as order:
        conn = pool.getconn()
        with signals.tracer.start_as_current_span("inside") as inside:
            pass
        (live,) = signals.live()
        pool.putconn(conn)
    span = signals.checkout()
    assert live.get_span_context() == span.get_span_context()
    expected = lent(dsn, **{"connection.id": 1, "connection.pid": conn.get_backend_pid()})
    assert_exactly(span.attributes, expected | {"thread.name": "MainThread"})
    assert span.kind is SpanKind.INTERNAL
    assert status_of(span) == ("UNSET", None)
    assert (span.events, span.links) == ((), ())
    assert is_child(span, order)
    assert is_child(inside, order)
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("otel_pgpool", __version__)


@pytest.mark.parametrize("cls", STOCK)
def test_new_connection(signals: Signals, instrumentation: None, dsn: str, cls: type[Pool]) -> None:
    """A checkout that found nothing idle is path `new`; the connect is its child."""
    pool = cls(0, 1, dsn)
    pool.putconn(pool.getconn())
    span, connect = signals.checkout(), signals.one("pool.connect")
    assert_exactly(span.attributes, lent(dsn, path="new", **{"connection.id": 1}))
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("pool.acquired", {"otel_pgpool.path": "new"})
    ]
    assert is_child(connect, span)
    assert connect.kind is SpanKind.CLIENT
    assert_exactly(connect.attributes, {**start_attributes(dsn, name_of(dsn)), "otel_pgpool.attempt": 1})


@pytest.mark.parametrize("quiet", [False, True])
def test_idle_beside_the_new_one_of_another(signals: Signals, dsn: str, quiet: bool) -> None:
    """A checkout is `new` for a connection made for itself, and not while another thread has yet to tell of one."""
    with instrumented(None if quiet else signals, **({"spans": "off"} if quiet else {})):
        pool = ThreadedConnectionPool(1, 3, dsn)
        in_thread(pool._connect).result(PATIENCE)  # it has made one, and has not come back yet
        pool.putconn(pool.getconn())
        assert tracker_of(pool).stats().checkouts == {"idle": 1, "queued": 0, "new": 0}


def test_connections_of_the_constructor_are_nobodys(signals: Signals, instrumentation: None, dsn: str) -> None:
    """What a pool connects when it is made has spans without a parent, even inside a span of the caller's."""
    with signals.tracer.start_as_current_span("start"):
        pool = ThreadedConnectionPool(2, 2, dsn)
    assert [connect.parent for connect in signals.named("pool.connect")] == [None, None]
    assert signals.values("otel_pgpool.connections.created", name_of(dsn)) == {(): 2}
    pool.putconn(pool.getconn())
    assert_exactly(signals.checkout().attributes, lent(dsn, **{"connection.id": 2}))


@pytest.mark.parametrize("cls", STOCK)
def test_pool_made_before_the_hook(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """A pool that was there before is told of as well, its connections numbered as they are met."""
    pool = cls(2, 3, dsn)
    early = pool.getconn()
    with instrumented(signals, long_hold=None):
        pool.putconn(pool.getconn())
        pool.putconn(early)
        pool.putconn(pool.getconn())
        assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 2}
    first, second = signals.named("pool.checkout")
    assert_exactly(first.attributes, lent(dsn, **{"connection.id": 1}))
    assert_exactly(second.attributes, lent(dsn, **{"connection.id": 2, "connection.pid": early.get_backend_pid()}))


def test_pool_made_before_the_hook_has_its_levels_at_once(signals: Signals, dsn: str) -> None:
    """Nobody need check out for a pool to be seen."""
    pool = ThreadedConnectionPool(2, 3, dsn)
    with instrumented(signals):
        assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 2}
    pool.closeall()


def test_two_pools_of_one_server(signals: Signals, instrumentation: None, dsn: str) -> None:
    """Each has its own name, spans and series."""
    first, second = ThreadedConnectionPool(1, 1, dsn), SimpleConnectionPool(2, 5, dsn)
    second.putconn(second.getconn())
    name = f"{name_of(dsn)} #2"
    assert_exactly(signals.checkout().attributes, lent(dsn, name))
    assert signals.values("db.client.connection.max", name_of(dsn)) == {(): 1}
    assert signals.values("db.client.connection.max", name) == {(): 5}
    first.closeall()
    second.closeall()


def test_one_checkout_of_a_key(signals: Signals, instrumentation: None, dsn: str) -> None:
    """`getconn(key)` again is the same connection and the same checkout, however the key is passed."""
    pool = ThreadedConnectionPool(1, 2, dsn)
    conn = pool.getconn("me")
    assert pool.getconn("me") is conn
    assert pool.getconn(key="me") is conn
    assert len(signals.spans.started) == 2  # the pool's first connect, and the checkout
    other = pool.getconn(key="you")
    assert other is not conn
    pool.putconn(conn, "me")
    pool.putconn(conn=other, key="you")
    assert [span.attributes["otel_pgpool.path"] for span in signals.named("pool.checkout")] == ["idle", "new"]  # type: ignore[index]
    assert signals.live() == []
    assert signals.values("otel_pgpool.checkouts", name_of(dsn)) == {("idle",): 1, ("queued",): 0, ("new",): 1}


def test_return_from_another_thread(signals: Signals, instrumentation: None, dsn: str) -> None:
    """The thread's name is the borrower's."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = in_thread(pool.getconn, name="borrower").result(PATIENCE)
    in_thread(pool.putconn, conn, name="returner").result(PATIENCE)
    assert_exactly(signals.checkout().attributes, lent(dsn) | {"thread.name": "borrower"})


def test_checkouts_of_one_thread(signals: Signals, instrumentation: None, dsn: str) -> None:
    """Several at once, given back in another order, are told apart."""
    pool = SimpleConnectionPool(3, 3, dsn)
    conns = [pool.getconn() for _ in range(3)]
    for conn in (conns[1], conns[2], conns[0]):
        pool.putconn(conn)
    pids = [span.attributes["otel_pgpool.connection.pid"] for span in signals.named("pool.checkout")]  # type: ignore[index]
    assert pids == [conn.get_backend_pid() for conn in (conns[1], conns[2], conns[0])]


# Connections that do not stay


def test_close_on_return(signals: Signals, instrumentation: None, dsn: str) -> None:
    """`putconn(close=True)`, by keyword or place, is `discarded`, for the reason `returned_closed`."""
    pool = ThreadedConnectionPool(2, 2, dsn)
    pool.putconn(pool.getconn(), close=True)
    pool.putconn(pool.getconn(), None, True)
    for span in signals.named("pool.checkout"):
        assert_exactly(span.attributes, lent(dsn, outcome="discarded"))
        assert status_of(span) == ("UNSET", None)
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 2}
    assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 0}


def test_one_too_many(signals: Signals, instrumentation: None, dsn: str) -> None:
    """Beyond minconn the stock pool closes what is returned: `released`, and the connection discarded as `idle`."""
    pool = ThreadedConnectionPool(1, 2, dsn)
    first, second = pool.getconn(), pool.getconn()
    pool.putconn(first)
    pool.putconn(second)
    assert [span.attributes["otel_pgpool.outcome"] for span in signals.named("pool.checkout")] == ["released"] * 2  # type: ignore[index]
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("idle",): 1}
    assert signals.value("db.client.connection.idle.max", pool_name=name_of(dsn)) == 1


def test_returned_closed(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A connection that its borrower closed comes back `discarded`."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    assert_exactly(signals.checkout().attributes, lent(dsn, outcome="discarded"))
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("returned_closed",): 1}


def test_died_in_use(signals: Signals, instrumentation: None, dsn: str, admin: connection) -> None:
    """One that died under its borrower comes back `discarded`, and a warning says that it was lost."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    pid = conn.get_backend_pid()
    kill(admin, [pid])
    with pytest.raises(psycopg2.OperationalError):
        ask(conn, "select 1")
    pool.putconn(conn)
    assert_exactly(signals.checkout().attributes, lent(dsn, outcome="discarded"))
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("broken",): 1}
    (lost,) = signals.logged("connection_lost")
    assert lost.record.levelname == "WARNING"
    assert (lost.attributes["otel_pgpool.reason"], lost.attributes["otel_pgpool.connection.pid"]) == ("broken", pid)


@pytest.mark.parametrize("quiet", [False, True])
def test_rollback_that_fails(signals: Signals, dsn: str, admin: connection, quiet: bool) -> None:
    """Where the stock pool's own rollback fails, putconn raises it, the hold has ended, and its place is lost."""
    options = {"spans": "off"} if quiet else {}
    with instrumented(None if quiet else signals, long_hold=None, **options):
        pool = ThreadedConnectionPool(1, 2, dsn)
        conn = pool.getconn()
        ask(conn, "select 1")
        kill(admin, [conn.get_backend_pid()])
        with pytest.raises(psycopg2.OperationalError) as caught:
            pool.putconn(conn)
        stats = tracker_of(pool).stats()
        assert (stats.used, stats.oldest_hold, list(tracker_of(pool).held)) == (1, 0.0, [])
        pool.putconn(conn)  # which the stock pool accepts now, as the connection is closed
        stats = tracker_of(pool).stats()
        assert (stats.used, stats.discarded) == (0, {"broken": 1})
    if not quiet:
        span = signals.checkout()
        code = caught.value.pgcode
        assert_exactly(span.attributes, lent(dsn, outcome="discarded", error=code or "OperationalError"))
        assert status_of(span)[0] == "ERROR"
        assert "secret" not in str(status_of(span)[1])


# What the pool refuses


@pytest.mark.parametrize("cls", STOCK)
def test_exhausted(signals: Signals, instrumentation: None, dsn: str, cls: type[Pool]) -> None:
    """An exhausted pool raises at once, as ever: `timeout`, with the holders in the log."""
    pool = cls(1, 1, dsn)
    conn = pool.getconn()
    with pytest.raises(PoolError, match=f"^{EXHAUSTED}$"):
        pool.getconn()
    span = signals.checkout()
    assert_exactly(span.attributes, denied(dsn, "timeout", "timeout", "idle"))
    assert status_of(span) == ("ERROR", EXHAUSTED)
    assert signals.named("pool.wait") == []
    assert signals.values("db.client.connection.timeouts", name_of(dsn)) == {(): 1}
    (record,) = signals.logged("timeout")
    assert record.record.levelname == "ERROR"
    assert record.span_context == span.get_span_context()
    assert (record.attributes["otel_pgpool.used"], record.attributes["otel_pgpool.max"]) == (1, 1)
    (holder,) = record.attributes["otel_pgpool.holders"]
    assert str(conn.get_backend_pid()) in holder
    assert "test_exhausted" in holder
    pool.putconn(conn)


def test_closed(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A closed pool raises as ever: `error`, of type `closed`."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    pool.closeall()
    with pytest.raises(PoolError, match=f"^{CLOSED}$"):
        pool.getconn()
    assert_exactly(signals.checkout().attributes, denied(dsn, "error", "closed"))
    assert status_of(signals.checkout()) == ("ERROR", CLOSED)


def test_stranger(signals: Signals, instrumentation: None, dsn: str, admin: connection) -> None:
    """A connection of elsewhere is refused as ever, and nothing is told of it."""
    pool, other = ThreadedConnectionPool(1, 1, dsn), ThreadedConnectionPool(1, 1, dsn)
    theirs = other.getconn()
    for conn in (admin, theirs):
        with pytest.raises(PoolError, match=UNKEYED):
            pool.putconn(conn)
    assert signals.named("pool.checkout") == []
    other.putconn(theirs)
    assert_exactly(signals.checkout().attributes, lent(dsn, f"{name_of(dsn)} #2"))


def test_given_back_twice(signals: Signals, instrumentation: None, dsn: str) -> None:
    """The second putconn is refused as ever; the span has ended with the first."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(PoolError, match=UNKEYED):
        pool.putconn(conn)
    assert_exactly(signals.checkout().attributes, lent(dsn))
    again = pool.getconn()
    assert again is conn
    assert len(signals.live()) == 1
    pool.putconn(again)


@pytest.mark.parametrize("quiet", [False, True])
def test_refused_return_is_none(signals: Signals, dsn: str, quiet: bool) -> None:
    """A putconn that the stock pool cannot follow, as by a key alone, ends nothing: the connection is still out."""
    with instrumented(None if quiet else signals, **({"spans": "off"} if quiet else {})):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn("key")
        with pytest.raises(AttributeError):
            pool.putconn(key="key")
        with pytest.raises(KeyError):
            pool.putconn(conn, "another key")
        assert tracker_of(pool).stats().oldest_hold > 0
        assert signals.named("pool.checkout") == []


# The end of a pool


@pytest.mark.parametrize("cls", STOCK)
def test_closeall(signals: Signals, instrumentation: None, dsn: str, cls: type[Pool]) -> None:
    """`closeall()` ends the checkouts that are out as `discarded`, and the pool's levels; its totals are told."""
    pool = cls(2, 2, dsn)
    conn = pool.getconn()
    assert signals.points("db.client.connection.max", name_of(dsn)) != []
    pool.closeall()
    assert conn.closed
    assert_exactly(signals.checkout().attributes, lent(dsn, outcome="discarded"))
    assert status_of(signals.checkout()) == ("UNSET", None)
    gone = [record.attributes["otel_pgpool.reason"] for record in signals.logged("discarded")]
    assert gone == ["closed", "closed"]
    for name in ("db.client.connection.max", "db.client.connection.count"):
        assert signals.points(name, name_of(dsn)) == []
    assert sum(signals.values("otel_pgpool.checkouts", name_of(dsn)).values()) == 1
    assert signals.values("otel_pgpool.connections.discarded", name_of(dsn)) == {("closed",): 2}
    with pytest.raises(PoolError, match=CLOSED):
        pool.putconn(conn)
    with pytest.raises(PoolError, match=CLOSED):
        pool.closeall()
    assert len(signals.named("pool.checkout")) == 1


@pytest.mark.parametrize("closed", [True, False])
def test_pool_that_is_gone_frees_its_name(signals: Signals, instrumentation: None, dsn: str, closed: bool) -> None:
    """A program that closes its pool, or drops it without a word, and makes a new one goes on under the same name."""
    for _ in range(3):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        if closed:
            pool.closeall()
        del pool
    names = [span.attributes["db.client.connection.pool.name"] for span in signals.named("pool.checkout")]  # type: ignore[index]
    assert names == [name_of(dsn)] * 3


def test_never_returned(signals: Signals, dsn: str) -> None:
    """A leak shows while it lasts: the event, the log with the line that asked, the counter and the oldest hold."""
    with instrumented(signals, long_hold=0.02):
        pool = ThreadedConnectionPool(1, 2, dsn)
        conn = pool.getconn()
        (record,) = until(lambda: signals.logged("long_hold"))
        (span,) = signals.live()
        (event,) = span.events
        assert event.name == "pool.long_hold"
        assert_exactly(
            event.attributes,
            {
                "otel_pgpool.long_hold.threshold": 0.02,
                "otel_pgpool.held": float,
                "otel_pgpool.connection.pid": conn.get_backend_pid(),
                "otel_pgpool.transaction.status": "idle",
                "otel_pgpool.checked_out_at": str,
                "code.file.path": str,
                "code.line.number": int,
                "code.function.name": str,
                "code.stacktrace": str,
            },
        )
        where = record.attributes["otel_pgpool.checked_out_at"]
        assert where.splitlines()[0].endswith("test_never_returned")
        assert __file__ in where
        assert len(where.splitlines()) == 4
        assert "otel_pgpool/instrumentation/" not in where
        assert record.record.levelname == "WARNING"
        assert record.span_context == span.get_span_context()
        assert signals.values("otel_pgpool.long_holds", name_of(dsn)) == {(): 1}
        assert signals.value("otel_pgpool.oldest_hold", pool_name=name_of(dsn)) >= 0.02
        assert signals.value("otel_pgpool.utilization", pool_name=name_of(dsn)) == 0.5
        pool.putconn(conn)
        assert_exactly(signals.checkout().attributes, lent(dsn, long_hold=True))
        (returned,) = signals.logged("long_hold_returned")
        assert returned.attributes["otel_pgpool.connection.pid"] == conn.get_backend_pid()
        assert len(signals.logged("long_hold")) == 1


def test_never_returned_and_quiet(signals: Signals, dsn: str) -> None:
    """Without spans and a meter provider the logs tell it all the same."""
    with instrumented(spans="off", long_hold=0.02):
        pool = ThreadedConnectionPool(1, 2, dsn)
        conn = pool.getconn()
        (record,) = until(lambda: signals.logged("long_hold"))
        assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0].endswith("test_never_returned_and_quiet")
        assert record.attributes["otel_pgpool.connection.pid"] == conn.get_backend_pid()
        assert tracker_of(pool).stats().long_holds == 1
        pool.putconn(conn)
        assert len(signals.logged("long_hold_returned")) == 1
        assert tracker_of(pool).stats().oldest_hold == 0.0


@pytest.mark.parametrize("quiet", [False, True])
def test_pool_dropped_without_closing(signals: Signals, dsn: str, admin: connection, quiet: bool) -> None:
    """Its series end, and what was still out is told as reclaimed, with the line that asked; it is not kept alive."""
    with instrumented(None if quiet else signals, long_hold=None, **({"spans": "off"} if quiet else {})):
        pool = ThreadedConnectionPool(2, 2, dsn)
        pids = [conn.get_backend_pid() for conn in pool._pool]
        pool.getconn()
        del pool
        gc.collect()
        (record,) = until(lambda: signals.logged("reclaimed"))
        assert "test_pool_dropped_without_closing" in record.attributes["otel_pgpool.checked_out_at"]
        assert until(lambda: not any(lives(admin, pid) for pid in pids))
        if not quiet:
            assert_exactly(until(lambda: signals.named("pool.checkout"))[0].attributes, lent(dsn, outcome="reclaimed"))
            assert signals.points("db.client.connection.max", name_of(dsn)) == []


def test_connection_outlives_its_pool(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A borrower whose pool was dropped goes on using its connection; the checkout has ended."""
    conn = ThreadedConnectionPool(1, 1, dsn).getconn()
    until(lambda: signals.named("pool.checkout"))
    assert ask(conn, "select 1") == 1
    conn.close()


# Connecting


def test_constructor_that_cannot_connect(signals: Signals, instrumentation: None) -> None:
    """The stock error comes out; the attempt is a failed connect, and an outage in the log, without the password."""
    with refused_port() as port, pytest.raises(psycopg2.OperationalError, match="refused"):
        ThreadedConnectionPool(1, 1, host="127.0.0.1", port=port, user="postgres", password="secret-word")
    span = signals.one("pool.connect")
    assert span.parent is None
    dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    start = start_attributes(dsn, name_of(dsn))
    assert_exactly(span.attributes, {**start, "otel_pgpool.attempt": 1, "error.type": "OperationalError"})
    assert status_of(span)[0] == "ERROR"
    assert "refused" in str(status_of(span)[1])
    (record,) = signals.logged("outage_started")
    assert record.record.levelname == "ERROR"
    assert "secret-word" not in signals.everything()


def test_constructor_tried_until_it_connects(signals: Signals, instrumentation: None, dsn: str) -> None:
    """A program that makes its pool in a loop until the server is up has one pool in the end, under its plain name."""
    left = [2]

    def factory(*args: Any, **options: Any) -> connection:
        if left[0]:
            left[0] -= 1
            raise psycopg2.OperationalError("not yet")
        return connection(*args, **options)

    pool = None
    while pool is None:
        with suppress(psycopg2.OperationalError):
            pool = ThreadedConnectionPool(1, 1, dsn, connection_factory=factory)
    pool.putconn(pool.getconn())
    assert_exactly(signals.checkout().attributes, lent(dsn))
    assert len(signals.points("db.client.connection.max", name_of(dsn))) == 1


def test_connect_that_fails_later(signals: Signals, instrumentation: None, dsn: str) -> None:
    """The checkout failed, with a retry of its own; the next one that succeeds ends the outage."""
    pool = ThreadedConnectionPool(0, 1, dsn)
    with refused_port() as port, refusing(pool, port), pytest.raises(psycopg2.OperationalError, match="refused"):
        pool.getconn()
    span, connect = signals.checkout(), signals.one("pool.connect")
    assert_exactly(span.attributes, denied(dsn, "error", "OperationalError", "new", retries=1))
    assert status_of(span)[0] == "ERROR"
    assert [event.name for event in span.events] == ["pool.retry"]
    assert is_child(connect, span)
    assert connect.attributes is not None
    assert connect.attributes["error.type"] == "OperationalError"
    assert signals.values("db.client.connection.count", name_of(dsn)) == {("used",): 0, ("idle",): 0}
    pool.putconn(pool.getconn())
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn, path="new"))
    assert [record.event for record in signals.records.all if str(record.event).startswith("outage")] == [
        "outage_started",
        "outage_ended",
    ]
    assert "secret-word" not in signals.everything()


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("not for reading")


@pytest.mark.parametrize("options", [{"dsn": "no dsn = = "}, {"host": Unreadable()}, {"nonsense": 1}, {"dsn": 5}])
def test_arguments_that_cannot_be_read(signals: Signals, dsn: str, options: dict[str, Any]) -> None:
    """The error is the stock one, and comes when it always came; the pool's name is `unknown`, and no more is told."""

    def fail() -> tuple[Any, ...]:
        pool = ThreadedConnectionPool(0, 1, **options)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - it is compared
            pool.getconn()
        told = type(caught.value), str(caught.value), len(pool._used)
        pool.closeall()  # the error keeps it
        return told

    without = fail()
    with instrumented(signals):
        assert fail() == without
        assert signals.checkout().attributes is not None
        assert signals.checkout().attributes["db.client.connection.pool.name"] == "unknown"
        assert "no dsn" not in signals.everything()


def test_where_the_pool_leads(signals: Signals, instrumentation: None, server: PostgresServer, dsn: str) -> None:
    """Host, port and database are known from keywords, a URL or libpq's form alike."""
    parameters = extensions.parse_dsn(dsn)
    text = extensions.make_dsn(**parameters)
    for number, (args, options) in enumerate([((dsn,), {}), ((text,), {}), ((), parameters)]):
        pool = ThreadedConnectionPool(1, 1, *args, **options)
        pool.putconn(pool.getconn())
        assert_exactly(signals.named("pool.checkout")[number].attributes, lent(dsn))
        pool.closeall()


def test_error_that_is_no_outage(signals: Signals, instrumentation: None, dsn: str) -> None:
    """What a connection factory raises on an interrupt is an error of the checkout, and says nothing of the server."""
    failures: list[BaseException] = [KeyboardInterrupt()]

    def factory(*args: Any, **options: Any) -> connection:
        if failures:
            raise failures.pop()
        return connection(*args, **options)

    pool = ThreadedConnectionPool(0, 1, dsn, connection_factory=factory)
    with pytest.raises(KeyboardInterrupt):
        pool.getconn()
    assert_exactly(signals.checkout().attributes, denied(dsn, "error", "KeyboardInterrupt", "new", retries=1))
    assert signals.logged("outage_started") == []
    pool.putconn(pool.getconn())
    assert signals.logged("outage_ended") == []


class Own(connection):
    """A program's own connection: it compares by value, and so has no hash."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("quiet", [False, True])
def test_connection_factory(signals: Signals, dsn: str, quiet: bool) -> None:
    """The program gets its own objects, which need not be hashable or different from each other."""
    with instrumented(None if quiet else signals, **({"spans": "off"} if quiet else {})):
        pool = ThreadedConnectionPool(1, 2, dsn, connection_factory=Own)
        first, second = pool.getconn(), pool.getconn()
        assert type(first) is type(second) is Own
        pool.putconn(first)
        pool.putconn(second)
        assert sum(tracker_of(pool).stats().checkouts.values()) == 2
        assert pool.getconn() is first
        pool.putconn(first)


# Beside others


def test_own_pool_is_not_traced_twice(signals: Signals, instrumentation: None, dsn: str) -> None:
    """Our own ConnectionPool has its own telemetry, instrumented or not."""
    with signals.pool(1, 2, dsn) as pool:
        pool.putconn(pool.getconn())
        with pool.connection():
            pass
        assert len(signals.named("pool.checkout")) == 2
        assert len(signals.points("db.client.connection.max")) == 1
        assert signals.points("db.client.connection.max", name_of(dsn)) == []
        assert not hasattr(ConnectionPool, "_otel_pgpool")


@pytest.mark.parametrize("first", ["instrumentation", "queries"])
def test_with_the_instrumentation_of_queries(signals: Signals, dsn: str, first: str) -> None:
    """`opentelemetry-instrumentation-psycopg2`, started before or after, reports each query once, beside the hold."""
    queries = Psycopg2Instrumentor()
    turn_on: dict[str, Callable[[], object]] = {
        "queries": partial(queries.instrument, tracer_provider=signals.tracer_provider, skip_dep_check=True),
        "instrumentation": lambda: None,
    }
    if first == "queries":
        turn_on["queries"]()
    try:
        with instrumented(signals):
            if first == "instrumentation":
                turn_on["queries"]()
            pool = ThreadedConnectionPool(1, 2, dsn)
            with signals.tracer.start_as_current_span("order") as order:
                for _ in range(2):
                    conn = pool.getconn()
                    assert isinstance(conn, connection)
                    assert ask(conn, "select 1") == 1
                    pool.putconn(conn)
            assert len(signals.named("pool.checkout")) == 2
            spans = signals.named("select")
            assert len(spans) == 2
            assert all(is_child(span, order) for span in spans)
    finally:
        queries.uninstrument()


@pytest.mark.parametrize("quiet", [False, True])
def test_many_threads(signals: Signals, dsn: str, quiet: bool) -> None:
    """Every checkout of many threads is told once, if anybody listens, and at the end nothing is out."""
    with quietly() if quiet else instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(4, 4, dsn)
        got = threading.Semaphore(4)

        def work() -> None:
            for _ in range(50):
                with got:
                    conn = pool.getconn()
                    assert ask(conn, "select 1") == 1
                    pool.putconn(conn)

        for future in [in_thread(work) for _ in range(8)]:
            future.result(PATIENCE)
        assert len(signals.named("pool.checkout")) == (0 if quiet else 400)
        assert signals.live() == []
        stats = tracker_of(pool).stats()
        assert stats.checkouts == {"idle": 400, "queued": 0, "new": 0}
        assert (stats.used, stats.idle, stats.oldest_hold) == (0, 4, 0.0)
        assert (tracker_of(pool).held, tracker_of(pool).light) == ({}, {})


def test_first_checkouts_of_many_threads(signals: Signals, dsn: str) -> None:
    """A pool made before the instrumentation that many threads use at once is one pool: one name, one set of series."""
    pool = ThreadedConnectionPool(8, 8, dsn)
    with instrumented(signals):
        meeting = threading.Barrier(8)

        def work() -> None:
            meeting.wait(PATIENCE)
            pool.putconn(pool.getconn())

        for future in [in_thread(work) for _ in range(8)]:
            future.result(PATIENCE)
        names = {span.attributes["db.client.connection.pool.name"] for span in signals.named("pool.checkout")}  # type: ignore[index]
        assert names == {name_of(dsn)}
        assert len(signals.metrics()["db.client.connection.max"].data.data_points) == 1
