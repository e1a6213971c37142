"""Checkouts that leave neither span nor record: what is counted, and what is reported once something happens."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc
from sqlalchemy.pool import AssertionPool, NullPool, SingletonThreadPool, StaticPool

from otel_pgpool.instrumentation import uninstrument_pool
from tests.support.call_sites import shown_name
from tests.support.database import kill
from tests.support.processes import in_child
from tests.support.sqlalchemy_drivers import IS_1_4
from tests.support.sqlalchemy_engines import borrow, driver, engine_tracker, hooked, listening, waits
from tests.support.telemetry import MOMENT, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection
    from sqlalchemy.engine import Engine

    from otel_pgpool.stats import PoolStats
    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals

ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": PATIENCE}


@pytest.fixture(autouse=True)
def light(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Instrument without spans and without histograms."""
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")
    with hooked(signals, spans="off", long_hold=PATIENCE):
        yield
    assert not [each for each in signals.records.all if "raised" in each.record.getMessage()]


def stats(engine: Engine) -> PoolStats:
    return engine_tracker(engine).stats()


def events(signals: Signals) -> list[str]:
    """Return the reported events, in their order."""
    return [vars(each.record)["otel_pgpool.event"] for each in signals.records.all]


def test_ordinary_checkout(engines: Engines) -> None:
    """It has no record, except in SQLAlchemy 1.4, and is counted with its wait and its hold."""
    engine = engines(**ONE)
    borrow(engine)
    waited = stats(engine).wait_seconds
    with engine.connect() as conn:
        tracker = engine_tracker(engine)
        assert (len(tracker.light), len(tracker.held)) == ((0, 1) if IS_1_4 else (1, 0))
        held = tracker.stats()
        assert (held.used, held.idle) == (1, 0)
        assert held.oldest_hold > 0
        assert driver(conn).info.backend_pid
    after = stats(engine)
    assert (tracker.light, tracker.held) == ({}, {})
    assert (after.used, after.idle, after.created) == (0, 1, 1)
    assert after.checkouts == {"idle": 1, "queued": 0, "new": 1}
    assert after.hold_seconds > held.hold_seconds
    assert after.wait_seconds > waited


def test_wait(signals: Signals, engines: Engines) -> None:
    """A caller who waits is counted at once, and has queued."""
    engine = engines(**ONE)
    borrow(engine)
    with engine.connect():
        waiter = in_thread(borrow, engine)
        until(waits(engine))
        before = stats(engine)
        assert (before.queued, before.waiting) == (1, 1)
    waiter.result(PATIENCE)
    after = stats(engine)
    assert after.checkouts == {"idle": 1, "queued": 1, "new": 1}
    assert (after.waiting, after.used) == (0, 0)


def test_timeout(signals: Signals, engines: Engines) -> None:
    """The log record of a timeout names the holder, its backend and its line."""
    engine = engines(**{**ONE, "pool_timeout": MOMENT})
    borrow(engine)
    with engine.connect() as conn:
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        (record,) = signals.logged("timeout")
        text = record.record.getMessage()
        assert f"pid {driver(conn).info.backend_pid}" in text
        assert "test_timeout" in text
    after = stats(engine)
    assert (after.timeouts, after.used, after.queued) == (1, 0, 1)


def test_long_hold(signals: Signals, engines: Engines) -> None:
    """A long hold is reported while it lasts and when it ends, with the lines of the program only."""
    engine = engines()
    borrow(engine)
    with engine.connect():
        engine_tracker(engine).long_hold = 0.0
        (record,) = until(lambda: signals.logged("long_hold"))
    assert record.attributes["otel_pgpool.checked_out_at"].splitlines()[0].endswith(" test_long_hold")
    assert "/sqlalchemy/" not in record.attributes["otel_pgpool.checked_out_at"]
    assert stats(engine).long_holds == 1
    assert until(lambda: signals.logged("long_hold_returned"))


def test_long_hold_that_ends_at_once(signals: Signals, engines: Engines) -> None:
    """A hold that was long is counted at its release, if the watching thread has not seen it yet."""
    engine = engines()
    raw = engine.raw_connection()
    raw.close()
    raw = engine.raw_connection()
    engine_tracker(engine).long_hold = 0.0
    raw.close()
    assert stats(engine).long_holds == 1


def test_pre_ping(engines: Engines, admin: connection) -> None:
    """A dead connection that is replaced is a retry, and the path is that of a new connection."""
    engine = engines(pool_pre_ping=True)
    kill(admin, [borrow(engine)])
    borrow(engine)
    after = stats(engine)
    assert (after.retries, after.discarded) == (1, {"broken": 1})
    assert after.checkouts == {"idle": 0, "queued": 0, "new": 2}


