"""The database's side of a long hold: its state, who blocks it, and what a server that does not answer costs."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg2
import pytest
from psycopg2 import errors

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.driver import monitor_connection
from otel_pgpool.pool import monitor, monitors, server_queries
from otel_pgpool.runtime import deadline
from tests.support import scripts
from tests.support.database import ask, kill
from tests.support.processes import frozen, in_child
from tests.support.servers import ClonedServer
from tests.support.telemetry import Signals, until
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from opentelemetry.sdk.trace import ReadableSpan
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer

LONG = 0.2
"""Seconds after which a hold is long here."""
MONITORS = "select count(*) from pg_stat_activity where application_name = 'otel_pgpool monitor'"
UPDATE = "update stock set number = number - 1 where id = 1"


@pytest.fixture
def stock(dsn: str) -> Iterator[None]:
    """Provide a table with one row to wait for."""
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("create table stock (id int primary key, number int); insert into stock values (1, 100)")
    yield
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("drop table stock")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a monitor ask more often than once a second."""
    monkeypatch.setattr(server_queries, "QUERY_INTERVAL", 0.05)


@contextmanager
def holding(pool: ConnectionPool, statement: str) -> Iterator[connection]:
    """Hold a connection that runs a statement which may wait; the statement is cancelled at the end, if necessary."""
    conn = pool.getconn()
    worker = in_thread(run, conn, statement)
    try:
        yield conn
    finally:
        with suppress(psycopg2.Error):
            conn.cancel()
        worker.result()
        pool.putconn(conn)


def run(conn: connection, statement: str) -> None:
    with suppress(psycopg2.extensions.QueryCanceledError, errors.UntranslatableCharacter), conn.cursor() as cursor:
        cursor.execute(statement)


def states(span: ReadableSpan) -> list[dict[str, Any]]:
    return [dict(event.attributes or {}) for event in span.events if event.name == "pool.database_state"]


def span_of(signals: Signals, conn: connection) -> ReadableSpan:
    """Return the span of a hold in progress."""
    pid = conn.info.backend_pid
    return next(
        span for span in signals.live() if any(state["otel_pgpool.connection.pid"] == pid for state in states(span))
    )


def asked(signals: Signals, *conns: connection) -> None:
    """Wait until the state of each connection's hold was logged."""
    pids = {conn.info.backend_pid for conn in conns}
    until(
        lambda: (
            pids <= {attributes_of(record)["otel_pgpool.connection.pid"] for record in signals.logged("database_state")}
        )
    )


def attributes_of(record: Any) -> dict[str, Any]:
    return vars(record.record)


