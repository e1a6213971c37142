"""A URL whose password has an unescaped character, which a driver may take for a host, a port or a database."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

import asyncpg
import pytest
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool, NullConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.telemetry import Signals

pytestmark = pytest.mark.usefixtures("instrumentation")

SECRET = re.compile(r"\b4711\b|hunter2")
SEPARATORS = [*":/?#[]@%"]
PATHS = ["", "/shop"]


@pytest.fixture(autouse=True)
def port_without_a_server(no_variables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")


def psycopg2_pool(url: str) -> None:
    ThreadedConnectionPool(0, 1, url).getconn()


def psycopg_pool(url: str) -> None:
    with NullConnectionPool(url, max_size=1, open=False, name="") as pool:
        pool.getconn(timeout=0.2)


def psycopg_pool_by_worker(url: str) -> None:
    with ConnectionPool(url, min_size=1, max_size=1, open=False, name="", reconnect_timeout=0.1) as pool:
        pool.getconn(timeout=0.2)


def asyncpg_pool(url: str) -> None:
    async def acquire() -> None:
        pool = asyncpg.create_pool(url, min_size=0, max_size=1, timeout=1)
        async with pool, pool.acquire():
            pass

    asyncio.run(acquire())


def engine_on(driver: str) -> Callable[[str], None]:
    def connect(url: str) -> None:
        create_engine(url.replace("://", f"+{driver}://")).connect()

    connect.__name__ = f"engine on {driver}"
    return connect


def engine_on_asyncpg(url: str) -> None:
    async def connect() -> None:
        await create_async_engine(url.replace("://", "+asyncpg://")).connect()

    asyncio.run(connect())


ENGINES = [*map(engine_on, ("psycopg2", "psycopg", "pg8000")), engine_on_asyncpg]
USES = [psycopg2_pool, psycopg_pool, psycopg_pool_by_worker, asyncpg_pool, *ENGINES]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("character", SEPARATORS)
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_nothing_of_the_password_is_reported(
    use: Callable[[str], None], character: str, path: str, signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """A span, a log record, a metric, the name of a pool and the text of an error show nothing of it."""
    caplog.set_level(logging.DEBUG, "otel_pgpool")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
        use(f"postgresql://localhost:4711{character}hunter2@127.0.0.1{path}")
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name == "otel_pgpool")
    assert SECRET.findall(f"{signals.everything()}\n{logged}") == []
