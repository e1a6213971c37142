"""The three spans of a checkout: attributes, kinds, parents, status, and what is current when."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from contextlib import closing, suppress
from itertools import permutations
from time import sleep, time_ns
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

from otel_pgpool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests, __version__
from otel_pgpool.telemetry.spans import CLOCKS_APART
from tests.support.database import ask, kill, refused_port
from tests.support.telemetry import (
    NAME,
    PATIENCE,
    SCHEMA,
    Signals,
    all_connects_told,
    assert_exactly,
    is_child,
    queued,
    served,
    start_attributes,
    status_of,
    unserved,
    until,
    waited,
)
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link
    from opentelemetry.util.types import Attributes
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer


@pytest.fixture
def closed_dsn() -> Iterator[str]:
    """Reserve a port that refuses connections for as long as the test runs."""
    with refused_port() as port:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


# Served, by path


def test_idle_checkout(signals: Signals, dsn: str) -> None:
    """A connection at hand is path `idle`: INTERNAL, no event, no wait, no error, in the scope of this package."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
        span = signals.checkout()
        assert_exactly(
            span.attributes, served(dsn, **{"connection.id": 1, "connection.pid": pid}) | {"thread.name": "MainThread"}
        )
        assert span.kind is SpanKind.INTERNAL
        assert status_of(span) == ("UNSET", None)
        assert (span.events, span.links, span.parent) == ((), (), None)
        assert signals.named("pool.wait") == []
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "otel_pgpool"
        assert span.instrumentation_scope.version == __version__
        assert span.instrumentation_scope.schema_url == SCHEMA


@pytest.mark.parametrize("switches", ["before", "after"])
def test_a_thread_switch_between_two_clocks(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, switches: str
) -> None:
    """The span neither ends before a query that it contains, nor after the moment of its release."""
    calls: list[int] = []

    def read() -> int:
        calls.append(1)
        if len(calls) > 1:
            return time_ns()
        if switches == "before":
            sleep(0.005)
        reading = time_ns()
        if switches == "after":
            sleep(0.005)
        return reading

    with signals.pool(1, 1, dsn) as pool:
        monkeypatch.setattr("otel_pgpool.telemetry.spans.time_ns", read)
        with pool.connection() as conn:
            ask(conn, "select 1")
            asked = time_ns()
        released = time_ns()
    span = signals.checkout()
    assert asked <= (span.end_time or 0) <= released + CLOCKS_APART * 1e9
    assert len(calls) == 2


def test_queued_checkout(signals: Signals, dsn: str) -> None:
    """One that waited for a returned connection is path `queued`; wait and hold are real, the thread the borrower's."""
    with signals.pool(1, 1, dsn) as pool:
        conn = pool.getconn()

        def borrow() -> None:
            with pool.connection():
                pass

        with queued(pool, borrow, name="borrower"):
            pool.putconn(conn)
        first, second = signals.named("pool.checkout")
        assert_exactly(first.attributes, served(dsn, outcome="released"))
        assert_exactly(second.attributes, served(dsn, path="queued") | {"thread.name": "borrower"})
        assert second.attributes is not None
        assert second.start_time is not None
        assert second.end_time is not None
        took = second.attributes["otel_pgpool.wait_time"] + second.attributes["otel_pgpool.hold_time"]
        assert 0 < took <= (second.end_time - second.start_time) / 1e9 + 0.001
        wait = signals.one("pool.wait")
        assert wait.kind is SpanKind.INTERNAL
        assert_exactly(wait.attributes, waited(1))
        assert is_child(wait, second)


def test_new_checkout(signals: Signals, dsn: str) -> None:
    """One that waited for a new connection is path `new`; wait and connect are children of the checkout that asked."""
    with signals.pool(0, 1, dsn) as pool:
        with signals.tracer.start_as_current_span("order") as order, pool.connection():
            pass
        all_connects_told(pool)
        span, wait, connect = signals.checkout(), signals.one("pool.wait"), signals.one("pool.connect")
        assert_exactly(span.attributes, served(dsn, path="new", **{"connection.id": 1}))
        assert is_child(span, order)
        assert is_child(wait, span)
        assert is_child(connect, span)
        assert connect.kind is SpanKind.CLIENT
        assert_exactly(connect.attributes, {**start_attributes(dsn), "otel_pgpool.attempt": 1})
        assert status_of(connect) == ("UNSET", None)