@pytest.mark.usefixtures("stock")
def test_a_chain_of_three_over_two_pools(dsn: str, signals: Signals) -> None:
    """A holds a row, B waits for A, and C for B: events, links and records of B and C lead to A."""
    with (
        signals.pool(0, 2, dsn, name="one", long_hold=LONG) as one,
        signals.pool(0, 1, dsn, name="two", long_hold=LONG) as two,
        holding(one, UPDATE) as a,
    ):
        until(lambda: a.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS)
        with holding(two, UPDATE) as b:
            until(lambda: is_waiting(dsn, b))
            with holding(one, UPDATE) as c:
                until(lambda: any(states(span)[-1].get("postgresql.blocking.pids") for span in spans_with(signals, c)))
                asked(signals, a, b, c)
                first, second, third = (span_of(signals, conn) for conn in (a, b, c))
                of_a, of_b, of_c = (states(span)[-1] for span in (first, second, third))
                with pytest.raises(PoolTimeout) as caught:
                    two.getconn(timeout=0)
    pid_a, pid_b = (state["otel_pgpool.connection.pid"] for state in (of_a, of_b))
    assert of_a["postgresql.state"] == "idle in transaction"
    assert "postgresql.blocking.pids" not in of_a
    assert (of_b["postgresql.state"], of_b["postgresql.wait_event_type"]) == ("active", "Lock")
    assert of_b["postgresql.blocking.pids"] == (pid_a,)
    assert of_b["postgresql.blocking.lock.mode"] == "ShareLock"
    assert of_b["postgresql.blocking.lock.relation"] == "stock"
    assert of_b["otel_pgpool.blocking.traces"] == (f"{first.context.trace_id:032x}",)
    assert __file__ in of_b["otel_pgpool.blocking.checked_out_at"][0]
    assert of_b["otel_pgpool.blocking.states"] == ("idle in transaction",)
    assert of_c["postgresql.blocking.pids"] == (pid_b,)
    assert of_c["otel_pgpool.blocking.root.pid"] == pid_a
    assert of_c["otel_pgpool.blocking.root.trace"] == f"{first.context.trace_id:032x}"
    assert of_c["otel_pgpool.blocking.root.checked_out_at"] == of_b["otel_pgpool.blocking.checked_out_at"][0]
    assert of_c["otel_pgpool.blocking.root.application"] == of_b["otel_pgpool.blocking.applications"][0]
    assert of_c["otel_pgpool.blocking.root.state"] == "idle in transaction"
    links = {link.context.span_id: dict(link.attributes or {}) for link in third.links}
    assert links == {
        key: {"otel_pgpool.relation": "blocked_by"} for key in [first.context.span_id, second.context.span_id]
    }
    for span in (first, second, third):
        assert [event.name for event in span.events if event.name.startswith(("pool.l", "pool.d"))][:2] == [
            "pool.long_hold",
            "pool.database_state",
        ]
    assert f"waits for ShareLock on stock of pid {pid_a} (idle in transaction" in str(caught.value)
    assert caught.value.holders[0].database_state is not None
    record = next(each for each in signals.logged("database_state") if "head of the chain" in each.record.getMessage())
    assert record.span_context.trace_id == third.context.trace_id
    text = record.record.getMessage()
    assert f" s (pid {of_c['otel_pgpool.connection.pid']}) by thread '" in text
    assert f", checked out at {__file__}:" in text
    assert f"head of the chain: pid {pid_a} (idle in transaction" in text
    assert f"direct blocker: pid {pid_b} (active" in text
    assert "stock set number" not in signals.everything()
    assert psycopg2.extensions.parse_dsn(dsn)["password"] not in signals.everything()


def spans_with(signals: Signals, conn: connection) -> list[ReadableSpan]:
    with suppress(StopIteration):
        return [span_of(signals, conn)]
    return []


def is_waiting(dsn: str, conn: connection) -> bool:
    with closing(psycopg2.connect(dsn)) as other:
        sql = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        return bool(ask(other, sql, conn.info.backend_pid))


@pytest.mark.parametrize(
    ("statement", "state", "wait"),
    [
        ("select pg_sleep(60)", "active", "Timeout"),
        ("select 1", "idle in transaction", "Client"),
        ("rollback", "idle", "Client"),
    ],
)
def test_holds_that_wait_for_nobody(dsn: str, signals: Signals, statement: str, state: str, wait: str) -> None:
    """A long statement, an open transaction and a hold outside of one are told apart; none has a blocker."""
    with signals.pool(0, 1, dsn, long_hold=LONG) as pool:
        with holding(pool, statement) as conn:
            asked(signals, conn)
        attributes = attributes_of(signals.logged("database_state")[0])
    assert (attributes["postgresql.state"], attributes["postgresql.wait_event_type"]) == (state, wait)
    assert "postgresql.blocking.pids" not in attributes
    assert ("otel_pgpool.query.age" in attributes) == (state == "active")
    assert ("otel_pgpool.transaction.age" in attributes) == (state != "idle")


