"""A pool in the words of psycopg_pool: a block that opens it, sizes by other names, a ready-made check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.extensions import connection
from psycopg2.extras import RealDictConnection
from psycopg_pool.base import BasePool

from otel_pgpool import ConnectionFailed, ConnectionPool, PoolClosed, PoolTimeout
from tests.support.database import IDLE, IN_TRANSACTION, ask, kill, refused_port, wait_until_readable
from tests.support.pools import Gate, let_lie, make, pid_of_a_checkout
from tests.support.processes import in_child
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from otel_pgpool.demo.postgres import PostgresServer


# The block


def test_a_block_opens_the_pool(dsn: str) -> None:
    """Its `minconn` connections are there when the block begins; at its end the pool is closed."""
    pool = make(2, 3, dsn, open=False)
    assert pool.stats().status == "new"
    with pool as opened:
        assert opened is pool
        assert (pool.stats().status, pool.stats().idle) == ("ok", 2)
    assert pool.closed


def test_a_block_leaves_an_open_pool_as_it_is(dsn: str) -> None:
    """Opened before, by the constructor."""
    pool = make(1, 3, dsn)
    with pool:
        assert pool.stats().created == 1


def test_a_block_of_a_closed_pool(dsn: str) -> None:
    """A closed pool stays closed."""
    with make(1, 1, dsn) as pool:
        pass
    with pytest.raises(PoolClosed), pool:
        pytest.fail("the block has begun")


def test_a_block_while_the_server_is_down(server: Any) -> None:
    """The block does not begin; the pool can be opened later."""
    with refused_port() as port:
        pool = make(1, 1, host="127.0.0.1", port=port, open=False)
        with pytest.raises(psycopg2.OperationalError), pool:
            pytest.fail("the block has begun")
    assert (pool.closed, pool.stats().status) == (False, "new")


# Sizes


def test_sizes_by_the_other_names(dsn: str) -> None:
    """In the constructor, in `resize` and as properties."""
    with make(min_size=1, max_size=2, dsn=dsn) as pool:
        assert (pool.minconn, pool.maxconn) == (pool.min_size, pool.max_size) == (1, 2)
        assert pool.stats().idle == 1
        pool.resize(min_size=2, max_size=5)
        assert (pool.min_size, pool.max_size) == (2, 5)
        pool.resize(1, max_size=3)
        assert (pool.minconn, pool.maxconn) == (1, 3)


@pytest.mark.parametrize("sizes", [{"min_size": 3}, {"min_size": 3, "max_size": None}, {"minconn": 3, "maxconn": None}])
def test_resize_by_the_minimum_alone(dsn: str, sizes: dict[str, Any]) -> None:
    """The maximum is the same then, as in psycopg_pool, also if it becomes less."""
    with make(1, 5, dsn) as pool:
        pool.resize(**sizes)
        assert (pool.minconn, pool.maxconn) == (3, 3)
        pool.resize(2)
        assert (pool.minconn, pool.maxconn) == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "minconn must be given, or min_size"),
        ({"max_size": 5}, "minconn must be given, or min_size"),
        ({"minconn": 2, "min_size": 2}, "minconn and min_size are two names of one option"),
        ({"min_size": 0}, "max_size must be a whole number of at least 1"),
        ({"minconn": 2, "maxconn": None, "max_size": 4}, "maxconn and max_size are two names of one option"),
        ({"minconn": 2, "maxconn": 4, "max_size": 4}, "maxconn and max_size are two names of one option"),
        ({"min_size": 5, "max_size": 4}, r"min_size must be at most max_size \(4\), not 5"),
    ],
)
def test_a_bad_resize_changes_nothing(dsn: str, sizes: dict[str, int], message: str) -> None:
    """The error has the names that the program uses."""
    with make(1, 2, dsn) as pool:
        with pytest.raises(ValueError, match=f"^{message}"):
            pool.resize(**sizes)
        assert (pool.minconn, pool.maxconn) == (1, 2)


# Arguments of the connect


@pytest.mark.parametrize(
    "arguments",
    [
        {"connect_kwargs": {"options": "-c statement_timeout=1234"}},
        {"connect_kwargs": {"options": "-c statement_timeout=1234", "connection_factory": RealDictConnection}},
    ],
)
def test_connect_kwargs(dsn: str, arguments: dict[str, Any]) -> None:
    """They reach psycopg2, as its other arguments do."""
    with make(1, 1, dsn, application_name="habits", **arguments) as pool, pool.connection() as conn:
        with conn.cursor(cursor_factory=psycopg2.extensions.cursor) as cur:
            cur.execute("select current_setting('statement_timeout'), current_setting('application_name')")
            assert cur.fetchone() == ("1234ms", "habits")
        assert type(conn) is arguments["connect_kwargs"].get("connection_factory", connection)


def test_a_dsn_in_connect_kwargs(dsn: str) -> None:
    """Also the DSN may stand there."""
    with make(1, 1, connect_kwargs={"dsn": dsn}) as pool, pool.connection() as conn:
        assert ask(conn, "select 1") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hunter2", "connect_kwargs must be a mapping of arguments of psycopg2.connect or None, not of type str"),
        ([("password", "hunter2")], "connect_kwargs must be a mapping .* not of type list"),
        ({b"password": "hunter2"}, "connect_kwargs must have names as its keys, not one of type bytes"),
        ({"password": "hunter2"}, "'password' is given twice: as an argument and in connect_kwargs"),
        ({"dsn": "password=hunter2"}, "'dsn' is given twice"),
        ({"timeout": "hunter2"}, "'timeout' is no option of ConnectionPool and no connection parameter of libpq"),
    ],
)
def test_bad_connect_kwargs(value: Any, message: str) -> None:
    """Refused before anything connects, and never shown, because a password may be among them."""
    connects = Gate(free=9)
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        make(1, 1, "host=nowhere.invalid", connects, password="hunter2", connect_kwargs=value)
    assert "hunter2" not in str(caught.value)
    assert connects.calls == 0


# Connection classes


def test_the_class_takes_its_connection_class() -> None:
    """`ConnectionPool[...]` is an annotation, a base class and a call at run time, on Python 3.10 too."""

    class Shop(connection):
        pass

    class ShopPool(ConnectionPool[Shop]):
        pass

    with ConnectionPool[Shop](0, 1, connection_factory=Shop, open=False, observer=None) as pool:
        assert isinstance(pool, ConnectionPool)
    with ShopPool(0, 1, connection_factory=Shop, open=False, observer=None) as pool:
        assert isinstance(pool, ConnectionPool)


def test_connection_factory_decides(dsn: str) -> None:
    """By position, as for psycopg2's pools, or by name."""
    with make(1, 1, dsn, RealDictConnection) as pool, pool.connection() as conn:
        assert type(conn) is RealDictConnection
    with make(1, 1, dsn, connection_factory=RealDictConnection) as pool:
        assert type(pool.getconn()) is RealDictConnection


