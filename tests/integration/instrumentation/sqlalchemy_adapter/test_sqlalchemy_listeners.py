"""Listeners of the application that raise before the hand-over: the connection is discarded, and the cause reported."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from tests.support.database import kill
from tests.support.sqlalchemy_drivers import ASYNCHRONOUS, driver_url
from tests.support.sqlalchemy_engines import borrow, driver, engine_tracker, listening

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from otel_pgpool.stats import PoolStats
    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals


def refuse(*_args: Any) -> None:
    raise ValueError("s3cret-word")


def misspell(conn: Any, *_args: Any) -> None:
    with conn.cursor() as cur:
        cur.execute("select s3cret_word")


def stats(engine: Engine) -> PoolStats:
    return engine_tracker(engine).stats()


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, StaticPool])
@pytest.mark.parametrize("name", ["connect", "checkout"])
@pytest.mark.parametrize(("listener", "error"), [(refuse, "ValueError"), (misspell, "UndefinedColumn")])
def test_error_of_the_program(  # noqa: PLR0917 - its parameters
    signals: Signals,
    instrumentation: None,
    engines: Engines,
    poolclass: type,
    name: str,
    listener: Any,
    error: str,
) -> None:
    """Each connection is discarded as one that failed its check, and one record names the listener and the error."""
    engine = engines(poolclass=poolclass)
    with listening(engine, name, listener):
        for _ in range(2):
            with pytest.raises((ValueError, exc.ProgrammingError)):
                engine.connect()
    after = stats(engine)
    assert (after.errors, after.created, after.discarded) == (2, 2, {"check_failed": 2})
    assert not engine_tracker(engine).slots
    (record,) = signals.logged("program_error")
    assert record.attributes["otel_pgpool.callback"] == f"{name} listener"
    assert record.attributes["error.type"] in (error, "42703")
    first, _second = signals.named("pool.checkout")
    assert record.span_context.span_id == first.get_span_context().span_id
    assert not signals.logged("outage_started")
    assert "s3cret" not in signals.everything()
    borrow(engine)
    assert stats(engine).discarded.get("check_failed") == 2


@pytest.mark.parametrize("name", ["connect", "checkout"])
def test_error_when_a_connection_is_replaced(
    signals: Signals, instrumentation: None, engines: Engines, name: str
) -> None:
    """A connection that replaces an invalidated one is discarded once, with the same record."""
    engine = engines(pool_size=1)
    with engine.connect() as conn:
        conn.invalidate()
    with listening(engine, name, refuse), pytest.raises(ValueError, match="s3cret-word"):
        engine.connect()
    assert stats(engine).discarded == {"returned_closed": 1, "check_failed": 1}
    (record,) = signals.logged("program_error")
    assert record.attributes["otel_pgpool.callback"] == f"{name} listener"


@pytest.mark.parametrize("name", ["connect", "checkout"])
def test_lost_in_a_listener(signals: Signals, instrumentation: None, engines: Engines, admin: Any, name: str) -> None:
    """A connection that is lost while a listener uses it is no error of the program."""

    def lose(conn: Any, *_args: Any) -> None:
        kill(admin, [conn.info.backend_pid])
        misspell(conn)

    engine = engines()
    with listening(engine, name, lose), pytest.raises(exc.OperationalError):
        engine.connect()
    assert stats(engine).discarded == {"broken": 1}
    assert len(signals.logged("connection_lost")) == 1
    assert not signals.logged("program_error")


def test_interrupted_listener(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An interrupt in a listener discards the connection, and is no error of the program."""

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    engine = engines()
    with listening(engine, "connect", interrupt), pytest.raises(KeyboardInterrupt):
        engine.connect()
    assert stats(engine).discarded == {"check_failed": 1}
    assert not signals.logged("program_error")


def test_interrupt_after_the_pool_has_the_connection(
    signals: Signals, instrumentation: None, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that an interrupt keeps from the caller gets back into the pool, and is not discarded."""
    engine = engines(pool_size=1)
    connect = engine.pool.connect
    pids = []

    def interrupted() -> Any:
        fairy = connect()
        pids.append(fairy.dbapi_connection.info.backend_pid)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.pool, "connect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.connect()
    assert stats(engine).discarded == {}
    with engine.connect() as conn:
        assert [driver(conn).info.backend_pid] == pids


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_asynchronous_engine(signals: Signals, instrumentation: None, dsn: str, name: str) -> None:
    """The listeners of asynchronous engines are reported alike."""

    def close_and_refuse(conn: Any, *_args: Any) -> None:
        conn.close()  # SQLAlchemy 1.4 and 2.0 only drop it
        refuse()

    async def program() -> None:
        engine = create_async_engine(driver_url(dsn, name))
        event.listen(engine.sync_engine, "connect", close_and_refuse)
        with pytest.raises(ValueError, match="s3cret-word"):
            await engine.connect()
        assert stats(engine.sync_engine).discarded == {"check_failed": 1}
        await engine.dispose()

    asyncio.run(program())
    (record,) = signals.logged("program_error")
    assert record.attributes["otel_pgpool.callback"] == "connect listener"