def test_connections_are_numbered(signals: Signals, dsn: str) -> None:
    """`connection.id` is the connection's serial in its pool, `connection.pid` its backend."""
    with signals.pool(3, 3, dsn) as pool:
        conns = [pool.getconn() for _ in range(3)]
        pids = [conn.get_backend_pid() for conn in conns]
        for conn in conns:
            pool.putconn(conn)
        shown = [span.attributes or {} for span in signals.named("pool.checkout")]
        assert [attributes["otel_pgpool.connection.pid"] for attributes in shown] == pids
        assert {attributes["otel_pgpool.connection.id"] for attributes in shown} == {1, 2, 3}


def test_unix_socket(signals: Signals, server: PostgresServer) -> None:
    """Through a Unix socket, `server.address` is its folder and `server.port` a number still."""
    where = {"host": server.socket_dir, "port": server.port, "user": "postgres", "dbname": "postgres"}
    with signals.pool(0, 1, **where) as pool, pool.connection():
        pass
    for span in (signals.checkout(), signals.one("pool.connect")):
        assert span.attributes is not None
        assert span.attributes["server.address"] == server.socket_dir
        assert span.attributes["server.port"] == server.port


# Served, by outcome


class OwnError(Exception):
    """The caller's own."""


def raising(pool: ConnectionPool, _admin: connection) -> None:
    with suppress(OwnError), pool.connection():
        raise OwnError("no fault of the pool's")


def failing_sql(pool: ConnectionPool, _admin: connection) -> None:
    with suppress(psycopg2.Error), pool.connection() as conn:
        ask(conn, "select 1/0")


def failed_transaction(pool: ConnectionPool, _admin: connection) -> None:
    with pool.connection() as conn, suppress(psycopg2.Error):
        ask(conn, "select 1/0")


def writing(pool: ConnectionPool, _admin: connection) -> None:
    with pool.connection() as conn:
        ask(conn, "create temporary table t (i int)")


def autocommitting(pool: ConnectionPool, _admin: connection) -> None:
    with pool.connection() as conn:
        conn.autocommit = True
        ask(conn, "select 1")


def given_back(pool: ConnectionPool, _admin: connection) -> None:
    conn = pool.getconn()
    ask(conn, "select 1")
    pool.putconn(conn)


def given_back_to_close(pool: ConnectionPool, _admin: connection) -> None:
    pool.putconn(pool.getconn(), close=True)


def given_back_closed(pool: ConnectionPool, _admin: connection) -> None:
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)


def left_closed(pool: ConnectionPool, _admin: connection) -> None:
    with pool.connection() as conn:
        conn.close()


def died_in_a_query(pool: ConnectionPool, admin: connection) -> None:
    with suppress(psycopg2.Error), pool.connection() as conn:
        kill(admin, [conn.get_backend_pid()])
        ask(conn, "select 1")


def dropped(pool: ConnectionPool, _admin: connection) -> None:
    conn = pool.getconn()
    ask(conn, "select 1")
    del conn
    until(lambda: pool.stats().discarded.get("reclaimed"))


def quit_by_ctrl_c(pool: ConnectionPool, _admin: connection) -> None:
    with suppress(KeyboardInterrupt), pool.connection():
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("use", "outcome"),
    [
        (writing, "committed"),
        (autocommitting, "committed"),
        (raising, "rolled_back"),
        (failing_sql, "rolled_back"),
        (failed_transaction, "rolled_back"),
        (quit_by_ctrl_c, "rolled_back"),
        (given_back, "released"),
        (given_back_to_close, "discarded"),
        (given_back_closed, "discarded"),
        (left_closed, "discarded"),
        (died_in_a_query, "discarded"),
        (dropped, "reclaimed"),
    ],
)
def test_outcome(
    signals: Signals, dsn: str, admin: connection, use: Callable[[ConnectionPool, connection], None], outcome: str
) -> None:
    """The outcome says how the connection came back; the caller's own exception is no failure of the pool's."""
    with signals.pool(1, 1, dsn) as pool:
        use(pool, admin)
        span = until(lambda: signals.named("pool.checkout"))[0]
        assert_exactly(span.attributes, served(dsn, outcome=outcome))
        assert status_of(span) == ("UNSET", None)
        assert span.events == ()


