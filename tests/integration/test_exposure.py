"""What `credentials` gives, on real connections: in clear to nobody, and a warning where nothing makes sure of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import trustme
from opentelemetry.trace import INVALID_SPAN_CONTEXT
from psycopg2 import extensions

from tests.support.database import ask
from tests.support.emitted import check_record
from tests.support.pools import make
from tests.support.proxy import Proxy
from tests.support.servers import ClonedServer
from tests.support.telemetry import Record
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer

TOKEN = "t0ken"
NOWHERE = "0.0.0.1"
"""An address of no machine, to which the system sends nothing."""
REFUSED = "server requested a cleartext password"

needs_require_auth = pytest.mark.skipif(extensions.libpq_version() < 160000, reason="libpq 16 brought require_auth")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)


def authenticate_by(method: str, server: PostgresServer) -> None:
    conn = psycopg2.connect(server.dsn)
    Path(ask(conn, "show hba_file")).write_text(f"host all all all {method}\nlocal all all {method}\n")
    ask(conn, "select pg_reload_conf()")
    conn.close()


@pytest.fixture(scope="module")
def in_clear() -> Iterator[dict[str, Any]]:
    """Where a server is that asks for passwords in clear, as those of clouds do for tokens."""
    with ClonedServer(password=TOKEN) as server:
        authenticate_by("password", server)
        place = extensions.parse_dsn(server.dsn)
        del place["password"]
        yield {**place, "socket_dir": server.socket_dir}


@pytest.fixture
def place(in_clear: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in in_clear.items() if key != "socket_dir"}


def token() -> dict[str, str]:
    return {"password": TOKEN}


@needs_require_auth
@pytest.mark.parametrize("how", [{}, {"sslmode": "allow"}, {"sslmode": "prefer"}, {"sslmode": "disable"}])
def test_in_clear_without_tls(place: dict[str, Any], how: dict[str, str]) -> None:
    """Who says that there is no TLS, and asks for the token, does not get it, where the program wants no TLS either."""
    with pytest.raises(psycopg2.OperationalError, match=REFUSED):
        make(1, 1, credentials=token, timeout=PATIENCE, **place, **how)


@needs_require_auth
@pytest.mark.parametrize("by", ["keyword", "credentials", "environment"])
def test_in_clear_by_choice(place: dict[str, Any], by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program has said how it authenticates."""
    if by == "environment":
        monkeypatch.setenv("PGREQUIREAUTH", "password")
    more = {"require_auth": "password"} if by == "keyword" else {}
    given = {"password": TOKEN} | ({"require_auth": "password"} if by == "credentials" else {})
    with make(1, 1, credentials=lambda: given, timeout=PATIENCE, **place, **more) as pool, pool.connection() as conn:
        assert ask(conn, "select 1") == 1


def test_in_clear_over_a_unix_socket(in_clear: dict[str, Any]) -> None:
    """Nobody stands in between."""
    place = {**in_clear, "host": in_clear["socket_dir"]}
    del place["socket_dir"]
    with make(1, 1, credentials=token, timeout=PATIENCE, **place) as pool, pool.connection() as conn:
        assert ask(conn, "select 1") == 1


@pytest.mark.parametrize("how", [{}, {"sslmode": "prefer"}, {"sslmode": "require"}])
def test_over_tls(place: dict[str, Any], how: dict[str, str]) -> None:
    """A server that has TLS gets the token over it, whether the program asked for that or not."""
    with Proxy(int(place["port"])) as proxy:
        proxy.certify(trustme.CA())
        with (
            make(1, 1, credentials=token, timeout=PATIENCE, **place | {"port": proxy.port} | how) as pool,
            pool.connection() as conn,
        ):
            assert conn.info.ssl_in_use


def test_other_ways_to_authenticate_need_no_tls() -> None:
    """SCRAM, and a server of one's own machine that trusts: neither shows a password to anybody."""
    with ClonedServer(password=TOKEN) as server:
        there = extensions.make_dsn(server.dsn, password="")
        for method in ("scram-sha-256", "trust"):
            authenticate_by(method, server)
            with make(1, 1, there, credentials=token, timeout=PATIENCE) as pool, pool.connection() as conn:
                assert ask(conn, "select 1") == 1


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if vars(each).get("otel_pgpool.event") == "credentials_exposed"]


@pytest.mark.parametrize("observer", [..., None])
def test_a_warning_once_for_each_pool(observer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At the first connect to another machine, with the pool's name, whoever observes the pool; and not again."""
    given = {"password": TOKEN, "hostaddr": NOWHERE}
    options: dict[str, Any] = {"credentials": lambda: given, "open": False, "max_retries": 1, "observer": observer}
    for name in ("far", "farther"):
        with make(0, 1, "user=app dbname=shop port=1", name=name, **options) as pool:
            for _ in range(3):
                with pytest.raises(psycopg2.Error):
                    pool.getconn(timeout=PATIENCE)
    records = warnings_of(caplog)
    assert [vars(record)["db.client.connection.pool.name"] for record in records] == ["far", "farther"]
    for record in records:
        check_record(Record(record, INVALID_SPAN_CONTEXT).attributes, "WARNING")
    assert {record.levelno for record in records} == {logging.WARNING}
    assert "pool far: the result of `credentials` is sent to another machine" in records[0].getMessage()
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("more", [{"sslmode": "require"}, {"sslmode": "verify-full"}, {"hostaddr": "127.0.0.1"}])
def test_no_warning(more: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Encrypted for sure, or this machine, though it is `credentials` that says so."""
    given = {"password": TOKEN, "hostaddr": NOWHERE} | more
    with (
        make(0, 1, "user=app dbname=shop port=1", credentials=lambda: given, open=False, max_retries=1) as pool,
        pytest.raises(psycopg2.Error),
    ):
        pool.getconn(timeout=PATIENCE)
    assert warnings_of(caplog) == []


def test_no_warning_without_credentials(caplog: pytest.LogCaptureFixture) -> None:
    """A password of the DSN is the program's own affair, as with psycopg2."""
    with (
        make(
            0, 1, f"hostaddr={NOWHERE} user=app dbname=shop port=1 password={TOKEN}", open=False, max_retries=1
        ) as pool,
        pytest.raises(psycopg2.Error),
    ):
        pool.getconn(timeout=PATIENCE)
    assert warnings_of(caplog) == []


def test_a_handler_that_raises_costs_no_connect(caplog: pytest.LogCaptureFixture) -> None:
    """The attempt is made all the same, and says why it failed."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if vars(record).get("otel_pgpool.event") == "credentials_exposed":
                raise ZeroDivisionError

    logger = logging.getLogger("otel_pgpool")
    handler = Broken()
    logger.addHandler(handler)
    given = {"password": TOKEN, "hostaddr": NOWHERE}
    try:
        with (
            make(0, 1, "user=app dbname=shop port=1", credentials=lambda: given, open=False, max_retries=1) as pool,
            pytest.raises(psycopg2.Error) as caught,
        ):
            pool.getconn(timeout=PATIENCE)
    finally:
        logger.removeHandler(handler)
    assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
    assert TOKEN not in caplog.text
