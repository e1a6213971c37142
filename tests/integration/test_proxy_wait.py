"""A wait inside PgBouncer, of which it tells its client by a notice: a record, and an attribute of the checkout."""

from __future__ import annotations

import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from otel_pgpool import ConnectionPool, PoolTimeout, reset_session
from otel_pgpool.driver.reset import PROXY_WAIT
from tests.support.hostile_server import READY, HostileServer, login, message
from tests.support.internals import core_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from tests.support.telemetry import Signals

WORDS = "No server connection available in postgres backend, client being queued"
OF_PGBOUNCER = message(b"N", f"SNOTICE\0C00000\0M{WORDS}\0\0".encode())
"""As PgBouncer 1.25 sends it (``pktbuf_write_Notice``): severity, code and message, and no other field."""
WAITING = "select 'queued'"
DONE = message(b"C", b"SELECT 0\0")


def serve(conn: socket.socket) -> None:
    """Do what each statement says, and send the notice in the middle of the one that waits."""
    conn.sendall(login())
    while head := conn.recv(5):
        body = b""
        while len(body) < struct.unpack("!I", head[1:])[0] - 4:
            body += conn.recv(65_536)
        if head[:1] == b"X":
            return
        told = OF_PGBOUNCER if WAITING.encode() in body else b""
        conn.sendall(told + DONE + READY)


@pytest.fixture
def bouncer() -> Iterator[HostileServer]:
    with HostileServer(serve) as server:
        yield server


def run(conn: connection, statement: str) -> None:
    with conn.cursor() as cur:
        cur.execute(statement)


def told(signals: Signals) -> list[Any]:
    return [(span.attributes or {}).get("otel_pgpool.proxy_wait") for span in signals.named("pool.checkout")]


def by_block(pool: ConnectionPool, statement: str) -> None:
    with pool.connection() as conn:
        run(conn, statement)


def by_hand(pool: ConnectionPool, statement: str) -> None:
    conn = pool.getconn()
    run(conn, statement)
    conn.rollback()
    pool.putconn(conn)


@pytest.mark.parametrize("mode", ["always", "slow"])
@pytest.mark.parametrize("use", [by_block, by_hand])
def test_a_wait_is_told(
    signals: Signals, bouncer: HostileServer, use: Callable[[ConnectionPool, str], None], mode: str
) -> None:
    """The checkout that waited says so, in a record of its trace too; those before and after it do not."""
    with signals.pool(1, 1, bouncer.dsn, telemetry={"spans": mode, "slow": 0.0}) as pool:
        for statement in ("select 1", WAITING, "select 1"):
            use(pool, statement)
    assert told(signals) == [None, True, None]
    [record] = signals.logged("proxy_wait")
    waited = signals.named("pool.checkout")[1]
    assert record.record.levelname == "WARNING"
    assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0].endswith(use.__name__)
    assert record.attributes["thread.name"] == "MainThread"
    assert "default_pool_size" in record.record.getMessage()
    if mode == "always":
        assert record.span_context.trace_id == waited.context.trace_id


def test_several_waits_of_a_checkout_are_told_once(signals: Signals, bouncer: HostileServer) -> None:
    """Each transaction of a checkout may wait."""
    with signals.pool(1, 1, bouncer.dsn) as pool, pool.connection() as conn:
        for _ in range(3):
            run(conn, WAITING)
            conn.commit()
        assert conn.notices == [PROXY_WAIT] * 3
    assert told(signals) == [True]
    assert len(signals.logged("proxy_wait")) == 1


def test_after_a_reset(signals: Signals, bouncer: HostileServer) -> None:
    """The list of notices that `reset_session` puts in the place of the last holder's tells too."""
    with signals.pool(1, 1, bouncer.dsn, reset=reset_session) as pool:
        for statement in (WAITING, "select 1", WAITING):
            by_block(pool, statement)
        with pool.connection() as conn:
            assert conn.notices == []
    assert told(signals) == [True, None, True, None]


def test_a_wait_of_configure_is_that_of_who_asked_for_the_connection(signals: Signals, bouncer: HostileServer) -> None:
    """A connection that the pool opens for itself makes nobody wait, so that nothing is told."""
    with signals.pool(1, 2, bouncer.dsn, configure=lambda conn: run(conn, WAITING)) as pool:
        assert signals.logged("proxy_wait") == []
        with pool.connection(), pool.connection():
            pass
    assert sorted(map(bool, told(signals))) == [False, True]
    assert len(signals.logged("proxy_wait")) == 1


def test_a_check_that_waits_is_part_of_the_checkout(signals: Signals, bouncer: HostileServer) -> None:
    """Even if the query of the checkout itself need not wait."""
    with signals.pool(1, 1, bouncer.dsn, check=lambda conn: run(conn, WAITING)) as pool:
        pool.check()  # of which no checkout is to tell
        by_block(pool, "select 1")  # at once after the check, so that no other is made
        assert told(signals) == [None]
        pool.check()
        core_idle(pool).seen -= 1.0
        by_block(pool, "select 1")
    assert told(signals) == [None, True]


def core_idle(pool: ConnectionPool) -> Any:
    return core_of(pool).idle[0]


def test_a_checkout_that_fails(signals: Signals, bouncer: HostileServer) -> None:
    """It waited for a connection whose `configure` waited in the proxy, and failed then."""

    def configure(conn: connection) -> None:
        run(conn, WAITING)
        raise psycopg2.OperationalError

    with (
        signals.pool(0, 1, bouncer.dsn, configure=configure, max_retries=1) as pool,
        suppress(PoolTimeout),
        pool.connection(),
    ):
        pass
    assert told(signals) == [True]
    assert len(signals.logged("proxy_wait")) == 1


@pytest.mark.parametrize("own", [list, deque])
def test_a_list_of_the_application(signals: Signals, bouncer: HostileServer, own: type) -> None:
    """In its place nothing is told, and nothing breaks."""
    with signals.pool(1, 1, bouncer.dsn) as pool:
        with pool.connection() as conn:
            conn.notices = own()
            run(conn, WAITING)
            assert list(conn.notices) == [PROXY_WAIT]
        by_block(pool, WAITING)
    assert told(signals) == [None, None]


def test_without_an_observer(bouncer: HostileServer) -> None:
    """The notice is in the list, and that is all."""
    with ConnectionPool(1, 1, bouncer.dsn, observer=None) as pool:
        by_block(pool, WAITING)
        with pool.connection() as conn:
            assert conn.notices == [PROXY_WAIT]


@pytest.mark.parametrize(
    "raised",
    [
        f"RAISE NOTICE 'PgBouncer: {WORDS}'",
        f"RAISE NOTICE '{WORDS}.'",
        f"RAISE WARNING '{WORDS}'",
        f"RAISE NOTICE '{WORDS}' USING HINT = 'wait'",
        f"RAISE INFO '{WORDS}'",
    ],
)
def test_notices_of_a_program(signals: Signals, dsn: str, raised: str) -> None:
    """What the server says in similar words is no wait."""
    with signals.pool(1, 1, dsn) as pool, pool.connection() as conn:
        run(conn, f"DO $$ BEGIN {raised}; END $$")
        assert WORDS in conn.notices[0]
    assert told(signals) == [None]
    assert signals.logged("proxy_wait") == []
