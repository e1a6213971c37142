"""`pool.health()`, against real servers: what it says, and that it asks nobody."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from otel_pgpool import PoolClosed, PoolTimeout
from tests.support.database import kill
from tests.support.internals import core_of
from tests.support.pools import fill, let_lie, make, pid_of_a_checkout
from tests.support.processes import exit_code_of, frozen
from tests.support.proxy import Condition, Proxy
from tests.support.servers import ClonedServer
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool
    from otel_pgpool.demo.postgres import PostgresServer


def status(pool: ConnectionPool) -> str:
    return pool.health().status.value


def test_an_outage(own_server: PostgresServer) -> None:
    """It is known from the first failed connect to the first successful one."""
    with make(1, 2, own_server.dsn, timeout=PATIENCE) as pool:
        own_server.stop()
        assert status(pool) == "ok", "nobody has asked the server"
        let_lie(pool)
        caller = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: status(pool) == "unreachable")
        health = pool.health()
        assert health.duration is not None
        assert 0.0 <= health.duration < PATIENCE
        begin = "no connection can be opened: nothing listens at the server's address; "
        assert re.fullmatch(rf"{re.escape(begin)}\d+ failed attempts? within \d+\.\d{{3}} s", health.reasons[0])
        own_server.start()
        assert caller.result(PATIENCE)
        assert pool.health().is_ok


def test_a_wrong_password(server: PostgresServer, admin: connection) -> None:
    """Without a connection nobody is served; as long as the pool has one, callers are."""
    password = {"password": "wrong"}
    with make(0, 1, server.dsn, credentials=lambda: password, timeout=0.5) as pool:
        assert status(pool) == "ok"
        with pytest.raises(PoolTimeout), pool.connection():
            pass
        assert status(pool) == "unreachable"
        begin = "the server is up, but no connection can be used: the server refuses the login or the database; "
        assert pool.health().reasons[0].startswith(begin)
        password.clear()
        assert wait_until(lambda: pid_of_a_checkout(pool, PATIENCE) and status(pool) == "ok")
    with make(2, 2, server.dsn, credentials=lambda: password) as pool:
        pids = fill(pool, 2)
        password["password"] = "wrong"
        kill(admin, pids[:1])
        pool.check()
        assert wait_until(lambda: core_of(pool).outage is not None)
        assert status(pool) == "ok"
        kill(admin, pids[1:])
        pool.check()
        assert wait_until(lambda: status(pool) == "unreachable")


def test_a_full_server() -> None:
    """A pool with a connection serves its callers, although the server has none left; one without does not."""
    with (
        ClonedServer(settings={"max_connections": 4, "superuser_reserved_connections": 0}) as server,
        make(1, 3, server.dsn, timeout=PATIENCE) as pool,
        make(0, 1, server.dsn, timeout=0.3) as late,
        ExitStack() as others,
    ):
        for _ in range(3):
            others.enter_context(closing(psycopg2.connect(server.dsn)))
        with pool.connection():
            waiter = in_thread(pid_of_a_checkout, pool)
            assert wait_until(lambda: core_of(pool).outage is not None)
            assert (status(pool), pool.stats().status) == ("saturated", "unreachable")
        assert waiter.result(PATIENCE)
        assert [pid_of_a_checkout(pool) > 0 and status(pool) for _ in range(3)] == ["ok"] * 3
        with pytest.raises(PoolTimeout), late.connection():
            pass
        assert status(late) == "unreachable"
        begin = "the server is up, but no connection can be used: the server has no connection left; "
        assert late.health().reasons[0].startswith(begin)


def test_a_server_that_answers_no_connect(server: PostgresServer) -> None:
    """Callers that time out again and again, before any connect ends, do not leave the pool ok."""
    with Proxy(server.port) as proxy, make(1, 3, make_dsn(server.dsn, port=proxy.port)) as pool:
        conn = pool.getconn()
        proxy.condition = Condition.BLACK_HOLE
        began = time.monotonic()

        def time_out() -> bool:
            with suppress(PoolTimeout):
                pool.getconn(timeout=0.05)
            return not pool.stats().waiting and status(pool) == "saturated"

        assert wait_until(time_out)
        assert 0.9 < time.monotonic() - began < 5.0, "before the connect_timeout of 10 s"
        assert pool.health().reasons[0].startswith("no connection is free: 1 of 3 in use, 1 being opened")
        proxy.condition = Condition.NORMAL
        proxy.cut()
        conn.close()
        pool.putconn(conn)
        assert pid_of_a_checkout(pool, PATIENCE)
        assert wait_until(lambda: pool.health().is_ok)


def test_a_frozen_server_does_not_delay_it(dsn: str) -> None:
    """Neither a server nor a connection is asked; who waits is told."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        [pid] = fill(pool, 1)
        conn = pool.getconn()
        with frozen(pid):
            waiter = in_thread(pid_of_a_checkout, pool)
            assert wait_until(lambda: pool.stats().waiting)
            health = in_thread(pool.health).result(1.0)
            assert (health.status, pool.stats().created) == ("saturated", 1)
        pool.putconn(conn)
        assert waiter.result(PATIENCE) == pid
        assert pool.health().is_ok


def test_life(dsn: str) -> None:
    """Before the pool is opened, in a child of a fork, and after the end."""
    pool = make(1, 1, dsn, open=False)
    assert pool.health().is_ok
    with pool.connection():
        assert pool.health().is_ok
    assert exit_code_of(lambda: pool.health().is_ok) == 0
    pool.close()
    health = pool.health()
    assert (health.status, health.reasons) == ("closed", ("the pool is closed",))
    assert health.duration is not None
    assert exit_code_of(lambda: pool.health().status == "closed" and (pool.health().duration or -1.0) >= 0.0) == 0
    with pytest.raises(PoolClosed):
        pool.getconn()


def test_a_pool_that_could_not_be_opened(dsn: str) -> None:
    """It is not open, and its next checkout opens it."""
    pool = make(1, 1, make_dsn(dsn, password="wrong"), open=False)
    with pytest.raises(psycopg2.OperationalError):
        pool.open()
    assert (status(pool), pool.stats().status) == ("ok", "new")
    pool.close()