# Served, and the pool's own work failed


@pytest.fixture
def unique_table(admin: connection) -> Iterator[str]:
    """Create a table whose constraint is checked at the commit."""
    with admin.cursor() as cur:
        cur.execute("create table deferred_unique (word text unique deferrable initially deferred)")
    yield "deferred_unique"
    with admin.cursor() as cur:
        cur.execute("drop table deferred_unique")


def test_commit_refused(signals: Signals, dsn: str, unique_table: str) -> None:
    """A commit that fails is the pool's failure: the SQLSTATE, the server's message, and no row of the table."""
    with signals.pool(1, 1, dsn) as pool:
        with pytest.raises(psycopg2.IntegrityError), pool.connection() as conn:
            ask(conn, f"insert into {unique_table} values ('hush-hush'), ('hush-hush')")
        span = signals.checkout()
        assert_exactly(span.attributes, served(dsn, outcome="rolled_back", error="23505"))
        status, description = status_of(span)
        assert status == "ERROR"
        assert description is not None
        assert "unique constraint" in description
        assert not description.startswith(("23505", "UniqueViolation", "IntegrityError"))
        assert "hush-hush" not in signals.everything()


def test_commit_refused_by_a_trigger(signals: Signals, dsn: str) -> None:
    """What a trigger raises at the commit may quote values: the span has its SQLSTATE and not its words."""
    with signals.pool(1, 1, dsn) as pool:
        with pytest.raises(psycopg2.Error, match="hush-hush"), pool.connection() as conn:  # noqa: PT012 - its end raises
            ask(conn, "create temporary table cards (card text)")
            ask(
                conn,
                "create function pg_temp.decline() returns trigger language plpgsql as "
                "$$ begin raise exception 'card % declined', new.card; end $$",
            )
            ask(
                conn,
                "create constraint trigger decline after insert on cards deferrable initially deferred "
                "for each row execute function pg_temp.decline()",
            )
            ask(conn, "insert into cards values ('hush-hush')")
        span = signals.checkout()
        assert_exactly(span.attributes, served(dsn, outcome="rolled_back", error="P0001"))
        assert status_of(span)[0] == "ERROR"
        assert "hush-hush" not in signals.everything()


def test_commit_on_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """A commit that finds the connection dead is the pool's failure too, and the connection is discarded."""
    with signals.pool(1, 1, dsn) as pool:
        with pytest.raises(psycopg2.Error) as raised, pool.connection() as conn:  # noqa: PT012 - its end raises
            ask(conn, "select 1")
            kill(admin, [conn.get_backend_pid()])
        span = signals.checkout()
        name = raised.value.pgcode or type(raised.value).__name__
        assert_exactly(span.attributes, served(dsn, outcome="discarded", error=name))
        assert status_of(span)[0] == "ERROR"


def test_rollback_on_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """The rollback after the caller's own exception fails: the span says what of the pool's work failed."""
    with signals.pool(1, 1, dsn) as pool:
        with pytest.raises(OwnError), pool.connection() as conn:  # noqa: PT012 - its end is looked at
            ask(conn, "select 1")
            kill(admin, [conn.get_backend_pid()])
            raise OwnError
        span = signals.checkout()
        assert span.attributes is not None
        assert_exactly(span.attributes, served(dsn, outcome="discarded", error=span.attributes["error.type"]))
        assert span.attributes["error.type"] in ("57P01", "OperationalError", "InterfaceError")
        assert status_of(span)[0] == "ERROR"


def test_reset_that_raises(signals: Signals, dsn: str) -> None:
    """A connection that the program's own reset refuses is discarded, with the name of its exception."""

    def reset(_conn: connection) -> None:
        raise OwnError("not fit")

    with signals.pool(1, 1, dsn, reset=reset) as pool:
        pool.putconn(pool.getconn())
        span = signals.checkout()
        assert_exactly(span.attributes, served(dsn, outcome="discarded", error="OwnError"))
        assert status_of(span)[0] == "ERROR"


