"""Which pools are instrumented: kinds of pools, and single pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine

from otel_pgpool import ConnectionPool as OwnPool
from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.options import chosen_kinds
from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.instrumentation import instrumented, tracker_of
from tests.support.psycopg_pools import opened
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.telemetry import Signals

Pool = Any


@pytest.fixture
def old(dsn: str) -> Iterator[Pool]:
    """Make a pool of psycopg2."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    yield pool
    pool.closeall()


@pytest.fixture
def new(dsn: str) -> Iterator[Pool]:
    """Open a pool of psycopg_pool."""
    with opened(ConnectionPool, dsn, 1, name="new") as pool:
        yield pool


def is_observed(pool: Pool) -> bool:
    """Use a pool, and return whether the checkout was counted."""
    pool.putconn(pool.getconn())
    return isinstance(vars(pool).get("_otel_pgpool"), PoolTracker) and tracker_of(pool).handed_out > 0


# Kinds


def test_argument(signals: Signals, old: Pool, new: Pool) -> None:
    """``pools`` limits the instrumentation to the named kinds."""
    with instrumented(signals, pools=["psycopg_pool"]):
        assert is_observed(new)
        assert not is_observed(old)
    with instrumented(signals, pools=("psycopg2", "sqlalchemy")):
        assert is_observed(old)
        assert not is_observed(new)


def test_variable(signals: Signals, old: Pool, new: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``OTEL_PGPOOL_POOLS`` does the same, and an argument overrides it."""
    monkeypatch.setenv("OTEL_PGPOOL_POOLS", " psycopg2 , sqlalchemy")
    with instrumented(signals):
        assert is_observed(old)
        assert not is_observed(new)
    with instrumented(signals, pools=["psycopg_pool"]):
        assert is_observed(new)


def test_unknown_name(signals: Signals, old: Pool, new: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name is logged with the option, the value and what is accepted; the others count."""
    with instrumented(signals, pools=["psycopg3", "psycopg2"]):
        assert is_observed(old)
        assert not is_observed(new)
    (record,) = [each.record for each in signals.records.all if each.record.levelname == "ERROR"]
    assert record.getMessage().startswith(
        "pools must be a list of names among asyncpg, psycopg2, psycopg_pool, sqlalch"
    )
    assert "not 'psycopg3'" in record.getMessage()


@pytest.mark.parametrize(
    ("value", "environ", "expected"),
    [
        (None, {}, {"a", "b"}),
        (None, {"OTEL_PGPOOL_POOLS": ""}, {"a", "b"}),
        (None, {"OTEL_PGPOOL_POOLS": "a,,"}, {"a"}),
        (None, {"OTEL_PGPOOL_POOLS": "c"}, set()),
        ([], {"OTEL_PGPOOL_POOLS": "a"}, set()),
        (("b",), {}, {"b"}),
        ("a", {}, {"a", "b"}),
        (7, {}, {"a", "b"}),
        ([7, "a"], {}, {"a"}),
    ],
)
def test_choice(value: object, environ: dict[str, str], expected: set[str]) -> None:
    """Of names that are known and unknown the known ones count; what is no list of names does not."""
    assert chosen_kinds(value, {"a", "b"}, environ) == expected


# Single pools


def test_single_pools(old: Pool, new: Pool, dsn: str) -> None:
    """Without ``instrument()`` only the given pools are observed, and nothing is left after the last one."""
    before = dict(vars(ConnectionPool)), dict(vars(ThreadedConnectionPool))
    other = ThreadedConnectionPool(1, 1, dsn)
    instrument_pool(new)
    instrument_pool(old)
    assert is_observed(new)
    assert is_observed(old)
    assert not is_observed(other)
    uninstrument_pool(new)
    assert not is_observed(new)
    assert is_observed(old)
    uninstrument_pool(old)
    assert not is_observed(old)
    assert (dict(vars(ConnectionPool)), dict(vars(ThreadedConnectionPool))) == before
    other.closeall()


def test_connections_of_single_pools(dsn: str) -> None:
    """Each pool has the levels of its connections from the first moment, also one that is observed again."""
    with opened(ConnectionPool, dsn, 2, name="a") as first, opened(ConnectionPool, dsn, 2, name="b") as second:
        pools = first, second
        held = [pool.getconn() for pool in pools]
        for pool in pools:
            instrument_pool(pool)
        assert [(tracker_of(pool).stats().used, tracker_of(pool).stats().idle) for pool in pools] == [(1, 1)] * 2
        uninstrument_pool(second)
        instrument_pool(second)
        assert tracker_of(second).stats().used == 1
        for pool, conn in zip(pools, held, strict=True):
            conn.close()
            pool.putconn(conn)
            assert tracker_of(pool).discards == {"returned_closed": 1}
            uninstrument_pool(pool)


def test_single_pool_beside_a_kind(signals: Signals, old: Pool, new: Pool) -> None:
    """A pool of a kind that was not chosen can be added."""
    with instrumented(signals, pools=["psycopg_pool"]):
        instrument_pool(old)
        assert is_observed(old)
        assert is_observed(new)
    assert not is_observed(old)


def test_all_but_one(signals: Signals, dsn: str, new: Pool) -> None:
    """A pool can be left out; its open checkouts end, and it can be added again."""
    with instrumented(signals), opened(ConnectionPool, dsn, 1, name="other") as other:
        conn = new.getconn()
        uninstrument_pool(new)
        assert len(signals.named("pool.checkout")) == 1
        new.putconn(conn)
        assert not is_observed(new)
        assert is_observed(other)
        instrument_pool(new)
        assert is_observed(new)


def test_later_instrument(signals: Signals, new: Pool, old: Pool) -> None:
    """``instrument()`` continues with the single pools, and ``uninstrument()`` ends them too."""
    instrument_pool(new)
    with instrumented(signals, pools=["psycopg2"]):
        assert is_observed(new)
        assert is_observed(old)
        assert len(signals.named("pool.checkout")) == 2
    assert not is_observed(new)


def test_engine(signals: Signals, dsn: str) -> None:
    """An engine of SQLAlchemy stands for its pool."""
    engine = create_engine(url_of(dsn, scheme="postgresql+psycopg2"), pool_logging_name="shop")
    with instrumented(signals, pools=[]):
        instrument_pool(engine)
        with engine.connect():
            pass
        assert len(signals.named("pool.checkout")) == 1
        uninstrument_pool(engine.pool)
        with engine.connect():
            pass
        assert len(signals.named("pool.checkout")) == 1
    engine.dispose()


@pytest.mark.parametrize("make", [object, lambda: "pool", lambda: OwnPool(0, 1, "host=x")])
def test_no_pool(make: Any) -> None:
    """Anything else is a TypeError that names what is accepted; a pool of this package reports itself."""
    for function in (instrument_pool, uninstrument_pool):
        with pytest.raises(TypeError, match="expected a pool of asyncpg, psycopg2, psycopg_pool, sqlalchemy, not "):
            function(make())


def test_uninstrument_pool_that_is_not_observed(new: Pool) -> None:
    uninstrument_pool(new)
    assert not PgPoolInstrumentor().is_instrumented_by_opentelemetry