HOLDER = """
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otel_pgpool import ConnectionPool

trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
with ConnectionPool(0, 1, os.environ["DATABASE_URL"]) as pool, pool.connection() as conn:
    conn.cursor().execute("update stock set number = number - 1 where id = 1")
    print(f"{trace.get_current_span().get_span_context().trace_id:032x}", conn.info.backend_pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.usefixtures("stock")
def test_a_chain_over_two_processes(dsn: str, signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A is a checkout of another process that names its session by its trace: B and C lead to this trace."""
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", "trace")
    with (
        scripts.started(HOLDER, DATABASE_URL=dsn) as other,
        signals.pool(0, 2, dsn, long_hold=LONG) as pool,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        trace_id, pid = other.stdout.readline().split()
        with holding(pool, UPDATE) as b:
            until(lambda: is_waiting(dsn, b))
            with holding(pool, UPDATE) as c:
                until(lambda: any("postgresql.blocking.pids" in states(span)[-1] for span in spans_with(signals, c)))
                asked(signals, b, c)
                of_b, of_c = (states(span_of(signals, conn))[-1] for conn in (b, c))
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(PATIENCE) == 0
    assert of_b["postgresql.blocking.pids"] == (int(pid),)
    assert of_b["otel_pgpool.blocking.traces"] == (trace_id,)
    assert of_b["otel_pgpool.blocking.checked_out_at"] == ("",)
    assert of_b["otel_pgpool.blocking.applications"][0].startswith(f"00-{trace_id}-")
    assert of_c["postgresql.blocking.pids"] == (of_b["otel_pgpool.connection.pid"],)
    assert (of_c["otel_pgpool.blocking.root.pid"], of_c["otel_pgpool.blocking.root.trace"]) == (int(pid), trace_id)


@pytest.mark.usefixtures("stock")
def test_a_session_of_another_program(dsn: str, signals: Signals) -> None:
    """A blocker outside of this process is told by its process id, name and state, and has no call site."""
    with (
        closing(psycopg2.connect(dsn, application_name="nightly")) as other,
        signals.pool(0, 1, dsn, long_hold=LONG) as pool,
    ):
        run(other, UPDATE)
        with holding(pool, UPDATE) as conn:
            asked(signals, conn)
        attributes = attributes_of(signals.logged("database_state")[0])
    assert attributes["postgresql.blocking.pids"] == [other_pid := attributes["otel_pgpool.blocking.root.pid"]]
    assert attributes["otel_pgpool.blocking.applications"] == ["nightly"]
    assert attributes["otel_pgpool.blocking.checked_out_at"] == [""]
    assert attributes["otel_pgpool.blocking.root.application"] == "nightly"
    assert attributes["otel_pgpool.blocking.root.state"] == "idle in transaction"
    assert "otel_pgpool.blocking.root.checked_out_at" not in attributes
    assert other_pid
    assert signals.checkout().links == ()


@pytest.mark.usefixtures("stock")
def test_a_prepared_transaction(signals: Signals) -> None:
    """It blocks without a session: its process id is 0."""
    with ClonedServer(settings={"max_prepared_transactions": 2}) as server:
        with closing(psycopg2.connect(server.dsn)) as other:
            other.autocommit = True
            run(other, "create table stock (id int, number int)")
            run(other, "insert into stock values (1, 1)")
            other.autocommit = False
            other.tpc_begin("two")
            run(other, UPDATE)
            other.tpc_prepare()
        with signals.pool(0, 1, server.dsn, long_hold=LONG) as pool, holding(pool, UPDATE) as conn:
            asked(signals, conn)
        attributes = attributes_of(signals.logged("database_state")[0])
    assert attributes["postgresql.blocking.pids"] == [0]
    assert "a prepared transaction" in signals.logged("database_state")[0].record.getMessage()


def test_without_rights(own_server: PostgresServer, signals: Signals) -> None:
    """Of another user's session the process id, the name and that it blocks are told; of the own one, everything."""
    with closing(psycopg2.connect(own_server.dsn, application_name="nightly")) as other:
        run(other, "create table stock (id int primary key, number int)")
        run(other, "insert into stock values (1, 1)")
        run(other, "create role plain login password 'plain-secret'")
        run(other, "grant all on stock to plain")
        other.commit()
        run(other, UPDATE)
        options = {"user": "plain", "password": "plain-secret", "long_hold": LONG}
        with signals.pool(0, 1, own_server.dsn, **options) as pool, holding(pool, UPDATE) as conn:
            asked(signals, conn)
        attributes = attributes_of(signals.logged("database_state")[0])
        assert attributes["postgresql.state"] == "active"
        assert attributes["postgresql.blocking.pids"] == [other.info.backend_pid]
        assert attributes["otel_pgpool.blocking.applications"] == ["nightly"]
        assert attributes["otel_pgpool.blocking.states"] == [""]


def test_many_flagged_holds_are_one_query(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred holds that are long at the same time are asked for together, over one connection."""
    monkeypatch.setattr(server_queries, "QUERY_INTERVAL", 1.0)
    queries: list[int] = []
    original = monitor_connection.MonitorConnection.query

    def count(self: monitor_connection.MonitorConnection, statement: str) -> str:
        queries.append(statement.count(","))
        return original(self, statement)

    monkeypatch.setattr(monitor_connection.MonitorConnection, "query", count)
    with (
        ClonedServer(settings={"max_connections": 220}) as server,
        signals.pool(200, 200, server.dsn, long_hold=None, timeout=60) as pool,
    ):
        conns = [pool.getconn() for _ in range(200)]
        pool._parts.core.long_hold = 0.0
        pool._parts.thread.wake()
        until(lambda: len(signals.logged("database_state")) == 200)
        with closing(psycopg2.connect(server.dsn)) as other:
            assert ask(other, MONITORS) == 1
        assert len(queries) == 1
        for conn in conns:
            pool.putconn(conn)


@pytest.mark.parametrize(("value", "count"), [("off", 0), ("on", 1), ("all", 1)])
def test_the_variable(dsn: str, admin: connection, signals: Signals, value: str, count: int) -> None:
    """`off` asks nothing; the connection of the other values ends with the last pool."""
    with patch.dict(os.environ, OTEL_PGPOOL_DATABASE_STATE=value), signals.pool(0, 1, dsn, long_hold=LONG) as pool:
        with pool.connection():
            until(lambda: signals.logged("database_state" if count else "long_hold"))
            assert ask(admin, MONITORS) == count
        assert pool.stats().created == 1
    until(lambda: ask(admin, MONITORS) == 0)


def test_a_wrong_value(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    """It is refused with the variable's name and what is accepted."""
    monkeypatch.setenv("OTEL_PGPOOL_DATABASE_STATE", "yes")
    with pytest.raises(ValueError, match=r"OTEL_PGPOOL_DATABASE_STATE must be one of on, off, all, not 'yes'"):
        ConnectionPool(0, 1, dsn)


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("hostaddr", ["", "127.0.0.1,127.0.0.1"])
def test_one_of_several_hosts(dsn: str, signals: Signals, hostaddr: str) -> None:
    """The server that the pool has reached is asked, not the first of the list; blockers of this process are known."""
    port = psycopg2.extensions.parse_dsn(dsn)["port"]
    several = psycopg2.extensions.make_dsn(dsn, host="localhost,localhost", port=f"1,{port}", hostaddr=hostaddr or None)
    with signals.pool(0, 2, several, long_hold=LONG) as pool, holding(pool, UPDATE) as a:
        until(lambda: a.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS)
        with holding(pool, UPDATE) as b:
            asked(signals, b)
            until(lambda: [link for span in spans_with(signals, b) for link in span.links])
    assert unknown(signals) == []


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize(("blocker", "waiter"), [("name", "number"), ("socket", "number"), ("number", "socket")])
def test_two_ways_to_one_server(dsn: str, server: PostgresServer, signals: Signals, blocker: str, waiter: str) -> None:
    """A blocker is known by its port or its age, if its pool and the waiter's reach the server in different ways."""
    hosts = {"name": "localhost", "number": "127.0.0.1", "socket": server.socket_dir}
    first, second = (psycopg2.extensions.make_dsn(dsn, host=hosts[way]) for way in (blocker, waiter))
    with (
        signals.pool(0, 1, first, name="first", long_hold=None) as one,
        signals.pool(0, 1, second, name="second", long_hold=LONG) as two,
        holding(one, UPDATE) as a,
    ):
        until(lambda: a.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS)
        with holding(two, UPDATE) as b:
            asked(signals, b)
            attributes = states(span_of(signals, b))[-1]
    assert __file__ in attributes["otel_pgpool.blocking.checked_out_at"][0]


def test_two_databases(own_server: PostgresServer, signals: Signals) -> None:
    """Each has its monitor, which knows its tables, and leaves it with its last pool, so that it can be dropped."""
    with closing(psycopg2.connect(own_server.dsn)) as admin:
        admin.autocommit = True
        run(admin, "create database bill")
        bill = psycopg2.extensions.make_dsn(own_server.dsn, dbname="bill", client_encoding="latin1")
        with closing(psycopg2.connect(bill, client_encoding="utf8")) as other, other:
            run(other, 'create table "表" (id int primary key, n int); insert into "表" values (1, 1)')
            run(other, 'create view invoice as select * from "表"')
        with signals.pool(0, 1, own_server.dsn, name="shop", long_hold=LONG) as shop, shop.connection() as held:
            asked(signals, held)
            update = "update invoice set n = 2"
            with (
                signals.pool(0, 2, bill, name="bill", long_hold=LONG) as pool,
                holding(pool, update),
                holding(pool, update) as b,
            ):
                asked(signals, b)
                attributes = states(span_of(signals, b))[-1]
            run(admin, "drop database bill")
            assert "bill" not in str(ask(admin, "select array_agg(datname::text) from pg_database"))
    assert attributes["postgresql.blocking.lock.relation"] == '"表"'
    assert unknown(signals) == []


def test_the_last_slot(signals: Signals) -> None:
    """A monitor gives the server's last slot to a pool that needs it."""
    with (
        ClonedServer(settings={"max_connections": 4, "superuser_reserved_connections": 0}) as server,
        signals.pool(0, 4, server.dsn, long_hold=LONG, timeout=PATIENCE) as pool,
    ):
        conns = [pool.getconn() for _ in range(3)]
        asked(signals, *conns)
        conns.append(pool.getconn())
        for conn in conns:
            pool.putconn(conn)


def test_without_the_right_to_ask(own_server: PostgresServer, signals: Signals) -> None:
    """The record says which right is missing."""
    with closing(psycopg2.connect(own_server.dsn)) as other:
        run(other, "create role plain login password 'plain-secret'")
        run(other, "revoke select on pg_stat_activity from public")
        other.commit()
    options = {"user": "plain", "password": "plain-secret", "long_hold": LONG}
    with signals.pool(0, 1, own_server.dsn, **options) as pool, pool.connection():
        until(lambda: unknown(signals))
    assert "pg_monitor" in unknown(signals)[0]


def test_two_logins(own_server: PostgresServer, signals: Signals) -> None:
    """Each login sees its own sessions, so each asks for those of its pools."""
    with closing(psycopg2.connect(own_server.dsn)) as other:
        for role in ("one", "two"):
            run(other, f"create role {role} login password 'plain-secret'")
        other.commit()
        options = {"password": "plain-secret", "long_hold": LONG}
        with (
            signals.pool(0, 1, own_server.dsn, user="one", **options) as first,
            signals.pool(0, 1, own_server.dsn, user="two", **options) as second,
            first.connection() as a,
            second.connection() as b,
        ):
            asked(signals, a, b)
            assert ask(other, MONITORS) == 2
    assert {attributes_of(each)["postgresql.state"] for each in signals.logged("database_state")} == {"idle"}


SHADOWS = """
create function public.json_build_object(text, integer, text, integer, text, json) returns json language plpgsql as
  $$ begin raise exception 'called as %', current_user; end $$;
create function public.unnest(int[]) returns setof int language plpgsql as
  $$ begin raise exception 'called as %', current_user; end $$;
create function public.same(text, text) returns boolean language plpgsql as
  $$ begin raise exception 'called as %', current_user; end $$;
create operator public.= (leftarg = text, rightarg = text, function = public.same);
create schema shop;
create table shop."Stock" (id int primary key, number int);
insert into shop."Stock" values (1, 100);
alter role postgres set default_transaction_isolation = 'serializable';
alter role postgres set default_transaction_deferrable = 'on';
alter role postgres set search_path = 'public', 'pg_catalog';
"""


def test_functions_of_other_schemas_are_not_called(own_server: PostgresServer, signals: Signals) -> None:
    """Neither functions nor operators of the search path, nor the role's isolation level, change the query."""
    with closing(psycopg2.connect(own_server.dsn)) as other:
        run(other, SHADOWS)
        other.commit()
        update = UPDATE.replace("stock", 'shop."Stock"')
        with signals.pool(0, 2, own_server.dsn, long_hold=LONG) as pool, holding(pool, update):
            with holding(pool, update) as conn:
                asked(signals, conn)
            attributes = next(
                each
                for each in map(attributes_of, signals.logged("database_state"))
                if "postgresql.blocking.pids" in each
            )
    assert attributes["postgresql.blocking.lock.relation"] == 'shop."Stock"'
    assert unknown(signals) == []


def on_time(signals: Signals) -> bool:
    """Return whether each long hold was reported within 0.25 s of its threshold."""
    records = [attributes_of(record) for record in signals.logged("long_hold")]
    return bool(records) and all(each["otel_pgpool.held"] <= LONG + 0.25 for each in records)


def unknown(signals: Signals) -> list[str]:
    """Return the records that say why the state is unknown."""
    messages = [record.record.getMessage() for record in list(signals.records.all)]
    return [message for message in messages if "the database state of long holds is unknown" in message]


def test_a_full_server(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a free slot costs the answer, which is told once; later the answer comes."""
    monkeypatch.setattr(server_queries, "RETRY_AFTER", 0.2)
    with (
        ClonedServer(settings={"max_connections": 5, "superuser_reserved_connections": 0}) as server,
        signals.pool(0, 5, server.dsn, long_hold=LONG) as pool,
    ):
        conns = [pool.getconn() for _ in range(5)]
        until(lambda: unknown(signals))
        time.sleep(3 * 0.2)
        assert len(unknown(signals)) == 1
        assert "too many clients" in unknown(signals)[0]
        assert on_time(signals)
        assert signals.logged("database_state") == []
        assert signals.logged("outage_started") == []
        pool.putconn(conns.pop(), close=True)
        until(lambda: signals.logged("database_state"))
        pool.closeall()


def test_a_frozen_server(own_server: PostgresServer, signals: Signals) -> None:
    """A server that accepts no login costs the answer: neither the event, a checkout nor another pool waits for it."""
    with (
        signals.pool(2, 2, own_server.dsn, long_hold=LONG) as pool,
        frozen(own_server.pid),
    ):
        conn = pool.getconn()
        until(lambda: signals.logged("long_hold"))
        began = time.monotonic()
        with pool.connection() as other:
            assert ask(other, "select 1") == 1
        assert time.monotonic() - began < 0.25
        until(lambda: unknown(signals))
        pool.putconn(conn)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert on_time(signals)
    assert len(unknown(signals)) == 1


def test_a_fork_while_the_server_is_frozen(own_server: PostgresServer, signals: Signals) -> None:
    """A monitor that waits for a login delays the fork by a moment only."""
    with signals.pool(1, 1, own_server.dsn, long_hold=LONG) as pool, frozen(own_server.pid), pool.connection():
        until(lambda: any(thread.name == "otel_pgpool-monitor" for thread in threading.enumerate()))
        time.sleep(0.2)  # in the middle of a connect that takes two seconds
        began = time.monotonic()
        assert in_child(lambda: "forked") == "forked"
        assert time.monotonic() - began < 0.5


def test_a_fork_during_a_query(own_server: PostgresServer, signals: Signals) -> None:
    """The child keeps no descriptor of the parent's monitoring connection."""
    with signals.pool(0, 1, own_server.dsn, long_hold=LONG) as pool, pool.connection():
        until(lambda: signals.logged("database_state"))
        (watching,) = monitors._monitors.values()
        conn: Any = watching._queries._conn
        with frozen(conn.pid):
            until(lambda: deadlines(conn._conn))
            (cut,) = deadlines(conn._conn)
            duplicate = cut._duplicate
            assert in_child(lambda: (pool.stats(), duplicate.closed)[1]) == "True"
            assert not duplicate.closed


def deadlines(conn: connection) -> list[Any]:
    """Return the time limits of the calls of a connection that are in progress."""
    return [each for each in list(deadline._watch._deadlines) if each._conn is conn]


def test_a_close_that_does_not_wait(dsn: str, admin: connection, signals: Signals) -> None:
    """A hold that outlasts its pool starts no monitor, and the last one ends with the hold."""
    with signals.pool(0, 2, dsn, long_hold=LONG) as pool, pool.connection():
        until(lambda: signals.logged("database_state"))
        conn = pool.getconn()
        pool.close(0)
        count = len(signals.logged("long_hold"))
        until(lambda: len(signals.logged("long_hold")) > count)
        assert not wait_until(lambda: monitors._monitors, 0.3)
        pool.putconn(conn)
    until(lambda: ask(admin, MONITORS) == 0)
    assert monitors._monitors == {}


def test_a_monitor_that_is_killed(dsn: str, admin: connection, signals: Signals) -> None:
    """The next answer comes over a new connection, and nothing is told."""
    with signals.pool(0, 1, dsn, long_hold=LONG) as pool:
        with pool.connection():
            until(lambda: signals.logged("database_state"))
            pid = ask(admin, MONITORS.replace("count(*)", "pid"))
            kill(admin, [pid])
            until(lambda: len(signals.logged("database_state")) >= 3)
            assert ask(admin, MONITORS.replace("count(*)", "pid")) != pid
        assert unknown(signals) == []


def test_a_fork(dsn: str, admin: connection, signals: Signals) -> None:
    """A child neither uses nor ends the parent's monitoring connection, and asks over one of its own."""
    with signals.pool(0, 2, dsn, long_hold=LONG) as pool, pool.connection():
        until(lambda: signals.logged("database_state"))
        pid = ask(admin, MONITORS.replace("count(*)", "pid"))

        def hold() -> list[object]:
            before = len(signals.logged("database_state"))
            with pool.connection():
                until(lambda: len(signals.logged("database_state")) > before)
                with closing(psycopg2.connect(dsn)) as other:
                    count = ask(other, MONITORS)
            pool.close()
            return [count, [thread.name for thread in threading.enumerate()]]

        assert in_child(hold) == "[2, ['MainThread']]"
        count = len(signals.logged("database_state"))
        until(lambda: len(signals.logged("database_state")) > count)
        assert ask(admin, MONITORS.replace("count(*)", "pid")) == pid


def test_spans_in_the_mode_slow(dsn: str, signals: Signals) -> None:
    """A span that is made at the end has the events of its hold."""
    with signals.pool(0, 1, dsn, long_hold=LONG, telemetry={"spans": "slow"}) as pool, pool.connection():
        until(lambda: signals.logged("database_state"))
    assert states(signals.checkout())


def test_an_observer_without_the_method(dsn: str, admin: connection) -> None:
    """It is notified as before, and the server is not asked."""

    class Plain:
        def __getattr__(self, name: str) -> Any:
            if name == "database_state":
                raise AttributeError(name)
            if name == "held_long":
                return held.append
            return lambda *_args: None

    held: list[object] = []
    with ConnectionPool(0, 1, dsn, long_hold=LONG, observer=Plain()) as pool, pool.connection():
        until(lambda: held)
        assert ask(admin, MONITORS) == 0


def test_a_hold_that_ends_meanwhile(dsn: str, signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holds that end while the server is asked leave a complete span, and no complaint of the SDK."""
    monkeypatch.setattr(server_queries, "QUERY_INTERVAL", 0.01)
    monkeypatch.setattr(monitor, "GATHER", 0.0)
    with signals.pool(0, 4, dsn, long_hold=0.01) as pool, ExitStack() as stack:
        stop = threading.Event()
        stack.callback(stop.set)

        def work() -> None:
            while not stop.is_set():
                with pool.connection():
                    time.sleep(0.02)

        workers: list[Future[None]] = [in_thread(work) for _ in range(4)]
        until(lambda: len(signals.logged("database_state")) > 20)
        stop.set()
        for worker in workers:
            worker.result()
    assert signals.live() == []


def test_nothing_is_kept(dsn: str) -> None:
    """With the last pool, every monitor goes."""
    with Signals() as signals, signals.pool(0, 1, dsn, long_hold=LONG) as pool, pool.connection():
        until(lambda: signals.logged("database_state"))
        assert monitors._monitors
    assert monitors._monitors == {}
