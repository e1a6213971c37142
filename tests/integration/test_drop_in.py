"""Code written for ``psycopg2.pool.ThreadedConnectionPool`` runs with the import changed: the same body on both."""

from __future__ import annotations

import gc
import inspect
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extras
import psycopg2.pool
import pytest
from psycopg2 import extensions

from otel_pgpool import ConnectionPool, PoolError, PoolTimeout
from tests.support.database import IDLE, ask, kill, refused_port
from tests.support.pools import make
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.demo.postgres import PostgresServer


class MyConnection(extensions.connection):
    pass


class MyCursor(extensions.cursor):
    pass


@pytest.fixture(params=["stock", "ours"])
def pool_class(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return psycopg2.pool.ThreadedConnectionPool if request.param == "stock" else ConnectionPool


@pytest.fixture
def new_pool(pool_class: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Make pools of the class, and close them in the end."""
    with ExitStack() as stack:

        def make_one(*args: Any, **kwargs: Any) -> Any:
            pool = pool_class(*args, **kwargs)
            stack.callback(lambda: pool.closed or pool.closeall())
            return pool

        yield make_one


def test_signatures() -> None:
    """What the stock pool takes by position or keyword, ours takes too."""
    for method in ("getconn", "putconn", "closeall"):
        stock = inspect.signature(getattr(psycopg2.pool.ThreadedConnectionPool, method)).parameters
        ours = inspect.signature(getattr(ConnectionPool, method)).parameters
        positional = [parameter for parameter in ours.values() if parameter.kind is not parameter.KEYWORD_ONLY]
        assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in stock.values()]


def test_life_of_a_connection(new_pool: Callable[..., Any], dsn: str) -> None:
    """Check out, work, give back, check out again: the same connection, without a transaction."""
    pool = new_pool(1, 2, dsn)
    conn = pool.getconn()
    assert ask(conn, "select 1") == 1
    pid = conn.info.backend_pid
    pool.putconn(conn)
    again = pool.getconn()
    assert again.info.backend_pid == pid
    assert again.info.transaction_status == IDLE
    pool.putconn(again)


def test_putconn_rolls_back(new_pool: Callable[..., Any], dsn: str) -> None:
    """What was not committed is gone."""
    pool = new_pool(1, 1, dsn)
    conn = pool.getconn()
    ask(conn, "create table never_kept ()")
    pool.putconn(conn)
    conn = pool.getconn()
    assert ask(conn, "select to_regclass('never_kept')") is None
    pool.putconn(conn)


def test_minconn_is_opened_in_the_constructor(
    pool_class: Callable[..., Any], new_pool: Callable[..., Any], dsn: str, admin: Any
) -> None:
    """The connections are there when the constructor returns."""
    name = f"eager {pool_class.__name__}"  # sessions of the other class may not have ended yet
    new_pool(3, 5, dsn, application_name=name)
    assert ask(admin, "select count(*) from pg_stat_activity where application_name = %s", name) == 3


def test_properties(new_pool: Callable[..., Any], dsn: str) -> None:
    """`minconn`, `maxconn`, `closed`; the limits may be named."""
    pool = new_pool(minconn=1, maxconn=4, dsn=dsn)
    assert (pool.minconn, pool.maxconn) == (1, 4)
    assert not pool.closed
    pool.closeall()
    assert pool.closed


@pytest.mark.parametrize("key", ["mine", 0, "", ("a", 1), False])
def test_getconn_by_key_twice(new_pool: Callable[..., Any], dsn: str, key: object) -> None:
    """A key's connection is lent once, however often it is asked for, and one return ends it."""
    pool = new_pool(1, 2, dsn)
    conn = pool.getconn(key)
    assert pool.getconn(key) is conn
    assert pool.getconn(key=key) is conn
    other = pool.getconn("other")
    assert other is not conn
    pool.putconn(other, "other")
    pool.putconn(conn, key)
    with pytest.raises(psycopg2.pool.PoolError):
        pool.putconn(conn)


def test_putconn_without_its_key(new_pool: Callable[..., Any], dsn: str) -> None:
    """A keyed connection may be given back without the key, which is free then."""
    pool = new_pool(1, 1, dsn)
    conn = pool.getconn("mine")
    pool.putconn(conn)
    again = pool.getconn("another")
    assert again is conn
    pool.putconn(again, key="another")


def test_keyed_connection_is_kept_by_the_pool(new_pool: Callable[..., Any], dsn: str) -> None:
    """A program that works by keys need not keep the object: its transaction goes on at the next use."""
    pool = new_pool(1, 1, dsn)
    ask(pool.getconn("request"), "create temporary table kept_by_key ()")
    gc.collect()
    assert ask(pool.getconn("request"), "select to_regclass('kept_by_key')") == "kept_by_key"
    pool.putconn(pool.getconn("request"), "request")


def test_unhashable_key(new_pool: Callable[..., Any], dsn: str) -> None:
    """A key that cannot be one is a TypeError and costs no connection."""
    pool = new_pool(1, 1, dsn)
    with pytest.raises(TypeError):
        pool.getconn([])
    pool.putconn(pool.getconn())


@pytest.mark.parametrize("how", ["position", "keyword"])
def test_putconn_close(new_pool: Callable[..., Any], dsn: str, how: str) -> None:
    """`putconn(close=True)` closes it, and the next is another."""
    pool = new_pool(1, 1, dsn)
    conn = pool.getconn()
    pid = conn.info.backend_pid
    if how == "position":
        pool.putconn(conn, None, True)
    else:
        pool.putconn(conn, close=True)
    assert conn.closed
    other = pool.getconn()
    assert other.info.backend_pid != pid
    pool.putconn(other)


def test_putconn_of_a_closed_connection(new_pool: Callable[..., Any], dsn: str) -> None:
    """A program may close a connection before it gives it back."""
    pool = new_pool(1, 1, dsn)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    other = pool.getconn()
    assert ask(other, "select 1") == 1
    pool.putconn(other)


def test_putconn_of_a_stranger(new_pool: Callable[..., Any], dsn: str) -> None:
    """A connection that is not the pool's is refused and left as it is."""
    pool = new_pool(1, 1, dsn)
    stranger = psycopg2.connect(dsn)
    with pytest.raises(psycopg2.pool.PoolError, match="unkeyed"):
        pool.putconn(stranger)
    assert ask(stranger, "select 1") == 1
    stranger.close()


def test_putconn_of_another_pools(new_pool: Callable[..., Any], dsn: str) -> None:
    """So is one of another pool, which keeps it."""
    pool, other = new_pool(1, 1, dsn), new_pool(1, 1, dsn)
    conn = other.getconn()
    with pytest.raises(psycopg2.pool.PoolError):
        pool.putconn(conn)
    other.putconn(conn)


def test_double_putconn(new_pool: Callable[..., Any], dsn: str) -> None:
    """A second return is refused, and the connection is not in the pool twice."""
    pool = new_pool(2, 2, dsn)
    conn = pool.getconn()
    pool.putconn(conn)
    with pytest.raises(psycopg2.pool.PoolError):
        pool.putconn(conn)
    first, second = pool.getconn(), pool.getconn()
    assert first is not second
    pool.putconn(first)
    pool.putconn(second)


def test_closeall_closes_the_lent_too(new_pool: Callable[..., Any], dsn: str) -> None:
    """Every connection is closed; what is asked of the pool afterwards is a PoolError."""
    pool = new_pool(2, 2, dsn)
    held = pool.getconn()
    pool.closeall()
    assert held.closed
    with pytest.raises(psycopg2.pool.PoolError):
        pool.getconn()
    with pytest.raises(psycopg2.pool.PoolError):
        pool.closeall()


def test_connections_own_block(new_pool: Callable[..., Any], dsn: str, admin: Any) -> None:
    """``with conn`` commits and keeps the connection out."""
    pool = new_pool(1, 1, dsn)
    conn = pool.getconn()
    with conn, conn.cursor() as cur:
        cur.execute("create table drop_in (n int)")
    assert ask(admin, "select to_regclass('drop_in')") == "drop_in"
    assert not conn.closed
    ask(conn, "drop table drop_in")
    conn.commit()
    pool.putconn(conn)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("{dsn}",), {}),
        ((), {"dsn": "{dsn}"}),
        ((), {"host": "{host}", "port": "{port}", "user": "postgres", "password": "{password}", "dbname": "postgres"}),
        (
            (),
            {"host": "{host}", "port": "{port}", "user": "postgres", "password": "{password}", "database": "postgres"},
        ),
        (("host={host} port={port} user=postgres password={password} dbname=postgres",), {}),
        (("{dsn}",), {"application_name": "shop"}),
        (("host={host} port={port} password={password}",), {"user": "postgres", "dbname": "postgres"}),
        (("{dsn}",), {"options": "-c statement_timeout=12345"}),
    ],
)
def test_ways_to_say_where(
    new_pool: Callable[..., Any], server: PostgresServer, args: tuple[str, ...], kwargs: dict[str, str]
) -> None:
    """A URL, a key=value string, keywords, and mixtures of them."""
    places = extensions.parse_dsn(server.dsn) | {"dsn": server.dsn}
    options = {key: value.format(**places) for key, value in kwargs.items()}
    pool = new_pool(1, 1, *(arg.format(**places) for arg in args), **options)
    conn = pool.getconn()
    assert ask(conn, "select current_database()::text") == "postgres"
    if "application_name" in options:
        assert ask(conn, "show application_name") == "shop"
    if "options" in options:
        assert ask(conn, "show statement_timeout") == "12345ms"
    pool.putconn(conn)


