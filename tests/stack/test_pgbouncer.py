"""The pool behind a real PgBouncer, in session and in transaction mode: what docs/operations.md says of it."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg2
import pytest
from opentelemetry import trace

from otel_pgpool import ConnectionPool, reset_session
from tests.support.external_programs import environment, find_program
from tests.support.internals import core_of
from tests.support.pgbouncer import PgBouncer
from tests.support.servers import ClonedServer
from tests.support.telemetry import Signals
from tests.support.waiting import in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import Span
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer

    Bouncing = Callable[..., PgBouncer]

MODES = ("session", "transaction")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with ClonedServer() as server:
        yield server


@pytest.fixture
def bouncing(tmp_path: Path, server: PostgresServer) -> Iterator[Bouncing]:
    """Start one: ``bouncing(mode, setting=value)``."""
    started: list[PgBouncer] = []

    def start(mode: str, **settings: object) -> PgBouncer:
        bouncer = PgBouncer(tmp_path, server, mode, **settings)
        bouncer.start()
        started.append(bouncer)
        return bouncer

    yield start
    for bouncer in started:
        bouncer.kill()


@contextmanager
def pool_of(bouncer: PgBouncer, minconn: int, maxconn: int, **options: object) -> Iterator[ConnectionPool]:
    with ConnectionPool(minconn, maxconn, bouncer.dsn, **options) as pool:
        yield pool


def ask(conn: connection, statement: str) -> object:
    with conn.cursor() as cur:
        cur.execute(statement)
        return cur.fetchone()[0]


@pytest.mark.parametrize("mode", MODES)
def test_checkouts_commit_and_roll_back(bouncing: Bouncing, mode: str) -> None:
    """Blocks commit and roll back as without it, from more threads than either pool has connections."""
    with pool_of(bouncing(mode), 2, 2) as pool:
        with pool.connection() as conn, conn.cursor() as cur:
            cur.execute("drop table if exists count; create table count (n int); insert into count values (0)")

        def raise_the_count() -> None:
            for number in range(10):
                with suppress(ZeroDivisionError), pool.connection() as conn, conn.cursor() as cur:
                    cur.execute("update count set n = n + 1")
                    _ = 1 / (number % 2)

        threads = [threading.Thread(target=raise_the_count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.connection() as conn:
            assert ask(conn, "select n from count") == 40
        assert pool.stats().discarded == {}


def test_transaction_mode_needs_no_server_for_an_idle_connection(bouncing: Bouncing) -> None:
    """Connections that the pool keeps ready cost PostgreSQL nothing: ten work through two."""
    bouncer = bouncing("transaction")
    with pool_of(bouncer, 10, 10) as pool:
        for _ in range(20):
            with pool.connection() as conn:
                ask(conn, "select 1")
        assert pool.stats().idle == 10
        assert bouncer.servers_used() <= 2


def test_session_mode_holds_a_server_for_each_connection(bouncing: Bouncing) -> None:
    """A third connection waits in PgBouncer, whose limit is two, and is ended when `query_wait_timeout` is over."""
    bouncer = bouncing("session")
    with pool_of(bouncer, 0, 3) as pool:
        with pool.connection() as first, pool.connection() as second:
            ask(first, "select 1")
            ask(second, "select 1")
            bouncer.command("set query_wait_timeout = 1")  # not before: those two may have waited for a second
            with pytest.raises(psycopg2.OperationalError), pool.connection() as third:
                ask(third, "select 1")
        assert pool.stats().discarded == {"broken": 1}
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


def test_transaction_mode_shares_the_session(bouncing: Bouncing) -> None:
    """What one client sets for its session holds for the server connection, whoever has it next."""

    def configure(conn: connection) -> None:
        ask(conn, f"select set_config('app.name', '{conn.fileno()}', false)")

    with pool_of(bouncing("transaction", default_pool_size=1), 2, 2, configure=configure) as pool:
        lent = [pool.getconn(), pool.getconn()]
        seen = []
        for conn in lent:
            seen.append(ask(conn, "select current_setting('app.name')"))
            conn.rollback()
            pool.putconn(conn)
        assert seen[0] == seen[1]  # both have what one of them set last
        assert seen[0] in [str(conn.fileno()) for conn in lent]


def test_reset_session_in_session_mode(bouncing: Bouncing) -> None:
    """The next borrower finds what `configure` set, and nothing of the last one, on the same connection."""

    def configure(conn: connection) -> None:
        conn.cursor().execute("set search_path to archive")

    with pool_of(bouncing("session"), 1, 1, configure=configure, reset=reset_session) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert (ask(conn, "show search_path"), ask(conn, "show work_mem")) == ("archive", "4MB")
                conn.cursor().execute("set search_path to public; set work_mem to '8MB'")
        assert pool.stats().created == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_restarted_pgbouncer_costs_no_error(bouncing: Bouncing, mode: str) -> None:
    """Its death is seen on the idle sockets, and new connections are made, before a caller gets one."""
    bouncer = bouncing(mode)
    with pool_of(bouncer, 2, 2) as pool:
        with pool.connection() as conn:
            ask(conn, "select 1")
        bouncer.kill()
        bouncer.start()
        time.sleep(0.06)  # a connection used within the last 50 ms is not looked at
        for _ in range(4):
            with pool.connection() as conn:
                assert ask(conn, "select 1") == 1


@pytest.mark.parametrize("mode", MODES)
def test_connections_that_pgbouncer_closes_for_idleness_are_replaced(bouncing: Bouncing, mode: str) -> None:
    """`client_idle_timeout` ends idle clients: the next caller gets a new connection, and no error."""
    bouncer = bouncing(mode, client_idle_timeout=1)
    with pool_of(bouncer, 2, 2) as pool:
        assert wait_until(lambda: all(is_ended(slot.conn) for slot in tuple(core_of(pool).idle)), timeout=10)
        bouncer.command("set client_idle_timeout = 0")  # the next one may lie for a second before it is asked
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


def is_ended(conn: connection) -> bool:
    """Whether the other side has closed it; what is there to read stays there."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        sock.setblocking(False)
        try:
            return bool(sock.recv(1, socket.MSG_PEEK)) or True
        except BlockingIOError:
            return False


