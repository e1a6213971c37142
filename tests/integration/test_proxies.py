"""Agents that trace a program make psycopg2.connect return a proxy of wrapt's: the pool treats it as a connection."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import wrapt

from otel_pgpool import PoolError
from otel_pgpool.pool import liveness
from tests.support.database import IDLE, ask, kill
from tests.support.pools import make
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection


@pytest.fixture(autouse=True, params=[1, 2])
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One agent, or two, of which each wraps what the other gives."""
    connect = psycopg2.connect

    def traced(*args: Any, **kwargs: Any) -> Any:
        conn: Any = connect(*args, **kwargs)
        for _ in range(request.param):
            conn = wrapt.ObjectProxy(conn)
        return conn

    monkeypatch.setattr(psycopg2, "connect", traced)


def test_an_idle_one_is_kept(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping, at a checkout and in `check`, finds it alive."""
    monkeypatch.setattr(liveness, "PING_AFTER", 0.0)
    with make(1, 1, dsn) as pool:
        pids = set()
        for _ in range(3):
            with pool.connection() as conn:
                pids.add(conn.get_backend_pid())
            time.sleep(0.06)  # longer than a connection is lent again without a look
            pool.check()
        assert len(pids) == 1
        assert (pool.stats().discarded, pool.stats().retries) == ({}, 0)


def test_a_dead_one_is_replaced(dsn: str, admin: connection) -> None:
    """A killed one is found before a caller gets it."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
        kill(admin, [pid])
        assert wait_until(lambda: not pool.check() and pool.stats().discarded)
        with pool.connection() as conn:
            assert conn.get_backend_pid() != pid


@pytest.mark.parametrize("end", ["commit", "begin", "autocommit"])
def test_it_comes_back_clean(dsn: str, end: str) -> None:
    """Its transaction is ended, also one begun by hand; its settings are restored; the borrower gets the proxy."""
    with make(1, 1, dsn) as pool:
        conn = pool.getconn()
        assert isinstance(conn, wrapt.ObjectProxy)
        pid = conn.get_backend_pid()
        ask(conn, "select 1")
        if end == "begin":
            ask(conn, "commit")
            ask(conn, "begin")
        if end == "autocommit":
            conn.rollback()
            conn.autocommit = True
        pool.putconn(conn)
        del conn
        with pool.connection() as conn:
            assert (conn.get_backend_pid(), conn.get_transaction_status(), conn.autocommit) == (pid, IDLE, False)


def test_a_cursor_alone_keeps_it(dsn: str) -> None:
    """A cursor refers to the connection behind the proxy: that is not reclaimed, and can be given back by it."""
    with make(1, 1, dsn) as pool:
        cur = pool.getconn().cursor()
        pid = cur.connection.get_backend_pid()
        gc.collect()
        time.sleep(0.2)  # the maintenance looks twice, 50 ms apart, before it reclaims
        cur.execute("select 1")
        assert pool.stats().discarded == {}
        pool.putconn(cur.connection)
        assert pool.stats().used == 0
        del cur
        for _ in range(2):
            conn = pool.getconn()
            assert conn.get_backend_pid() == pid
            pool.putconn(conn)


def test_a_dropped_one_is_reclaimed(dsn: str) -> None:
    """The place of one that nobody has any more is free again."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pool.getconn()
        gc.collect()
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
        assert pool.stats().discarded == {"reclaimed": 1}


def test_keys_and_strangers(dsn: str) -> None:
    """A key gives its proxy again; another pool's connection, or one given back before, is refused."""
    with make(2, 2, dsn) as pool, make(1, 1, dsn) as other:
        conn = pool.getconn("a")
        assert pool.getconn("a") is conn
        pool.putconn(key="a")
        stranger = other.getconn()
        for wrong in (conn, stranger):
            with pytest.raises(PoolError, match="not checked out from this pool"):
                pool.putconn(wrong)
        other.putconn(stranger)


def test_closeall_closes_it(dsn: str) -> None:
    """`closeall` closes those that are out as well."""
    pool = make(1, 1, dsn)
    conn = pool.getconn()
    pool.closeall()
    assert conn.closed
