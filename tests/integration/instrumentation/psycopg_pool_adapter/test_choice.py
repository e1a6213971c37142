"""Which pools are instrumented: kinds of pools, and single pools."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine

from otel_pgpool import ConnectionPool as OwnPool
from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.instrumentation import ADAPTERS, instrument_pool, uninstrument_pool
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.installed_adapters import find_pool
from otel_pgpool.instrumentation.options import chosen_kinds
from otel_pgpool.instrumentation.tracker import PoolTracker
from tests.support.calls import calls_in, counted
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
        (None, {"OTEL_PGPOOL_POOLS": "c"}, {"a", "b"}),
        ([], {"OTEL_PGPOOL_POOLS": "a"}, set()),
        ("none", {"OTEL_PGPOOL_POOLS": "a"}, set()),
        (("b",), {}, {"b"}),
        ("a", {}, {"a"}),
        ("c", {}, {"a", "b"}),
        ("b,c", {}, {"b"}),
        (" A ", {}, {"a"}),
        (7, {}, {"a", "b"}),
        ([7, "a"], {}, {"a"}),
        ([["a"]], {}, {"a", "b"}),
    ],
)
def test_choice(value: object, environ: dict[str, str], expected: set[str]) -> None:
    """Of known and unknown names the known ones count; without a known one all kinds do. A text is split."""
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


@pytest.mark.parametrize("given_by", ["engine", "pool", "options"])
def test_engine_that_replaces_its_pool(signals: Signals, dsn: str, given_by: str) -> None:
    """The choice of an engine is kept when it is disposed of, before its first checkout and after, and can change."""
    engine = create_engine(url_of(dsn, scheme="postgresql+psycopg2"), pool_logging_name="shop")
    branch = engine.execution_options()  # kept, because it stands for the engine

    def given() -> Any:
        return {"engine": engine, "pool": engine.pool, "options": branch}[given_by]

    def checkouts() -> int:
        before = len(signals.named("pool.checkout"))
        for _ in range(2):
            engine.dispose()
            engine.connect().close()
        return len(signals.named("pool.checkout")) - before

    with instrumented(signals, pools=[]):
        instrument_pool(given())
        assert isinstance(vars(engine.pool).get("_otel_pgpool"), PoolTracker)
        assert checkouts() == 2
        uninstrument_pool(given())
        assert checkouts() == 0
    with instrumented(signals):
        uninstrument_pool(given())
        assert checkouts() == 0
        instrument_pool(given())
        assert checkouts() == 2
    engine.dispose()


def test_pools_of_asyncpg_are_kept_too(dsn: str, signals: Signals) -> None:
    """``instrument()`` continues with a selected pool of every kind."""

    async def main() -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            instrument_pool(pool)
            with instrumented(signals, pools=[]):
                async with pool.acquire():
                    pass

    asyncio.run(main())
    assert len(signals.named("pool.checkout")) == 1
    assert not [each for each in signals.records.all if each.record.levelname == "ERROR"]


def test_excluded_before(signals: Signals, old: Pool, new: Pool) -> None:
    """``instrument()`` keeps what was excluded before it, whether or not another pool was selected."""
    uninstrument_pool(old)
    with instrumented(signals):
        assert not is_observed(old)
    instrument_pool(new)
    uninstrument_pool(old)
    with instrumented(signals):
        assert not is_observed(old)
        assert is_observed(new)
    with instrumented(signals):
        assert is_observed(old)


def test_uninstrument_without_instrument(new: Pool) -> None:
    """``uninstrument()`` ends what ``instrument_pool()`` has started."""
    before = dict(vars(ConnectionPool))
    instrument_pool(new)
    assert dict(vars(ConnectionPool)) != before
    PgPoolInstrumentor().uninstrument()
    assert not is_observed(new)
    assert dict(vars(ConnectionPool)) == before


@pytest.mark.parametrize("make", [object, lambda: "pool", lambda: OwnPool(0, 1, "host=x")])
def test_no_pool(make: Any) -> None:
    """Anything else is a TypeError that names what is accepted; a pool of this package reports itself."""
    for function in (instrument_pool, uninstrument_pool):
        with pytest.raises(TypeError, match="expected a pool of asyncpg, psycopg2, psycopg_pool, sqlalchemy, not "):
            function(make())


def test_adapters_of_other_libraries(old: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Only adapters of the pool's own library are imported; one that cannot be imported is logged."""
    broken = "no_such_module:Adapter"
    real = ADAPTERS["psycopg2.pool"]
    assert find_pool({"sqlalchemy": broken, "psycopg2.pool": real}, old).pool is old
    assert caplog.records == []
    assert find_pool({"psycopg2": broken, "psycopg2.pool": real}, old) == ("psycopg2.pool", old, None)
    (record,) = caplog.records
    assert record.getMessage().startswith("failed to import the adapter of psycopg2")
    with pytest.raises(TypeError, match="expected a pool of psycopg2, not ThreadedConnectionPool"):
        find_pool({"psycopg2": broken}, old)


