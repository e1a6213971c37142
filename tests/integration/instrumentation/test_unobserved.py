"""Pools that are not observed, beside others that are: their checkouts cost little."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import SimpleConnectionPool, ThreadedConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR, PoolTracker
from tests.support.adapters import FakeAdapter
from tests.support.calls import calls_in
from tests.support.instrumentation import instrumented
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Subclass(ThreadedConnectionPool):
    """A pool of the application, with its own methods."""

    def getconn(self, key: Any = None) -> Any:
        return super().getconn(key)


class Pool:
    """A pool of an unknown library."""


class Untold(FakeAdapter):
    """An adapter that must not be asked anything."""

    kind = "fake"

    def target(self, _pool: Any) -> Any:
        raise AssertionError

    can_wait = target


@pytest.fixture
def session() -> Iterator[InstrumentationSession]:
    session = InstrumentationSession(InstrumentationOptions.of(environ={"OTEL_PGPOOL_SPANS": "off"}), {"other"})
    yield session
    session.end()


@pytest.fixture
def engines(dsn: str) -> Iterator[dict[str, Any]]:
    """Make an engine, one of another database, and a pool without an engine."""
    engine = create_engine(url_of(dsn, scheme="postgresql+psycopg2"))
    made = {
        "engine": (engine, lambda: engine.raw_connection().close()),
        "other database": (other := create_engine("sqlite://"), lambda: other.raw_connection().close()),
        "no engine": (bare := QueuePool(lambda: psycopg2.connect(dsn)), lambda: bare.connect().close()),
    }
    yield made
    for each, _use in made.values():
        each.dispose()


@pytest.mark.parametrize("spans", ["always", "off"])
@pytest.mark.parametrize("cls", [SimpleConnectionPool, ThreadedConnectionPool])
def test_psycopg2(dsn: str, spans: str, cls: Any) -> None:
    """A checkout from an excluded pool runs the two wrappers and nothing else."""
    with instrumented(spans=spans):
        pool = cls(1, 1, dsn)
        uninstrument_pool(pool)
        assert calls_in(lambda: pool.putconn(pool.getconn())) == {"getconn": 1, "putconn": 1}
        with pytest.raises(psycopg2.pool.PoolError):
            pool.putconn(object())
        pool.closeall()


def test_subclass_of_psycopg2(dsn: str) -> None:
    """No tracker is looked for more than once by each wrapper of a subclass."""
    with instrumented():
        pool = Subclass(1, 1, dsn)
        uninstrument_pool(pool)
        calls = calls_in(lambda: pool.putconn(pool.getconn()))
        assert "observes" not in calls
        assert calls.total() <= 8
        pool.closeall()


@pytest.mark.parametrize("name", ["engine", "other database", "no engine"])
@pytest.mark.parametrize("way", ["not selected", "excluded"])
def test_sqlalchemy(dsn: str, engines: dict[str, Any], name: str, way: str) -> None:
    """A checkout from an engine or a pool that is not observed runs a few wrappers, which compute nothing."""
    given, use = engines[name]
    observed = create_engine(url_of(dsn, scheme="postgresql+psycopg2"))
    with instrumented(pools=[] if way == "not selected" else None):
        instrument_pool(observed)
        use()
        if way == "excluded":
            uninstrument_pool(given)
        use()
        calls = calls_in(use)
        assert calls <= Counter(["raw_connection", "connect", "get", "end", "_checked_in"])
        with observed.connect():  # whose checkout is in progress while the other is made
            use()
        observed.dispose()


def test_selected_later(dsn: str) -> None:
    """A pool that was not observed can be selected, also in a later session."""
    pool, other = ThreadedConnectionPool(1, 1, dsn), ThreadedConnectionPool(1, 1, dsn)
    instrument_pool(other)
    pool.putconn(pool.getconn())
    assert not isinstance(vars(pool)[TRACKER_ATTR], PoolTracker)
    instrument_pool(pool)
    pool.putconn(pool.getconn())
    assert vars(pool)[TRACKER_ATTR].handed_out == 1
    uninstrument_pool(other)
    assert not isinstance(vars(other)[TRACKER_ATTR], PoolTracker)
    PgPoolInstrumentor().uninstrument()
    assert TRACKER_ATTR not in {*vars(pool), *vars(other)}
    with instrumented():
        assert isinstance(vars(pool)[TRACKER_ATTR], PoolTracker)
    pool.closeall()
    other.closeall()


def test_nothing_is_asked(session: InstrumentationSession) -> None:
    """A pool that is not to be tracked is marked before its adapter is asked anything; the end removes the mark."""
    pool = Pool()
    assert session.track(pool, Untold()) is None
    assert getattr(pool, TRACKER_ATTR) is session.unobserved
    assert not session.observes(pool, "fake")
    session.select(pool)
    assert TRACKER_ATTR not in vars(pool)
    assert session.observes(pool, "fake")
    session.exclude(pool)
    assert getattr(pool, TRACKER_ATTR) is session.unobserved
    session.end()
    assert TRACKER_ATTR not in vars(pool)
    assert not session.observes(pool, "other")
    assert TRACKER_ATTR not in vars(pool)


def test_copies(session: InstrumentationSession) -> None:
    """A marked pool can be copied and pickled; the copy has no mark."""
    pool = Pool()
    session.ignore(pool)
    for copied in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):  # noqa: S301 - our own
        assert getattr(copied, TRACKER_ATTR) is None


def test_pool_that_refuses_the_mark(session: InstrumentationSession) -> None:
    """A pool without room for the mark is not observed either."""
    assert not session.observes(object(), "fake")
    assert session.track(object(), Untold()) is None