# Not served


def test_timeout_in_the_queue(signals: Signals, dsn: str) -> None:
    """A checkout that timed out: what it waited for, its wait, and neither hold nor connection."""
    with signals.pool(1, 1, dsn) as pool:
        held = pool.getconn()
        with pytest.raises(PoolTimeout) as raised:
            pool.getconn(timeout=0.05)
        span, wait = signals.checkout(), signals.one("pool.wait")
        assert_exactly(span.attributes, unserved(dsn, "queued", "timeout", "timeout") | {"thread.name": "MainThread"})
        assert status_of(span) == ("ERROR", str(raised.value))
        assert span.attributes is not None
        assert 0.05 <= span.attributes["otel_pgpool.wait_time"] < PATIENCE
        assert span.events == ()
        assert is_child(wait, span)
        assert status_of(wait) == ("UNSET", None)
        pool.putconn(held)


def test_timeout_of_a_new_connection(signals: Signals, closed_dsn: str) -> None:
    """While there is room it waited for a new connection, and says so."""
    with signals.pool(0, 1, closed_dsn, open=False) as pool:

        def retries() -> int:
            signals.spans.ended.clear()
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.05)
            return (signals.checkout().attributes or {})["otel_pgpool.retries"]

        failed = until(retries)  # on a busy machine no attempt may have failed in such a time
        span = signals.checkout()
        assert_exactly(span.attributes, unserved(closed_dsn, "new", "timeout", "timeout", retries=failed))
        assert failed == len(span.events)


def test_timeout_at_once(signals: Signals, dsn: str) -> None:
    """With a timeout of 0 there is no queueing, hence no wait span."""
    with signals.pool(1, 1, dsn) as pool:
        held = pool.getconn()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert_exactly(signals.checkout().attributes, unserved(dsn, "idle", "timeout", "timeout"))
        assert signals.named("pool.wait") == []
        pool.putconn(held)


def test_queue_full(signals: Signals, dsn: str) -> None:
    """`max_waiting` reached: `too_many_requests`, without a wait."""
    with signals.pool(1, 1, dsn, max_waiting=1) as pool:
        held = pool.getconn()
        with queued(pool, lambda: pool.putconn(pool.getconn())):
            with pytest.raises(TooManyRequests) as raised:
                pool.getconn()
            span = signals.checkout()
            assert_exactly(span.attributes, unserved(dsn, str, "error", "too_many_requests"))
            assert status_of(span) == ("ERROR", str(raised.value))
            assert signals.named("pool.wait") == []
            pool.putconn(held)


def test_closed_before(signals: Signals, dsn: str) -> None:
    """A checkout of a closed pool is a span with `error.type` `closed`."""
    with signals.pool(1, 1, dsn) as pool:
        pool.close()
        with pytest.raises(PoolClosed) as raised:
            pool.getconn()
        span = signals.checkout()
        assert_exactly(span.attributes, unserved(dsn, str, "error", "closed"))
        assert status_of(span) == ("ERROR", str(raised.value))


def test_closed_while_waiting(signals: Signals, dsn: str) -> None:
    """A checkout that waits when the pool closes fails at once, and has a span of its wait."""
    with signals.pool(1, 1, dsn) as pool:
        held = pool.getconn()

        def wait() -> None:
            with pytest.raises(PoolClosed):
                pool.getconn()

        with queued(pool, wait):
            pool.close(0)
        span = signals.checkout()
        assert_exactly(span.attributes, unserved(dsn, "queued", "error", "closed"))
        assert is_child(signals.one("pool.wait"), span)
        pool.putconn(held)