@pytest.mark.parametrize("how", ["position", "keyword"])
def test_factories(new_pool: Callable[..., Any], dsn: str, how: str) -> None:
    """Classes of the program's own for connections and cursors."""
    if how == "position":
        pool = new_pool(1, 1, dsn, MyConnection, MyCursor)
    else:
        pool = new_pool(1, 1, dsn, connection_factory=MyConnection, cursor_factory=MyCursor)
    conn = pool.getconn()
    assert type(conn) is MyConnection
    with conn.cursor() as cur:
        assert type(cur) is MyCursor
    pool.putconn(conn)


def test_dict_cursors(new_pool: Callable[..., Any], dsn: str) -> None:
    """psycopg2.extras' cursors answer as rows with names, in the pool's own statements' way too."""
    pool = new_pool(1, 1, dsn, cursor_factory=psycopg2.extras.RealDictCursor)
    conn = pool.getconn()
    with conn.cursor() as cur:
        cur.execute("select 1 as one")
        assert dict(cur.fetchone()) == {"one": 1}
    pool.putconn(conn)


def test_failing_connect_is_raised_by_the_constructor(new_pool: Callable[..., Any]) -> None:
    """A server that is not there: what psycopg2 raises."""
    with refused_port() as port, pytest.raises(psycopg2.OperationalError, match="refused"):
        new_pool(1, 1, host="127.0.0.1", port=port, user="postgres", dbname="postgres")