# The check


def test_the_ready_made_check(dsn: str, admin: Connection) -> None:
    """A dead connection is replaced before the hand-over; a live one stays."""
    with make(1, 1, dsn, check=ConnectionPool.check_connection) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        let_lie(pool)
        with pool.connection() as conn:
            assert (conn.info.backend_pid, conn.get_transaction_status()) == (pid, IDLE)
        kill(admin, [pid])
        let_lie(pool)
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
        pool.check()


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_check_begins_no_transaction(dsn: str, autocommit: bool) -> None:
    """A transaction in progress goes on; settings are as before."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = autocommit
    assert ConnectionPool.check_connection(conn) is None
    assert (conn.get_transaction_status(), conn.autocommit) == (IDLE, autocommit)
    conn.autocommit = False
    ask(conn, "select 1")
    ConnectionPool.check_connection(conn)
    assert conn.get_transaction_status() == IN_TRANSACTION
    conn.close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_check_raises(dsn: str, admin: Connection, autocommit: bool) -> None:
    """For a session that has ended, and for a closed connection."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = autocommit
    kill(admin, [conn.info.backend_pid])
    wait_until_readable(conn)
    with pytest.raises(psycopg2.Error):
        ConnectionPool.check_connection(conn)
    conn.close()
    with pytest.raises(psycopg2.Error):
        ConnectionPool.check_connection(conn)


# The figures

LEVELS = {"pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting"}


def test_stats_have_the_names_of_psycopg_pool(dsn: str) -> None:
    """Each of its names, and whole numbers."""
    names = {value for name, value in vars(BasePool).items() if name.isupper() and isinstance(value, str)}
    with make(1, 2, dsn, open=False) as pool:
        stats = pool.get_stats()
    assert set(stats) == names
    assert {type(value) for value in stats.values()} == {int}


