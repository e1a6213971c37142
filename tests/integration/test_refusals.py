"""A server that refuses a connection is told from one that cannot be reached."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

import pytest
from psycopg2.extensions import make_dsn

from otel_pgpool import PoolTimeout
from tests.support.database import ask, kill
from tests.support.telemetry import Signals
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2.extensions import connection


@pytest.mark.parametrize("wrong", [{"dbname": "no_such_database"}, {"user": "no_such_role"}])
def test_a_refusal(dsn: str, wrong: Mapping[str, str]) -> None:
    """A record says that the server refuses; none says that it cannot be reached, nor does the pool's status."""
    with Signals() as signals, signals.pool(0, 1, make_dsn(dsn, **wrong), open=False) as pool:
        with pytest.raises(PoolTimeout, match=next(iter(wrong.values()))) as caught:
            pool.getconn(timeout=0.5)
        assert caught.value.retries > 0
        assert pool.stats().status == "ok"
        assert len(signals.logged("connect_refused")) == 1
        assert not signals.logged("outage_started")


def test_from_an_outage_to_a_refusal(dsn: str) -> None:
    """The outage has ended once the server refuses; it begins again when nobody answers; a connection ends it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    place: dict[str, str] = {"port": port, "host": "127.0.0.1"}
    with Signals() as signals, signals.pool(1, 1, dsn, credentials=lambda: place, open=False) as pool:
        events = ["outage_started", "outage_ended"]

        def told() -> list[int]:
            return [len(signals.logged(event)) for event in events]

        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.3)
        assert wait_until(lambda: told() == [1, 0])
        place.clear()
        place["dbname"] = "no_such_database"
        assert wait_until(lambda: told() == [1, 1])
        place["port"] = port
        assert wait_until(lambda: told() == [2, 1])
        place.clear()
        assert wait_until(lambda: told() == [2, 2])


def test_too_many_clients_are_an_outage(dsn: str, admin: connection) -> None:
    """A server that has no slot left for anybody answers, and yet nobody can connect."""
    password = secrets.token_hex(16)
    ask(admin, "create role crowded login connection limit 0 password %s", password)
    try:
        crowded = make_dsn(dsn, user="crowded", password=password)
        with Signals() as signals, signals.pool(0, 1, crowded, open=False) as pool:
            with pytest.raises(PoolTimeout, match="too many connections"):
                pool.getconn(timeout=0.5)
            assert len(signals.logged("outage_started")) == 1
            assert pool.stats().status == "unreachable"
    finally:
        ask(admin, "drop role crowded")


def test_an_error_of_configure(dsn: str) -> None:
    """An error of the program's `configure` is told as that: the server is up, and there is no outage."""

    def configure(_conn: connection) -> None:
        raise ValueError("a secret word")

    with Signals() as signals, signals.pool(0, 1, dsn, configure=configure, open=False) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.5)
        assert pool.stats().status == "ok"
        (record,) = signals.logged("program_error")
        assert record.attributes["otel_pgpool.callback"] == "configure"
        assert record.attributes["error.type"] == "ValueError"
        assert "a new connection cannot be used: the callback configure raised ValueError" in record.record.getMessage()
        assert not signals.logged("outage_started")
        assert not signals.logged("connect_refused")
        assert "secret" not in signals.everything()


def test_a_connection_that_is_lost_in_configure(dsn: str, admin: connection) -> None:
    """If the server ends the connection meanwhile, the server is the cause."""

    def configure(conn: connection) -> None:
        kill(admin, [conn.info.backend_pid])
        ask(conn, "select 1")

    with Signals() as signals, signals.pool(0, 1, dsn, configure=configure, open=False) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.5)
        assert signals.logged("outage_started")
        assert not signals.logged("program_error")