def test_interrupted_wait(signals: Signals, dsn: str) -> None:
    """An interrupted wait has the outcome `error`, the exception's name, and a span of the wait."""

    class Interruptedly(BaseException):
        """What a handler of signals may raise."""

    def interrupt(_number: int, _frame: object) -> None:
        raise Interruptedly

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with signals.pool(1, 1, dsn) as pool:
            held = pool.getconn()
            main = threading.get_ident()

            def shoot() -> None:
                until(lambda: pool.stats().waiting)
                signal.pthread_kill(main, signal.SIGUSR1)

            shooter = in_thread(shoot)
            with pytest.raises(Interruptedly):
                pool.getconn()
            shooter.result(PATIENCE)
            span = signals.checkout()
            assert_exactly(span.attributes, unserved(dsn, "queued", "error", "Interruptedly"))
            assert status_of(span)[0] == "ERROR"
            assert is_child(signals.one("pool.wait"), span)
            pool.putconn(held)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_given_up_after_max_retries(signals: Signals, closed_dsn: str) -> None:
    """With `max_retries` reached the span names the connect's error, and so does the connect's own span."""
    with signals.pool(0, 1, closed_dsn, open=False, max_retries=1) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn()
        span, connect = signals.checkout(), until(lambda: signals.named("pool.connect"))[0]
        assert_exactly(span.attributes, unserved(closed_dsn, "new", "error", "OperationalError", retries=1))
        assert status_of(span)[0] == "ERROR"
        assert_exactly(
            connect.attributes,
            {**start_attributes(closed_dsn), "otel_pgpool.attempt": 1, "error.type": "OperationalError"},
        )
        status, description = status_of(connect)
        assert status == "ERROR"
        assert description is not None
        assert "Connection refused" in description
        assert "OperationalError" not in description
        assert is_child(connect, span)


def test_timeout_after_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """One that was lent a dead connection, saw it discarded and then timed out has no hold and no connection."""
    down = threading.Event()

    def credentials() -> dict[str, Any]:
        return {"port": 1} if down.is_set() else {}

    with signals.pool(1, 1, dsn, credentials=credentials) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
        signals.spans.ended.clear()
        down.set()
        kill(admin, [pid])
        threading.Event().wait(0.06)  # one used within the last 50 ms is lent without a look
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.1)
        span = signals.checkout()
        assert span.attributes is not None
        retries = span.attributes["otel_pgpool.retries"]
        assert retries >= 1
        assert_exactly(span.attributes, unserved(dsn, "new", "timeout", "timeout", retries=retries))


# Retries


def test_success_after_failed_connects(signals: Signals, dsn: str) -> None:
    """A checkout that succeeds after retries carries their count and no error; each failed connect has its span."""
    missing = iter([{"port": 1}, {"port": 1}])
    with signals.pool(0, 1, dsn, credentials=lambda: next(missing, {})) as pool:
        with pool.connection():
            pass
        all_connects_told(pool)
        span, connects = signals.checkout(), signals.named("pool.connect")
        assert_exactly(span.attributes, served(dsn, path="new", retries=2))
        assert status_of(span) == ("UNSET", None)
        assert [status_of(connect)[0] for connect in connects] == ["ERROR", "ERROR", "UNSET"]
        assert [(connect.attributes or {})["otel_pgpool.attempt"] for connect in connects] == [1, 2, 3]
        assert all(is_child(connect, span) for connect in connects)