@pytest.mark.parametrize("mode", MODES)
def test_the_pid_is_pgbouncers(bouncing: Bouncing, mode: str) -> None:
    """`connection.pid` is what PgBouncer told the client, and no process of PostgreSQL's."""
    with pool_of(bouncing(mode), 1, 1) as pool, pool.connection() as conn:
        assert ask(conn, "select pg_backend_pid()") != pool.holders()[0].pid


def session_names(server: PostgresServer) -> set[str]:
    """Return the names of PgBouncer's connections to PostgreSQL."""
    with closing(psycopg2.connect(server.dsn)) as conn:
        return set(
            ask(
                conn,
                "select coalesce(array_agg(application_name), '{}') from pg_stat_activity "
                "where backend_type = 'client backend' and pid <> pg_backend_pid()",
            )
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_session_has_the_name_of_service_and_pool(
    bouncing: Bouncing, server: PostgresServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PgBouncer gives a server connection the name of the client that uses it."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with pool_of(bouncing(mode), 1, 1, name="orders", observer=None) as pool, pool.connection() as conn:
        ask(conn, "select 1")
        assert "shop/orders" in session_names(server)


@pytest.mark.parametrize("mode", MODES)
def test_a_session_has_the_name_of_the_trace(
    bouncing: Bouncing, server: PostgresServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both modes, while the checkout's transaction is open, and not after the release; the next one has its own."""
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", "trace")
    bouncer = bouncing(mode, default_pool_size=1)
    with Signals() as signals, signals.pool(1, 1, bouncer.dsn) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                ask(conn, "select 1")
                span = trace.get_current_span().get_span_context()
                name = f"00-{span.trace_id:032x}-{span.span_id:016x}-01"
                assert wait_until(lambda name=name: session_names(server) == {name})  # without those of a former one
            assert wait_until(lambda: session_names(server) == {"unknown_service:python/shop"})
        assert pool.stats().created == 1


def test_transaction_mode_gives_each_client_its_own_name(
    bouncing: Bouncing, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkouts that share one server connection, one after the other, have their own traces there."""
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", "trace")
    bouncer = bouncing("transaction", default_pool_size=1)
    with Signals() as signals, signals.pool(2, 2, bouncer.dsn) as pool, pool.connection() as one:
        with pool.connection() as other:
            for conn in (one, other):
                with conn:
                    (name,) = session_names(server) if ask(conn, "select 1") else ()
                    assert name == ask(conn, "show application_name")
                    assert name == conn.get_parameter_status("application_name")
        assert one.get_parameter_status("application_name").startswith("00-")


def version_of(program: Path) -> tuple[int, ...]:
    """Return the version of a PgBouncer."""
    done = subprocess.run([program, "--version"], env=environment(), capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()[1].split(".")))


@pytest.mark.parametrize("mode", MODES)
def test_a_wait_in_pgbouncer_is_told(bouncing: Bouncing, signals: Signals, mode: str) -> None:
    """From 1.25 on, who waited there for longer than `query_wait_notify` has a record and an attribute."""
    if version_of(find_program("pgbouncer")) < (1, 25):
        pytest.skip("PgBouncer tells its clients of a wait from 1.25 on")
    bouncer = bouncing(mode, default_pool_size=1, query_wait_notify=1)
    first = psycopg2.connect(bouncer.dsn)
    ask(first, "select 1")  # and its transaction stays open
    end = threading.Timer(2.5, first.close)  # PgBouncer tells once more than a whole second has passed
    end.start()
    with signals.pool(1, 1, bouncer.dsn) as pool:
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
    end.join()
    told = [dict(span.attributes or {}).get("otel_pgpool.proxy_wait") for span in signals.named("pool.checkout")]
    assert told == [True, None]
    assert len(signals.logged("proxy_wait")) == 1


@pytest.mark.parametrize("mode", MODES)
def test_sessions_that_have_no_names(bouncing: Bouncing, mode: str) -> None:
    """Without the names of traces nothing is known of long holds, which is told once, and costs clients nothing."""
    bouncer = bouncing(mode, query_wait_timeout=5)
    with Signals() as signals, signals.pool(2, 2, bouncer.dsn, long_hold=0.2) as pool, pool.connection() as first:
        with first.cursor() as cursor:
            cursor.execute("select 1")
        told = "OTEL_PGPOOL_APPLICATION_NAME=trace shows those of sampled checkouts"
        assert wait_until(lambda: [record for record in signals.records.all if told in record.record.getMessage()])
        with pool.connection() as second, second.cursor() as cursor:
            cursor.execute("select 1")  # needs the last connection of PgBouncer to the server
        assert not signals.logged("database_state")


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_of_lock_waits(bouncing: Bouncing, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With traces as names, the sessions behind PgBouncer are found: each waiter leads to the head by its links."""
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", "trace")
    bouncer = bouncing(mode, default_pool_size=5)
    with Signals() as signals, signals.pool(0, 3, bouncer.dsn, long_hold=0.2) as pool:
        with pool.connection() as conn:
            run(conn, "create table stock (id int)")
            run(conn, "insert into stock values (1)")
        conns, workers, spans = [], [], []
        for _ in range(3):
            before = [id(span) for span in signals.live()]
            conns.append(pool.getconn())
            spans += [span for span in signals.live() if id(span) not in before]
            workers.append(in_thread(run, conns[-1], "update stock set id = id"))
            assert wait_until(lambda: is_running(bouncer, len(workers) - 1))
        first, second, third = spans
        assert wait_until(
            lambda: any(event.name == "pool.database_state" and link_ids(third) for event in third.events)
        )
        state = next(event.attributes for event in third.events if event.name == "pool.database_state") or {}
        assert link_ids(third) == {first.get_span_context().span_id, second.get_span_context().span_id}
        assert link_ids(second) == {first.get_span_context().span_id}
        assert state["otel_pgpool.blocking.root.trace"] == f"{first.get_span_context().trace_id:032x}"
        for conn, worker in zip(conns, workers, strict=True):
            worker.result()
            pool.putconn(conn)
        with pool.connection() as conn:
            run(conn, "drop table stock")


def run(conn: connection, statement: str) -> None:
    """Run a statement that returns no rows."""
    with conn.cursor() as cursor:
        cursor.execute(statement)


def is_running(bouncer: PgBouncer, waiting: int) -> bool:
    """Return whether this number of sessions waits for a lock, and one is idle in its transaction."""
    with closing(psycopg2.connect(bouncer.dsn)) as conn:
        sql = (
            "select count(*) filter (where wait_event_type = 'Lock'), "
            "count(*) filter (where state = 'idle in transaction') from pg_stat_activity"
        )
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone() == (waiting, 1)


def link_ids(span: Span) -> set[int]:
    """Return the ids of the spans that a span in progress has links to."""
    return {link.context.span_id for link in span.links}