def test_uninstrument_pool_that_is_not_observed(new: Pool) -> None:
    uninstrument_pool(new)
    assert not PgPoolInstrumentor().is_instrumented_by_opentelemetry


# Releases without a private name


@pytest.mark.parametrize("table", [private.METHODS, private.ATTRIBUTES])
def test_name_that_is_gone(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, table: dict[type, tuple[str, ...]]
) -> None:
    """The pools of a release without one of the names stay uninstrumented, with one record, and work."""
    monkeypatch.setitem(table, ConnectionPool, ("_of_old",))
    before = dict(vars(ConnectionPool))
    with instrumented(signals), opened(ConnectionPool, dsn, 1) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
        assert vars(ConnectionPool) == before
        assert "_otel_pgpool" not in vars(pool)
    (record,) = signals.records.all
    assert "failed to instrument the pools of psycopg_pool; they stay uninst" in record.record.getMessage()
    assert not signals.spans.started


@pytest.mark.parametrize("owner", [*private.METHODS])
def test_each_name(monkeypatch: pytest.MonkeyPatch, owner: type) -> None:
    """Each class is looked at, where its methods are inherited too."""
    private.check_names()
    monkeypatch.setitem(private.METHODS, owner, (*private.METHODS[owner], "_of_old"))
    with pytest.raises(AttributeError, match="_of_old"):
        private.check_names()


# Pools that are not observed, beside others that are


@pytest.mark.parametrize("spans", ["always", "off"])
@pytest.mark.parametrize("way", ["not selected", "excluded"])
def test_cost_of_a_pool_that_is_not_observed(dsn: str, way: str, spans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout runs the wrappers, which compute nothing."""
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", spans)
    with opened(ConnectionPool, dsn, 1, name="other") as other, opened(ConnectionPool, dsn, 1) as pool:
        with instrumented(pools=[] if way == "not selected" else None, spans=spans):
            instrument_pool(other)
            if way == "excluded":
                uninstrument_pool(pool)
            pool.putconn(pool.getconn())
            calls = calls_in(lambda: pool.putconn(pool.getconn()))
            assert calls == {"getconn": 1, "putconn": 1}
            instrument_pool(pool)
            pool.putconn(pool.getconn())
            assert is_observed(pool)
        assert "_otel_pgpool" not in vars(pool)


def test_cost_beside_a_pool_with_a_check(dsn: str) -> None:
    """The call of a check is wrapped once a pool has one; of pools without it, one question is asked."""
    original = ConnectionPool._check_connection
    with instrumented(), opened(ConnectionPool, dsn, 1) as pool:
        assert ConnectionPool._check_connection is original
        with opened(ConnectionPool, dsn, 1, check=lambda conn: None, name="other") as other, other.connection():
            assert ConnectionPool._check_connection is not original
        uninstrument_pool(pool)
        calls = calls_in(lambda: pool.putconn(pool.getconn()))
        assert calls == {"getconn": 1, "method": 1, "checking": 1, "has_check": 1, "putconn": 1}
    assert ConnectionPool._check_connection is original


def test_cost_of_a_pool_for_asyncio_that_is_not_observed(dsn: str) -> None:
    """A checkout asks once in each wrapper whether the pool is observed, and computes nothing."""

    async def test() -> None:
        async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            await pool.wait()
            with instrumented():
                uninstrument_pool(pool)
                await pool.putconn(await pool.getconn())
                with counted() as calls:
                    await pool.putconn(await pool.getconn())
                assert calls.keys() <= {"getconn", "putconn", "tracker_of"}

    asyncio.run(test())


def test_names_of_distributions() -> None:
    """A kind may be named as its distribution is."""
    assert chosen_kinds("psycopg-pool", {"psycopg_pool", "asyncpg"}, {}) == {"psycopg_pool"}