def test_success_after_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """A connection found dead at checkout counts as a failed attempt; the caller gets a new one and no error."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
        signals.spans.ended.clear()
        kill(admin, [pid])
        threading.Event().wait(0.06)  # one used within the last 50 ms is lent without a look
        with pool.connection() as conn:
            assert conn.get_backend_pid() != pid
        span = signals.checkout()
        assert_exactly(span.attributes, served(dsn, path="new", retries=1, **{"connection.id": 2}))
        assert status_of(span) == ("UNSET", None)
        assert [event.name for event in span.events] == ["pool.retry", "pool.acquired"]


# Parents


def test_refill_is_a_root(signals: Signals, dsn: str) -> None:
    """Connections that the pool opens for itself are roots, whatever was current when it was made."""
    with signals.tracer.start_as_current_span("start-up"), signals.pool(2, 2, dsn):
        pass
    connects = signals.named("pool.connect")
    assert len(connects) == 2
    assert [connect.parent for connect in connects] == [None, None]


def test_root_without_a_caller(signals: Signals, dsn: str) -> None:
    """In a thread without a span the checkout is the root; under one, it is its child."""
    with signals.pool(1, 1, dsn) as pool:
        with signals.tracer.start_as_current_span("order") as order:
            with pool.connection():
                pass
            in_thread(lambda: pool.putconn(pool.getconn())).result(PATIENCE)
        inside, outside = signals.named("pool.checkout")
        assert is_child(inside, order)
        assert outside.parent is None


def test_samplers_see_the_start_attributes(dsn: str) -> None:
    """What is known at the start is given at the start, so that samplers can decide by it."""
    seen: dict[str, dict[str, Any]] = {}

    class Watching(Sampler):
        def should_sample(  # noqa: PLR0917 - the interface
            self,
            parent_context: Context | None,
            trace_id: int,
            name: str,
            kind: SpanKind | None = None,
            attributes: Attributes = None,
            links: Sequence[Link] | None = None,
            trace_state: trace.TraceState | None = None,
        ) -> SamplingResult:
            seen[name] = dict(attributes or {})
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

        def get_description(self) -> str:
            return "watching"

    with Signals(Watching()) as signals, signals.pool(0, 1, dsn) as pool, pool.connection():
        pass
    assert_exactly(seen["pool.checkout"], start_attributes(dsn))
    assert_exactly(seen["pool.connect"], {**start_attributes(dsn), "otel_pgpool.attempt": 1})


# What is current


def test_current_inside_the_block(signals: Signals, dsn: str) -> None:
    """Inside `with pool.connection()` the checkout is the current span; afterwards what was before is current again."""
    with signals.pool(2, 2, dsn) as pool:
        before = contexts.get_current()
        with pool.connection():
            outer = trace.get_current_span()
            with signals.tracer.start_as_current_span("query"):
                pass
            with pool.connection():
                assert trace.get_current_span() is not outer
            assert trace.get_current_span() is outer
        assert contexts.get_current() == before
        inner_span, outer_span = signals.named("pool.checkout")
        assert outer_span.context == outer.get_span_context()
        assert is_child(signals.one("query"), outer_span)
        assert is_child(inner_span, outer_span)


def test_context_is_restored_after_an_exception(signals: Signals, dsn: str) -> None:
    """The caller's span is current again after a block that raised, and after a commit that failed."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        with pytest.raises(OwnError), pool.connection():
            raise OwnError
        assert trace.get_current_span() is order
        with pytest.raises(psycopg2.Error), pool.connection() as conn:  # noqa: PT012 - its end raises
            ask(conn, "create temporary table d (i int unique deferrable initially deferred)")
            ask(conn, "insert into d values (1), (1)")
        assert trace.get_current_span() is order


def test_a_failed_checkout_is_not_current(signals: Signals, dsn: str) -> None:
    """After a checkout that raised, the caller's span is current."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        held = pool.getconn()
        with pytest.raises(PoolTimeout), pool.connection(timeout=0):
            pass
        assert trace.get_current_span() is order
        pool.putconn(held)


def test_getconn_is_not_current(signals: Signals, dsn: str) -> None:
    """With getconn the caller's span stays current: the return may come from another thread, as it does here."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        conn = pool.getconn()
        assert trace.get_current_span() is order
        in_thread(lambda: pool.putconn(conn), name="returner").result(PATIENCE)
        assert trace.get_current_span() is order
        span = signals.checkout()
        assert is_child(span, order)
        assert (span.attributes or {})["thread.name"] == threading.current_thread().name


def test_query_spans_are_children(signals: Signals, dsn: str) -> None:
    """A query's span of psycopg2's instrumentation stands under the checkout; the pool's own statements leave none."""
    instrumentor = Psycopg2Instrumentor()
    instrumentor.instrument(tracer_provider=signals.tracer_provider)
    try:
        with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order"):
            with pool.connection() as conn:
                ask(conn, "select 1")
            checkout = signals.checkout()
            query = signals.one("select")
            assert is_child(query, checkout)
            pool.check()
            ours = ("pool.checkout", "pool.wait", "pool.connect", "select", "order")
            assert {span.name for span in signals.spans.started} <= set(ours)
            assert len(signals.named("select")) == 1
    finally:
        instrumentor.uninstrument()


# Blocks that are left elsewhere


def blocks(pool: ConnectionPool) -> Iterator[None]:
    with pool.connection():
        yield