def test_stats_of_checkouts(dsn: str) -> None:
    """Levels now; waits, failures and holds in sum."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            ask(conn, "select pg_sleep(0.02)")
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.02)
            waiter = in_thread(pool.getconn)
            assert wait_until(lambda: pool.stats().waiting == 1)
            stats = pool.get_stats()
            assert [stats[name] for name in ("pool_min", "pool_max", "pool_size", "pool_available")] == [1, 1, 1, 0]
            assert (stats["requests_waiting"], stats["requests_num"], stats["usage_ms"]) == (1, 3, 0)
        pool.putconn(waiter.result(PATIENCE))
        stats = pool.get_stats()
        assert [stats[f"requests_{name}"] for name in ("num", "queued", "errors", "waiting")] == [3, 2, 1, 0]
        assert 20 <= stats["requests_wait_ms"] < 1000 * PATIENCE
        assert 20 <= stats["usage_ms"] < 1000 * PATIENCE


def test_stats_of_connections(own_server: PostgresServer) -> None:
    """How many were opened, returned bad and found dead, and how many connects failed."""
    with make(1, 2, own_server.dsn, max_attempts=1) as pool:
        assert pool.get_stats()["connections_num"] == 1
        with pytest.raises(psycopg2.Error), pool.connection() as conn:
            ask(conn, "select pg_terminate_backend(pg_backend_pid())")
        assert wait_until(lambda: pool.get_stats()["connections_num"] == 2)
        assert [pool.get_stats()[name] for name in ("returns_bad", "connections_lost")] == [1, 0]
        pool.putconn(pool.getconn(), close=True)
        assert pool.get_stats()["returns_bad"] == 2
        assert wait_until(lambda: pool.get_stats()["pool_available"] == 1)
        own_server.stop()
        let_lie(pool)
        with pytest.raises(ConnectionFailed):
            pool.getconn()
        stats = pool.get_stats()
        assert (stats["connections_lost"], stats["returns_bad"], stats["requests_errors"]) == (1, 2, 1)
        assert stats["connections_num"] >= 3 + stats["connections_errors"]


def test_the_time_of_connects(dsn: str) -> None:
    """It includes that of `credentials`."""

    def credentials() -> dict[str, str]:
        time.sleep(0.02)
        return {}

    with make(2, 2, dsn, credentials=credentials) as pool:
        assert 40 <= pool.get_stats()["connections_ms"] < 1000 * PATIENCE


def test_stats_of_checks(dsn: str, admin: Connection) -> None:
    """A connection that `check()` discards is lost."""
    with make(2, 2, dsn) as pool:
        kill(admin, [pid_of_a_checkout(pool)])
        pool.check()
        assert pool.get_stats()["connections_lost"] == 1


def test_popped_stats_begin_anew(dsn: str) -> None:
    """The totals do, and the levels do not; the pool's own totals, which telemetry reports, go on."""
    with make(1, 2, dsn) as pool:
        pid_of_a_checkout(pool)
        popped = pool.pop_stats()
        assert (popped["requests_num"], popped["connections_num"]) == (1, 1)
        after = pool.get_stats()
        assert {name for name, value in after.items() if value} <= LEVELS
        assert {name: after[name] for name in LEVELS} == {name: popped[name] for name in LEVELS}
        pid_of_a_checkout(pool)
        assert pool.get_stats()["requests_num"] == pool.pop_stats()["requests_num"] == 1
        assert pool.pop_stats()["requests_num"] == 0
        assert (sum(pool.stats().checkouts.values()), pool.stats().created) == (2, 1)


def test_each_checkout_is_popped_once(dsn: str) -> None:
    """However many threads pop, and whatever happens meanwhile, no figure is lost, counted twice or negative."""
    with make(1, 2, dsn) as pool:
        users = [in_thread(lambda: [pid_of_a_checkout(pool) for _ in range(50)]) for _ in range(4)]
        popped: list[dict[str, int]] = []
        poppers = [in_thread(lambda: [popped.append(pool.pop_stats()) for _ in range(50)]) for _ in range(2)]
        for each in (*users, *poppers):
            each.result(PATIENCE)
        popped.append(pool.pop_stats())
        assert sum(stats["requests_num"] for stats in popped) == 4 * 50
        assert sum(stats["requests_queued"] for stats in popped) == pool.stats().queued
        assert min(min(stats.values()) for stats in popped) >= 0


# Reconnecting


def test_reconnect_failed(own_server: PostgresServer) -> None:
    """The program is called once in each outage, and the pool goes on: it is full again when the server is back."""
    called: list[ConnectionPool] = []

    def note(pool: ConnectionPool) -> None:
        called.append(pool)
        raise RuntimeError

    with make(1, 2, own_server.dsn, reconnect_timeout=0.2, reconnect_failed=note) as pool:
        own_server.stop()
        pool.check()
        assert wait_until(lambda: called)
        assert wait_until(lambda: pool.get_stats()["connections_errors"] > 4)
        assert called == [pool]
        own_server.start()
        pool.wait(PATIENCE)
        assert pool.stats().status == "ok"
        own_server.stop()
        pool.check()
        assert wait_until(lambda: called == [pool, pool])


def test_reconnect_failed_may_close_the_pool(own_server: PostgresServer) -> None:
    """Waiters fail at once, and no thread is left."""
    with make(1, 1, own_server.dsn, reconnect_timeout=0, reconnect_failed=ConnectionPool.close) as pool:
        own_server.stop()
        let_lie(pool)
        with pytest.raises(PoolClosed):
            pid_of_a_checkout(pool)
        assert pool.closed


def test_reconnect_failed_in_a_child(server: PostgresServer) -> None:
    """A forked child has an outage of its own, and calls with the same pool."""
    called: list[ConnectionPool] = []
    with refused_port() as port:
        options = {"reconnect_timeout": 0, "reconnect_failed": called.append, "max_attempts": 1}
        with make(0, 1, host="127.0.0.1", port=port, **options) as pool:
            with pytest.raises(ConnectionFailed):
                pool.getconn()
            assert wait_until(lambda: called == [pool])
            called.clear()

            def use() -> bool:
                with pytest.raises(ConnectionFailed):
                    pool.getconn()
                return wait_until(lambda: called == [pool])

            assert in_child(use) == "True"
