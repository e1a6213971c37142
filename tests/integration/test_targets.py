"""Where a pool connects to: every form of DSN, servers that refuse, and passwords that are never told."""

from __future__ import annotations

import logging
import secrets
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.pool import backoff
from tests.support.database import ask, refused_port
from tests.support.pools import make, pid_of_a_checkout
from tests.support.servers import ClonedServer
from tests.support.urls import url_of
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer

RIGHT = f"r1ght:p@ss/wörd{secrets.token_hex(16)}"
WRONG = "wr0ng%p'ss"
PLACE = "127.0.0.1:{port}/postgres"


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgresServer]:
    """Provide a server that requires a password."""
    with ClonedServer(password=RIGHT) as server:
        yield server


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        ("postgresql://postgres:{password}@127.0.0.1:{port}/postgres", PLACE),
        ("postgres://postgres:{password}@127.0.0.1:{port}/postgres", PLACE),
        ("postgresql://postgres:{password}@127.0.0.1:{port}/postgres?application_name=shop&connect_timeout=30", PLACE),
        ("postgresql:///postgres?host=127.0.0.1&port={port}&user=postgres&password={password}", PLACE),
        ("host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres", PLACE),
        ("host='127.0.0.1' port = {port} user=postgres password={password} dbname='postgres'", PLACE),
        ("hostaddr=127.0.0.1 port={port} user=postgres password={password} dbname=postgres", PLACE),
        ("host={socket} port={port} user=postgres dbname=postgres", "{socket}:{port}/postgres"),
        ("postgresql://postgres@{quoted}:{port}/postgres", "{socket}:{port}/postgres"),
    ],
)
def test_forms_of_dsn(server: PostgresServer, dsn: str, name: str) -> None:
    """URLs and key=value strings, over TCP and the Unix socket; the pool is named after the place."""
    places = parse_dsn(server.dsn) | {"socket": server.socket_dir, "quoted": quote(server.socket_dir, safe="")}
    with make(1, 1, dsn.format(**places)) as pool:
        assert pool.name.removesuffix(" #2") == name.format(**places)
        assert pool.namespace == "postgres"
        assert pool.port == server.port
        assert pool.address in ("127.0.0.1", server.socket_dir)
        assert pid_of_a_checkout(pool)


def test_environment_of_libpq(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty DSN leaves all to PGHOST and its kin."""
    for variable, value in (
        ("HOST", "127.0.0.1"),
        ("PORT", server.port),
        ("USER", "postgres"),
        ("DATABASE", "postgres"),
        ("PASSWORD", parse_dsn(server.dsn)["password"]),
    ):
        monkeypatch.setenv(f"PG{variable}", str(value))
    with make(1, 1, "") as pool:
        assert pool.name.removesuffix(" #2") == PLACE.format(port=server.port)
        assert pid_of_a_checkout(pool)


@pytest.mark.parametrize("form", ["url", "keywords"])
def test_several_hosts(server: PostgresServer, form: str) -> None:
    """The first host is dead: the second serves; the name tells both."""
    with refused_port() as dead:
        if form == "url":
            dsn = server.dsn.replace("@", f"@127.0.0.1:{dead},")
        else:
            dsn = make_dsn(server.dsn, host="127.0.0.1,127.0.0.1", port=f"{dead},{server.port}")
        with make(2, 2, dsn) as pool:
            assert pool.name == f"127.0.0.1:{dead},127.0.0.1:{server.port}/postgres"
            assert pool.port is None
            with pool.connection() as conn:
                assert conn.info.port == server.port


def test_hosts_by_role(server: PostgresServer) -> None:
    """`target_session_attrs` is libpq's, and works."""
    dsn = f"{server.dsn}?target_session_attrs=read-write"
    with make(1, 1, dsn) as pool:
        assert pid_of_a_checkout(pool)
    with pytest.raises(psycopg2.OperationalError):
        make(1, 1, dsn.replace("read-write", "standby"))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:s3cret@host:port/db",
        "postgresql://user:s3cret@[::1/db",
        "postgresql://user:s3cret%zz@host/db",
        "postgresql://user:s3cret@host/db?no_such_option=1",
        "postgresql://user:p@s3cret@host/db",
        "postgresql://user:p/s3cret@host/db",
        "postgresql+psycopg2://user:s3cret@host/db",
        "mysql://user:s3cret@host/db",
        "host=h password='s3cret",
        "host=h pasword=s3cret",
        "s3cret",
    ],
)
def test_unreadable_dsn(dsn: str) -> None:
    """Refused by a ValueError that says what is accepted and shows nothing of it."""
    with pytest.raises(ValueError, match=r"^(dsn cannot be read: |port must be )") as caught:
        ConnectionPool(0, 1, dsn)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"pasword": "s3cret", "host": "h"}, "pasword"),
        ({"timeuot": 5, "host": "h", "password": "s3cret"}, "timeuot"),
        ({"dsn": 5}, "dsn"),
        ({"dsn": ["postgresql:///"]}, "dsn"),
        ({"host": "h", "async_": True}, "async"),
    ],
)
def test_unknown_keywords(kwargs: dict[str, Any], named: str) -> None:
    """A misspelt option is named; its value, which may be a secret, is not."""
    with pytest.raises(ValueError, match=named) as caught:
        ConnectionPool(0, 1, **kwargs)
    assert "s3cret" not in str(caught.value)


