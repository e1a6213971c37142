"""The monitoring connections of each kind of pool: opened as the pool's own, but plain, limited and read only."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg2 import extensions
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.adapters.asyncpg import monitor as of_asyncpg
from otel_pgpool.instrumentation.adapters.asyncpg.tracked import POOL_ATTR
from otel_pgpool.instrumentation.adapters.psycopg2 import monitor as of_psycopg2
from otel_pgpool.instrumentation.adapters.psycopg_pool import monitor as of_psycopg_pool
from otel_pgpool.instrumentation.adapters.sqlalchemy import monitor as of_sqlalchemy
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import driver_named
from tests.support.instrumentation import instrumented
from tests.support.psycopg_pools import RELEASE
from tests.support.sqlalchemy_drivers import ASYNCHRONOUS, IS_1_4, SYNCHRONOUS, allow_quick_passwords, driver_url
from tests.support.urls import url_of
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.pool.monitor_source import Server
    from tests.support.telemetry import Signals

NAME = "select current_setting('application_name')"
SETTINGS = f"{NAME} || current_setting('transaction_read_only') || current_setting('statement_timeout')"
EXPECTED = "otel_pgpool monitor" + "on" + "1s"


class Refused:
    """A class of the program that must not be used."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Any:
        raise AssertionError("the program's own class was used")


class Psycopg(psycopg.Connection[Any]):
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise AssertionError("the program's own class was used")


class Asyncpg(asyncpg.Connection):  # type: ignore[misc]  # asyncpg is not typed
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise AssertionError("the program's own class was used")


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_quick_passwords(monkeypatch)


@pytest.fixture
def asyncpg_pool(dsn: str) -> Iterator[Callable[..., Any]]:
    """Provide a function that returns the queue which stands for a new pool of asyncpg, in a loop that does not run."""
    loop = asyncio.new_event_loop()
    pools = []

    async def create(url: str, options: Any) -> Any:
        return await asyncpg.create_pool(url, min_size=0, **options)

    def queue_of(url: str, **options: Any) -> Any:
        pool = loop.run_until_complete(create(url, options))
        pools.append(pool)
        setattr(pool._queue, POOL_ATTR, pool)
        return pool._queue

    yield queue_of
    for pool in pools:
        loop.run_until_complete(pool.close())
    loop.close()


def value(connect: MonitorConnect, statement: str = SETTINGS, chosen: Server | None = None) -> str:
    """Return what a new monitoring connection answers."""
    conn = connect(chosen)
    try:
        assert conn.pid == int(conn.query("select pg_backend_pid()"))
        return conn.query(statement)
    finally:
        conn.close()


def connector_of(engine: Any) -> MonitorConnect:
    return of_sqlalchemy.connector(engine.pool, driver_named(engine.dialect.driver))


def test_psycopg2(dsn: str) -> None:
    """Neither the pool's connection class nor its cursor class is used."""
    own = {"connection_factory": Refused, "cursor_factory": Refused, "application_name": "shop"}
    assert value(of_psycopg2.connector((dsn,), own)) == EXPECTED
    assert value(of_psycopg2.connector((dsn, Refused, Refused), {})) == EXPECTED


def test_psycopg_pool(dsn: str) -> None:
    """Neither the pool's connection class nor arguments of the driver are used."""
    own: dict[str, Any] = {"row_factory": Refused, "cursor_factory": Refused, "application_name": "shop"}
    pool = ConnectionPool(
        url_of(dsn), kwargs=own, open=False, connection_class=type("C", (psycopg.Connection,), {"connect": Refused})
    )
    assert value(of_psycopg_pool.connector(pool)) == EXPECTED
    pool = AsyncConnectionPool(url_of(dsn), kwargs={"autocommit": False}, open=False)
    assert value(of_psycopg_pool.connector(pool)) == EXPECTED


