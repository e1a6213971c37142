"""Hostile input under the instrumentation: passwords in every place, and a server that sends anything."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import PoolError, ThreadedConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.hostile import (
    INJECTED,
    MEGABYTE,
    RIGHT,
    WAYS,
    WRONG,
    assert_nothing_secret,
    by_credentials,
    logged,
)
from tests.support.hostile_server import HostileServer, error, fails, login, notice, says
from tests.support.instrumentation import instrumented
from tests.support.telemetry import Signals, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from tests.support.hostile import Entered, Way

    Use = Callable[[HostileServer], None]

SECRET = "s3cr3t-w0rd"
LONGEST_RECORD = 10_000
pytestmark = pytest.mark.usefixtures("small_heap")


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals, instrumented(signals, long_hold=0.02):
        yield signals


HOOKED_WAYS = [way for way in WAYS if way is not by_credentials]  # an option of our own pool


@pytest.mark.parametrize("way", HOOKED_WAYS)
def test_passwords_of_psycopg2(signals: Signals, caplog: pytest.LogCaptureFixture, entered: Entered, way: Way) -> None:
    """A long hold, an exhausted pool, a failed block and a wrong password tell no password."""
    caplog.set_level(logging.DEBUG)
    pool = ThreadedConnectionPool(1, 1, **entered(way, RIGHT))
    conn = pool.getconn()
    until(lambda: signals.logged("long_hold"))
    with pytest.raises(PoolError):
        pool.getconn()
    with pytest.raises(psycopg2.Error):
        conn.cursor().execute("select * from nowhere")
    pool.putconn(conn)
    pool.closeall()
    refused = ThreadedConnectionPool(0, 1, **entered(way, WRONG))
    with pytest.raises(psycopg2.OperationalError):
        refused.getconn()
    assert signals.logged("connect_refused")
    assert_nothing_secret(signals.everything(), logged(signals, caplog))


@pytest.mark.parametrize("way", [way for way in HOOKED_WAYS if not way.__name__.startswith(("by_url", "by_dsn"))])
def test_passwords_of_sqlalchemy(
    signals: Signals, caplog: pytest.LogCaptureFixture, entered: Entered, way: Way
) -> None:
    """The same of an engine that gets them by ``connect_args`` or the environment."""
    caplog.set_level(logging.DEBUG)
    engine = engine_of(entered(way, RIGHT))
    with engine.connect() as conn:
        until(lambda: signals.logged("long_hold"))
        with pytest.raises(SQLAlchemyError):
            engine.connect()
        with pytest.raises(SQLAlchemyError):
            conn.exec_driver_sql("select * from nowhere")
    engine.dispose()
    refused = engine_of(entered(way, WRONG))
    with pytest.raises(SQLAlchemyError):
        refused.connect()
    refused.dispose()
    assert signals.logged("connect_refused")
    assert_nothing_secret(signals.everything(), logged(signals, caplog))


def engine_of(parameters: dict[str, Any]) -> Engine:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    return create_engine("postgresql+psycopg2://", connect_args=parameters, **options)


URLS = [
    "postgresql+psycopg2://app:{}@127.0.0.1:1/shop",
    "postgresql+psycopg2://app:{}@w0rd@127.0.0.1:1/shop",
    "postgresql+psycopg2://app:x@{}@127.0.0.1:1/shop",
    "postgresql+psycopg2://app@127.0.0.1:1/shop&password={}",
    "postgresql+psycopg2://app@127.0.0.1:1/shop;sslpassword={}",
    "postgresql+psycopg2://app@127.0.0.1:1/shop?password={}",
    "postgresql+psycopg2://app@127.0.0.1:1/shop?host=postgresql://app:{}@db",
    "postgresql+psycopg2://app@127.0.0.1:1/host=db password={}",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("name", [None, "postgresql://app:{}@db/shop", "password={}"])
def test_urls_of_sqlalchemy(signals: Signals, caplog: pytest.LogCaptureFixture, url: str, name: str | None) -> None:
    """No part of a password is told, where it is not escaped, or stands in the wrong place, or in the pool's name."""
    caplog.set_level(logging.DEBUG)
    named = None if name is None else name.format("s3cr3t")
    engine = create_engine(url.format("s3cr3t"), pool_logging_name=named)
    with pytest.raises(SQLAlchemyError):
        engine.connect()
    engine.dispose()
    assert signals.named("pool.checkout")
    assert_nothing_secret(signals.everything(), logged(signals, caplog))


def with_own_pool(server: HostileServer) -> None:
    with ConnectionPool(
        0, 1, server.dsn, configure=lambda conn: conn.cursor().execute("select 1"), timeout=0.5
    ) as pool:
        with pytest.raises(PoolTimeout) as refused:
            pool.getconn()
        assert SECRET not in str(refused.value)
        assert str(refused.value).replace("\n", "").isprintable()


def with_psycopg2(server: HostileServer) -> None:
    pool = ThreadedConnectionPool(0, 1, server.dsn)
    with pytest.raises(psycopg2.Error):
        pool.getconn().cursor().execute("select 1")
    pool.closeall()


def with_sqlalchemy(server: HostileServer) -> None:
    engine = create_engine(server.url)
    with pytest.raises(SQLAlchemyError):
        engine.connect().exec_driver_sql("select 1")
    engine.dispose()


SAYS = {
    "refusal": says(error(f"{SECRET}{INJECTED}")),
    "detail": says(error('role "app" does not exist', D=f"{SECRET}{INJECTED}", H=SECRET, W=SECRET)),
    "forged severity": says(error(SECRET, severity=f"FATAL\n{INJECTED}{SECRET}")),
    "long refusal": says(error("e" * 25_000 + SECRET)),
    "state": says(error(SECRET, state=f"{SECRET}\x1b[2J")),
    "no protocol": says(f"HTTP/1.1 400 {SECRET}\r\n\r\n".encode()),
    "statement": fails(error(f"{SECRET}{INJECTED}", state="57014", severity="ERROR")),
    "long statement": fails(error("e" * 5 * MEGABYTE + SECRET, state="57014", severity="ERROR")),
    "function": fails(error("canceling statement due to statement timeout", state="57014", file="pl_exec.c", D=SECRET)),
    "notices": says(login(), notice(f"{SECRET}{INJECTED}") * 100),
}


@pytest.mark.parametrize("use", [with_own_pool, with_psycopg2, with_sqlalchemy])
@pytest.mark.parametrize("answer", SAYS)
def test_a_hostile_server(
    signals: Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, use: Use, answer: str
) -> None:
    """Nothing that it has made up is told, and all that is told is printable and bounded."""
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", "always")
    caplog.set_level(logging.DEBUG, "otel_pgpool")
    with HostileServer(SAYS[answer]) as server:
        use(server)
    assert SECRET not in signals.everything()
    assert SECRET not in logged(signals, caplog)
    records = [record.record.getMessage() for record in signals.records.all]
    assert records
    for record in records:
        assert len(record) < LONGEST_RECORD
        assert record.isprintable()