def test_dropped(signals: Signals, engines: Engines) -> None:
    """A connection that its holder drops is reclaimed, and the record has the holder's line."""
    engine = engines()
    borrow(engine)

    def drop() -> None:
        engine.raw_connection()

    drop()
    gc.collect()
    (record,) = until(lambda: signals.logged("reclaimed"))
    place = record.attributes["otel_pgpool.checked_out_at"].splitlines()[0]
    assert place.endswith(f" {shown_name(drop.__qualname__)}")
    after = stats(engine)
    assert (after.used, after.idle) == (0, 1)


@pytest.mark.parametrize("has_reason", [True, False])
def test_invalidated(signals: Signals, engines: Engines, has_reason: bool) -> None:
    """A connection that is invalidated while it is held is closed; with a reason it was lost."""
    engine = engines()
    borrow(engine)
    with engine.connect() as conn:
        conn.invalidate(ConnectionResetError() if has_reason else None)
        assert stats(engine).used == 0
    assert stats(engine).discarded == {"broken" if has_reason else "returned_closed": 1}
    assert len(signals.logged("connection_lost")) == has_reason


def test_closed_by_its_holder(engines: Engines) -> None:
    """A connection that comes back closed ends its hold."""
    engine = engines(pool_reset_on_return=None)
    borrow(engine)
    raw: Any = engine.raw_connection()
    raw.dbapi_connection.close()
    raw.close()
    tracker = engine_tracker(engine)
    assert (tracker.light, tracker.held) == ({}, {})


def test_detached(engines: Engines) -> None:
    """A detached connection is the program's own."""
    engine = engines()
    borrow(engine)
    with engine.connect() as conn:
        conn.detach()
        assert stats(engine).used == 0
    assert stats(engine).discarded == {"returned_closed": 1}


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, SingletonThreadPool, AssertionPool])
def test_other_pools(engines: Engines, poolclass: type) -> None:
    """The levels of each kind of pool count what is held."""
    engine = engines(poolclass=poolclass)
    borrow(engine)
    with engine.connect():
        assert stats(engine).used == 1
    assert stats(engine).used == 0
    assert sum(stats(engine).checkouts.values()) == 2


@pytest.mark.parametrize("last_first", [True, False])
def test_one_connection_for_all(engines: Engines, last_first: bool) -> None:
    """Each hand-over of a static pool's only connection ends the hold before it."""
    engine = engines(poolclass=StaticPool)
    borrow(engine)
    raws = [engine.raw_connection() for _ in range(3)]
    assert stats(engine).used == 1
    for raw in reversed(raws) if last_first else raws:
        raw.close()
    tracker = engine_tracker(engine)
    assert (tracker.light, tracker.held) == ({}, {})
    assert sum(stats(engine).checkouts.values()) == 4


def test_the_same_thread_again(engines: Engines) -> None:
    """A thread that takes its own connection again has a second checkout; the hold lasts to the last release."""
    engine = engines(poolclass=SingletonThreadPool)
    borrow(engine)
    first, second = engine.raw_connection(), engine.raw_connection()
    second.close()
    assert stats(engine).used == 1
    first.close()
    assert stats(engine).used == 0
    assert sum(stats(engine).checkouts.values()) == 3


def test_refused(engines: Engines) -> None:
    """A checkout that fails without a wait or a connect is counted."""
    engine = engines(poolclass=AssertionPool)
    borrow(engine)
    with engine.connect(), pytest.raises(AssertionError):
        engine.connect()
    after = stats(engine)
    assert (after.errors, after.used) == (1, 0)


def test_interrupted(engines: Engines) -> None:
    """An interrupt in a listener ends the checkout as an error, and the next checkout is as before."""
    engine = engines(**ONE)
    borrow(engine)

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    with listening(engine, "checkout", interrupt), pytest.raises(KeyboardInterrupt):
        engine.connect()
    after = stats(engine)
    assert (after.errors, after.used) == (1, 0)
    assert borrow(engine)


def test_another_engine_in_a_listener(engines: Engines) -> None:
    """Each engine has its own checkouts, also inside of one another."""
    other, engine = engines(pool_logging_name="other"), engines()
    event.listen(engine, "checkout", lambda *_args: borrow(other))
    for _ in range(2):
        borrow(engine)
    assert stats(engine).checkouts == stats(other).checkouts == {"idle": 1, "queued": 0, "new": 1}


def test_excluded_while_held(signals: Signals, engines: Engines) -> None:
    """The release of a connection whose pool is no longer observed is not reported, and no error."""
    engine = engines()
    borrow(engine)
    with engine.connect():
        uninstrument_pool(engine)
    assert borrow(engine)
    assert {*events(signals)} == {"connected"}


def test_fork(engines: Engines) -> None:
    """A child counts the connections that its parent had checked out as the parent's, and connects anew."""
    engine = engines()
    borrow(engine)
    with engine.connect() as held:
        pid = driver(held).info.backend_pid

        def child() -> str:
            forked = stats(engine).discarded.get("forked")
            held.close()
            other = borrow(engine)
            return f"{forked} {other != pid} {stats(engine).used}"

        assert in_child(child) == "1 True 0"
        assert stats(engine).used == 1
    assert borrow(engine) == pid