@pytest.mark.skipif(RELEASE < (3, 3), reason="functions are accepted since 3.3")
def test_functions_of_the_program(dsn: str) -> None:
    """Functions that provide the arguments are called, also coroutine functions."""

    async def later() -> str:
        await asyncio.sleep(0)
        return url_of(dsn)

    async def options() -> dict[str, Any]:
        return {"options": "-c work_mem=123kB"}

    pool: Any = ConnectionPool(lambda: url_of(dsn), kwargs=lambda: {"options": "-c work_mem=123kB"}, open=False)
    assert value(of_psycopg_pool.connector(pool), "select current_setting('work_mem')") == "123kB"
    pool = AsyncConnectionPool(later, kwargs=options, open=False)
    assert value(of_psycopg_pool.connector(pool), "select current_setting('work_mem')") == "123kB"


def test_asyncpg(dsn: str, asyncpg_pool: Callable[..., Any]) -> None:
    """The pool's settings apply, its connection class does not, and its loop need not run."""
    queue = asyncpg_pool(url_of(dsn), connection_class=Asyncpg, server_settings={"work_mem": "123kB"})
    connect = of_asyncpg.connector(queue)
    assert value(connect) == EXPECTED
    assert value(connect, "select current_setting('work_mem')") == "123kB"


@pytest.mark.skipif("connect" not in asyncpg.create_pool.__kwdefaults__, reason="since 0.30")
def test_a_function_that_connects(dsn: str, asyncpg_pool: Callable[..., Any]) -> None:
    """A function of the program connects in the monitor's loop."""

    async def connect(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["loop"] is asyncio.get_running_loop()
        return await asyncpg.connect(*args, **kwargs)

    queue = asyncpg_pool(url_of(dsn), connect=connect, server_settings={"application_name": "shop"})
    assert value(of_asyncpg.connector(queue), NAME) == "shop"


@pytest.mark.parametrize("driver", SYNCHRONOUS)
def test_engines(driver: str, dsn: str) -> None:
    """The arguments of the URL and the listeners for connects apply."""
    engine = create_engine(driver_url(dsn, driver, password="wrong"))
    parameters: list[Any] = []

    def set_password(_dialect: Any, record: Any, _args: Any, params: dict[str, Any]) -> None:
        parameters.append(record.info)
        params["password"] = extensions.parse_dsn(dsn)["password"]

    event.listen(engine, "do_connect", set_password)
    assert value(connector_of(engine)) == EXPECTED
    assert parameters == [{}]
    assert engine.pool.checkedin() == 0
    assert "otel_pgpool" not in str(engine.pool._creator.__closure__)


@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_engines_of_asyncio(driver: str, dsn: str) -> None:
    """An asynchronous engine connects in the monitor's loop."""
    engine = create_async_engine(driver_url(dsn, driver))
    assert value(connector_of(engine)) == EXPECTED
    assert engine.pool.checkedin() == 0


def test_a_creator(dsn: str) -> None:
    """A function of the program is called as the pool calls it; its connection keeps its name."""
    engine = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn, application_name="shop"))
    assert value(connector_of(engine), NAME) == "shop"