def shown(error: BaseException) -> str:
    return "".join([str(error), repr(error), *map(repr, error.args), *traceback.format_exception(error)])


def assert_not_told(text: str, *secrets: str) -> None:
    for secret in secrets:
        assert secret not in text
        assert quote(secret, safe="") not in text


def test_password_that_turns_wrong(
    guarded: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In service it is retried until the timeout, with the cause, and never told."""
    monkeypatch.setattr(backoff, "LONGEST_DELAY", 0.05)
    password = [RIGHT]
    place = url_of(guarded.dsn, password=None)
    with (
        caplog.at_level(logging.DEBUG),
        ConnectionPool(0, 1, place, credentials=lambda: {"password": password[0]}) as pool,
    ):
        first = pid_of_a_checkout(pool)
        password[0] = WRONG
        pool.drain()
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=2)
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert caught.value.retries >= 2
        password[0] = RIGHT
        assert pid_of_a_checkout(pool, PATIENCE) != first
    assert_not_told(shown(caught.value) + caplog.text, WRONG, RIGHT)


def test_credentials_rotate(guarded: PostgresServer) -> None:
    """They are asked for at each connect, and merged over what the DSN says."""
    asked: list[str] = []
    current, new = RIGHT, secrets.token_hex(16)

    def credentials() -> dict[str, str]:
        asked.append(current)
        return {"user": "rotating", "password": current}

    with make(1, 1, guarded.dsn) as admin_pool, admin_pool.connection() as conn:
        ask(conn, "create role rotating login password %s", RIGHT)
    dsn = url_of(guarded.dsn, password="old")
    with make(1, 1, dsn, credentials=credentials, timeout=PATIENCE) as pool:
        first = pid_of_a_checkout(pool)
        current = new
        with make(1, 1, guarded.dsn) as admin_pool, admin_pool.connection() as conn:
            ask(conn, "alter role rotating password %s", current)
        pool.drain()
        with pool.connection() as conn:
            assert conn.info.backend_pid != first
            assert ask(conn, "select current_user::text") == "rotating"
        assert asked == [RIGHT, new]


def test_credentials_that_raise(dsn: str) -> None:
    """The constructor raises what they raised; in service it is the cause of the timeout."""
    broken = [True]

    def credentials() -> dict[str, str]:
        if broken[0]:
            raise LookupError("vault is sealed")
        return {}

    with pytest.raises(LookupError, match="sealed"):
        make(1, 1, dsn, credentials=credentials)
    broken[0] = False
    with make(1, 1, dsn, credentials=credentials) as pool:
        broken[0] = True
        pool.drain()
        assert wait_until(lambda: pool.stats().status == "unreachable")
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.5)
        assert isinstance(caught.value.__cause__, LookupError)
        broken[0] = False
        assert pid_of_a_checkout(pool, PATIENCE)


def test_connect_timeout_is_bounded_unless_said_otherwise(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool's connects do not hang for ever; what the program says of it stands."""
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    for dsn, expected in ((server.dsn, "10"), (f"{server.dsn}?connect_timeout=30", "30")):
        with make(1, 1, dsn) as pool, pool.connection() as conn:
            assert conn.info.dsn_parameters["connect_timeout"] == expected