def test_generator_closed_in_another_thread(signals: Signals, dsn: str) -> None:
    """A block that another thread leaves ends its span, disturbs nothing there and logs no error."""
    with signals.pool(1, 1, dsn) as pool:
        held = contextvars.copy_context()
        generator = blocks(pool)
        held.run(next, generator)

        def close() -> None:
            with signals.tracer.start_as_current_span("other") as other:
                generator.close()
                assert trace.get_current_span() is other

        in_thread(close).result(PATIENCE)
        assert_exactly(signals.checkout().attributes, served(dsn, outcome="rolled_back"))
        assert pool.stats().idle == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_generators_closed_in_any_order(signals: Signals, dsn: str, order: tuple[int, ...]) -> None:
    """Whichever of three blocks is left first, no ended span is current, and after the last the caller's is."""
    with signals.pool(3, 3, dsn) as pool:
        before = trace.get_current_span()
        generators = [blocks(pool) for _ in range(3)]
        for generator in generators:
            next(generator)
        for number in order[:-1]:
            generators[number].close()
        generators[order[-1]].close()
        assert trace.get_current_span() is before
        with signals.tracer.start_as_current_span("next job") as job:
            assert job.parent is None


@pytest.mark.parametrize(
    "elsewhere",
    [lambda close: in_thread(close).result(PATIENCE), lambda close: contextvars.copy_context().run(close)],
    ids=["thread", "copy of the context"],
)
def test_generator_closed_elsewhere_while_its_thread_goes_on(
    signals: Signals, dsn: str, elsewhere: Callable[[Callable[[], object]], object]
) -> None:
    """A thread whose block another thread, or an event loop, has left has its own context from its next checkout on."""
    with signals.pool(1, 1, dsn) as pool:
        before = trace.get_current_span()
        generator = blocks(pool)
        next(generator)
        elsewhere(generator.close)
        with pool.connection():
            pass
        assert trace.get_current_span() is before
        assert [span.parent for span in signals.named("pool.checkout")] == [None, None]


def test_a_context_outlives_its_block(signals: Signals, dsn: str) -> None:
    """Work that goes on in a captured context of a block that was left in its turn keeps its own span."""
    with signals.pool(2, 2, dsn) as pool:
        with pool.connection(), signals.tracer.start_as_current_span("export") as export:
            captured = contextvars.copy_context()

        def export_further() -> None:
            with pool.connection():
                pass
            assert trace.get_current_span() is export

        captured.run(export_further)


def test_generator_closed_in_another_context(signals: Signals, dsn: str) -> None:
    """The same for a block entered in a copy of the context and left outside it."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        with closing(blocks(pool)) as generator:
            contextvars.copy_context().run(next, generator)
            assert trace.get_current_span() is order
        assert trace.get_current_span() is order
        assert is_child(signals.checkout(), order)


def test_generator_left_to_the_garbage_collector(signals: Signals, dsn: str) -> None:
    """A generator that is dropped in the middle of its block gives back; whoever drops it keeps its context."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        generator = blocks(pool)
        contextvars.copy_context().run(next, generator)
        del generator
        until(lambda: pool.stats().used == 0)
        assert trace.get_current_span() is order
        assert len(signals.named("pool.checkout")) == 1


def test_asyncio_tasks(signals: Signals, dsn: str) -> None:
    """Two tasks of one loop, each in its block: each sees its own checkout, and its own parent."""

    async def order(pool: ConnectionPool, number: int) -> None:
        with signals.tracer.start_as_current_span(f"order {number}"), pool.connection():
            mine = trace.get_current_span()
            for _ in range(3):
                await asyncio.sleep(0)
                assert trace.get_current_span() is mine

    async def both(pool: ConnectionPool) -> None:
        await asyncio.gather(order(pool, 1), order(pool, 2))

    with signals.pool(2, 2, dsn) as pool:
        asyncio.run(both(pool))
    checkouts = signals.named("pool.checkout")
    assert all(any(is_child(span, signals.one(f"order {number}")) for span in checkouts) for number in (1, 2))
    assert all((span.attributes or {})["db.client.connection.pool.name"] == NAME for span in checkouts)