@pytest.mark.skipif(IS_1_4, reason="since 2.0.16")
def test_an_asynchronous_creator(dsn: str) -> None:
    """A coroutine function is called too."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url_of(dsn)))
    assert value(connector_of(engine), NAME) == ""


def test_a_creator_of_one_connection(dsn: str, signals: Signals) -> None:
    """A connection that the pool has already is neither used nor closed."""
    with closing(psycopg2.connect(dsn)) as only, instrumented(signals, long_hold=None):
        engine = create_engine("postgresql+psycopg2://", creator=lambda: only, poolclass=StaticPool)
        with engine.connect():
            with pytest.raises(PoolError, match="does not return a new one"):
                connector_of(engine)(None)
            assert not only.closed
            assert not only.autocommit


def test_a_creator_of_something_else() -> None:
    """Of what is no connection of the driver, nothing is used."""
    engine = create_engine("postgresql+psycopg2://", creator=object)
    with pytest.raises(PoolError, match="does not return a new one"):
        connector_of(engine)(None)


def test_a_connector_keeps_no_pool(dsn: str) -> None:
    """Once the pool was collected, a connector opens nothing."""
    pools: list[Any] = [ConnectionPool(dsn, open=False), create_engine(driver_url(dsn, "psycopg2")).pool]
    connectors = [of_psycopg_pool.connector(pools[0]), of_sqlalchemy.connector(pools[1], driver_named("psycopg2"))]
    refs = [weakref.ref(pool) for pool in pools]
    pools.clear()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    for connect in connectors:
        with pytest.raises(PoolError, match="collected"):
            connect(None)


def connectors_to(place: str, asyncpg_pool: Callable[..., Any]) -> dict[str, MonitorConnect]:
    """Return a connector of each kind. A connector does not keep its pool, hence `KEPT`."""
    pool = ConnectionPool(place, open=False)
    engines: dict[str, Any] = {
        "psycopg2": create_engine(driver_url(place, "psycopg2")),
        # Otherwise pg8000 asks for TLS first, and forgets to close the socket when there is no answer.
        "pg8000": create_engine(driver_url(place, "pg8000"), connect_args={"ssl_context": False}),
    }
    found = {
        "psycopg2": of_psycopg2.connector((place,), {}),
        "psycopg_pool": of_psycopg_pool.connector(pool),
        "asyncpg": of_asyncpg.connector(asyncpg_pool(place)),
        **{f"sqlalchemy-{name}": connector_of(engine) for name, engine in engines.items()},
    }
    KEPT.extend([pool, *engines.values()])
    return found


KEPT: list[Any] = []
ERRORS: dict[str, type[Exception]] = {
    "psycopg2": psycopg2.OperationalError,
    "psycopg_pool": psycopg.OperationalError,
    "asyncpg": OSError,
    "sqlalchemy-psycopg2": psycopg2.OperationalError,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pg8000 leaves its socket unclosed
def test_a_server_that_does_not_answer(dsn: str, asyncpg_pool: Callable[..., Any]) -> None:
    """A connect to a silent server ends within some 2 s, whatever the driver, and leaves nothing that runs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = url_of(dsn, port=silent.getsockname()[1])
        began = time.monotonic()
        attempts = {kind: in_thread(connect, None) for kind, connect in connectors_to(place, asyncpg_pool).items()}
        errors = {kind: type(attempt.exception(10)).__name__ for kind, attempt in attempts.items()}
        assert time.monotonic() - began < 4
    KEPT.clear()
    assert errors == {
        "psycopg2": "OperationalError",
        "psycopg_pool": "ConnectionTimeout",
        "asyncpg": "TimeoutError",
        "sqlalchemy-psycopg2": "OperationalError",
        "sqlalchemy-pg8000": "TimeoutError",
    }


@pytest.mark.parametrize("kind", ["psycopg2", "psycopg_pool", "asyncpg", "sqlalchemy-psycopg2"])
def test_one_of_several_servers(kind: str, dsn: str, asyncpg_pool: Callable[..., Any]) -> None:
    """Of several hosts, only the one of the long hold is asked."""
    parsed = extensions.parse_dsn(dsn)
    login = f"{parsed['user']}:{parsed['password']}"
    hosts = f"127.0.0.1:1,{parsed['host']}:{parsed['port']}"
    place = f"postgresql://{login}@{hosts}/{parsed['dbname']}"
    chosen = parsed["host"], int(parsed["port"])
    if kind.startswith("sqlalchemy"):
        places = f"host=127.0.0.1:1&host={parsed['host']}:{parsed['port']}"
        engine = create_engine(f"postgresql+psycopg2://{login}@/{parsed['dbname']}?{places}")
        connect = connector_of(engine)
    elif kind == "psycopg_pool":
        pool = ConnectionPool(place, kwargs={"target_session_attrs": "read-write"}, open=False)
        connect = of_psycopg_pool.connector(pool)
    else:
        connect = {
            "psycopg2": lambda: of_psycopg2.connector((place,), {}),
            "asyncpg": lambda: of_asyncpg.connector(asyncpg_pool(place)),
        }[kind]()
    assert value(connect, chosen=chosen) == EXPECTED
    with pytest.raises(ERRORS[kind]):
        connect(("127.0.0.1", 1))
