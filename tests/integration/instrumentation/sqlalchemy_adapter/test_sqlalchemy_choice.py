"""Single pools and engines of SQLAlchemy: what `instrument_pool` accepts, and what it refuses."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.sqlalchemy_engines import borrow, engine_tracker, hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

SQLITE = "sqlite://"
POSTGRESQL = "postgresql+psycopg2://nobody:s3cret@nowhere/shop"


@pytest.fixture(autouse=True)
def no_instrumentation() -> Iterator[None]:
    """End what a test has started."""
    yield
    PgPoolInstrumentor().uninstrument()


def of_asyncio(url: str) -> Any:
    pytest.importorskip("asyncpg")
    return create_async_engine(url.replace("psycopg2", "asyncpg"))


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: create_engine(SQLITE), "Engine of sqlite"),
        (lambda: create_engine(SQLITE).execution_options(), "OptionEngine of sqlite"),
        (lambda: create_engine(SQLITE).pool, "Pool of sqlite"),
        (lambda: create_engine(SQLITE, creator=lambda: sqlite3.connect(":memory:")), "Engine of sqlite"),
        (lambda: QueuePool(object, dialect=create_engine(SQLITE).dialect), "QueuePool of sqlite"),
    ],
)
def test_other_databases(make: Callable[[], Any], shown: str) -> None:
    """An engine or a pool of another database is a TypeError that names the database and what is accepted.

    To exclude it has no effect, and is no error.
    """
    given = make()
    with pytest.raises(TypeError, match=rf"^expected a pool or an engine of postgresql, not \w*{shown}$"):
        instrument_pool(given)
    uninstrument_pool(given)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: None, "None"),
        (lambda: QueuePool, "the class QueuePool"),
        (lambda: Session(create_engine(POSTGRESQL)), "Session"),
        (lambda: sessionmaker(create_engine(POSTGRESQL)), "sessionmaker"),
        (lambda: create_engine(POSTGRESQL).url, "URL"),
        (lambda: create_engine(POSTGRESQL).dialect, r"PGDialect_psycopg2"),
        (lambda: of_asyncio(POSTGRESQL).connect(), "AsyncConnection"),
    ],
)
@pytest.mark.parametrize("function", [instrument_pool, uninstrument_pool])
def test_no_pools(function: Callable[[Any], None], make: Callable[[], Any], shown: str) -> None:
    """Anything else is a TypeError that names its class, never its values, and the kinds that are accepted."""
    with pytest.raises(TypeError, match=rf"^expected a pool of .*sqlalchemy, not {shown}$"):
        function(make())


def test_connection(engines: Engines) -> None:
    """A connection is refused, although it has an engine."""
    with engines().connect() as conn, pytest.raises(TypeError, match=r"not Connection$"):
        instrument_pool(conn)


def test_automatically(signals: Signals, engines: Engines) -> None:
    """The automatic instrumentation says nothing about an engine of another database."""
    with hooked(signals):
        engine = engines(SQLITE)
        engine.connect().close()
    assert signals.records.all == []
    assert signals.named("pool.checkout") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda _dsn: create_engine(POSTGRESQL),
        lambda _dsn: create_engine(POSTGRESQL).execution_options(isolation_level="SERIALIZABLE"),
        lambda dsn: create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn)),
        lambda _dsn: create_engine(POSTGRESQL, poolclass=NullPool),
        lambda _dsn: of_asyncio(POSTGRESQL),
    ],
)
def test_engines(dsn: str, make: Callable[[str], Any]) -> None:
    """An engine of PostgreSQL is observed at once, also one for asyncio, with options, or with a creator."""
    engine = make(dsn)
    instrument_pool(engine)
    assert isinstance(vars(engine.pool)["_otel_pgpool"], PoolTracker)


def test_pools(engines: Engines, dsn: str) -> None:
    """A pool is observed: that of an engine at once, one without an engine from its first checkout."""
    engine = engines()
    instrument_pool(engine.pool)
    assert borrow(engine)
    assert engine_tracker(engine).handed_out == 1
    pool = QueuePool(lambda: psycopg2.connect(dsn))
    instrument_pool(pool)
    pool.connect().close()
    assert vars(pool)["_otel_pgpool"].handed_out == 1
    pool.dispose()