def test_exhausted_pool_is_caught_as_before(
    pool_class: Callable[..., Any], new_pool: Callable[..., Any], dsn: str
) -> None:
    """`except psycopg2.pool.PoolError` catches an exhausted pool; ours only waits before it."""
    options = {"timeout": 0.05, "open": False} if pool_class is ConnectionPool else {}
    pool = new_pool(1, 1, dsn, **options)
    if pool_class is ConnectionPool:
        pool.wait(PATIENCE)  # its timeout bounds the opening too
    held = pool.getconn()
    with pytest.raises(psycopg2.pool.PoolError):
        pool.getconn()
    pool.putconn(held)
    pool.putconn(pool.getconn())


def test_subclass_of_the_pool(pool_class: Callable[..., Any], dsn: str) -> None:
    """A program's subclass with a constructor and a method of its own."""

    class ShopPool(pool_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.lent = 0
            super().__init__(*args, **kwargs)

        def getconn(self, key: object = None) -> Any:
            self.lent += 1
            return super().getconn(key)

    pool = ShopPool(1, 1, dsn)
    pool.putconn(pool.getconn())
    assert pool.lent == 1


def test_threads(new_pool: Callable[..., Any], dsn: str) -> None:
    """As many threads as connections, each its own."""
    pool = new_pool(1, 4, dsn)
    barrier = threading.Barrier(4)

    def work() -> int:
        conn = pool.getconn()
        barrier.wait(PATIENCE)
        pid = ask(conn, "select pg_backend_pid()")
        pool.putconn(conn)
        return int(pid)

    pids = [future.result(PATIENCE) for future in [in_thread(work) for _ in range(4)]]
    assert len(set(pids)) == 4


# Where ours differs, on purpose


def test_putconn_by_key_alone(dsn: str) -> None:
    """The key suffices."""
    with make(1, 1, dsn) as pool:
        conn = pool.getconn("mine")
        pool.putconn(key="mine")
        assert pool.stats().used == 0
        assert not conn.closed
        with pytest.raises(PoolError):
            pool.putconn(key="mine")
        with pytest.raises(PoolError):
            pool.putconn()


def test_putconn_by_a_wrong_key(dsn: str) -> None:
    """A key that is another's, or nobody's, is refused, and nothing changes hands."""
    with make(2, 2, dsn) as pool:
        first, second = pool.getconn("first"), pool.getconn("second")
        for key in ("second", "third"):
            with pytest.raises(PoolError):
                pool.putconn(first, key)
        assert pool.stats().used == 2
        pool.putconn(first, "first")
        pool.putconn(second, "second")
        assert pool.stats().used == 0


def test_one_key_from_many_threads(dsn: str) -> None:
    """Threads that ask for one key at once all get the one connection."""
    with make(1, 4, dsn) as pool:
        for _ in range(10):
            barrier = threading.Barrier(4)

            def get(barrier: threading.Barrier = barrier) -> Any:
                barrier.wait(PATIENCE)
                return pool.getconn("ours")

            conns = {future.result(PATIENCE) for future in [in_thread(get) for _ in range(4)]}
            assert len(conns) == 1
            assert wait_until(lambda: pool.stats().used == 1)
            pool.putconn(conns.pop(), "ours")
            assert pool.stats().used == 0


def test_key_whose_connection_died(dsn: str, admin: Any) -> None:
    """A broken keyed connection frees its key when it comes back."""
    with make(1, 1, dsn) as pool:
        conn = pool.getconn("mine")
        kill(admin, [conn.info.backend_pid])
        with pytest.raises(psycopg2.OperationalError):
            ask(conn, "select 1")
        pool.putconn(conn, "mine")
        other = pool.getconn("mine")
        assert other is not conn
        assert ask(other, "select 1") == 1
        pool.putconn(other, "mine")


def test_key_that_timed_out(dsn: str) -> None:
    """A key that got no connection is free afterwards."""
    with make(1, 1, dsn) as pool:
        held = pool.getconn("mine")
        with pytest.raises(PoolTimeout):
            pool.getconn("other", timeout=0)
        pool.putconn(held, "mine")
        conn = pool.getconn("other", timeout=0)
        pool.putconn(conn, "other")


def test_putconn_after_closeall_does_not_raise(dsn: str) -> None:
    """A holder that comes late must not fail for it."""
    pool = make(1, 1, dsn)
    held = pool.getconn()
    pool.closeall()
    pool.putconn(held)
    assert pool.stats().used == 0


def test_with_telemetry_as_by_default(dsn: str) -> None:
    """The import changed and nothing else: telemetry without an SDK stays silent."""
    pool = ConnectionPool(1, 2, dsn)
    conn = pool.getconn()
    assert ask(conn, "select 1") == 1
    pool.putconn(conn)
    with pool.connection() as conn:
        assert ask(conn, "select 1") == 1
    pool.closeall()
