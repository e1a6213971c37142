"""A connect that a living server refuses is told as that: no outage begins, and one that went on has ended."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from otel_pgpool.telemetry import logs
from tests.support.instrumentation import instrumented, tracker_of
from tests.support.sqlalchemy_engines import borrow, engine_tracker
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.sqlalchemy_engines import Engines
    from tests.support.telemetry import Signals


@pytest.fixture(autouse=True)
def nothing_told_yet() -> Iterator[None]:
    logs._logged_again.clear()
    yield
    logs._logged_again.clear()


def told(signals: Signals) -> list[tuple[int, str]]:
    """Level and event of what somebody should hear of."""
    return [
        (each.record.levelno, each.event)
        for each in signals.records.all
        if each.record.levelno >= logging.INFO and each.event is not None
    ]


def exhaust(pool: ThreadedConnectionPool) -> None:
    while True:
        pool.getconn()


def test_stock_pool(signals: Signals, dsn: str) -> None:
    """A database that does not exist: a warning with the server's words, no outage, and the pool is not unreachable.

    The name of the database is not told: the pool was made with another one.
    """
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(0, 1, dsn)
        pool._kwargs["dbname"] = "no_such_database"
        for _ in range(3):
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn()
        assert told(signals) == [(logging.WARNING, "connect_refused")]
        (record,) = signals.logged("connect_refused")
        assert 'database "..." does not exist' in record.record.getMessage()
        assert record.attributes["error.type"] == "OperationalError"
        assert tracker_of(pool).stats().status == "ok"
        del pool._kwargs["dbname"]
        pool.putconn(pool.getconn())
        assert len(told(signals)) == 1


def test_probe_for_a_database(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """Programs probe with an engine for each look: one warning a minute for all of them, and no error."""
    url = url_of(dsn, scheme="postgresql+psycopg2", dbname="no_such_database")
    for _ in range(3):
        engine = engines(url, poolclass=NullPool)
        with pytest.raises(OperationalError):
            engine.connect()
        assert engine_tracker(engine).stats().status == "ok"
        engines._made.clear()
        del engine
        gc.collect()
    assert told(signals) == [(logging.WARNING, "connect_refused")]


def test_outage_that_ends_with_a_refusal(signals: Signals, own_server: PostgresServer) -> None:
    """Who is refused has reached the server: the outage is over, and what refuses is said."""
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(0, 1, own_server.dsn)
        own_server.stop()
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn()
        assert tracker_of(pool).stats().status == "unreachable"
        own_server.start()
        pool._args = (url_of(own_server.dsn, user="nobody_knows_me"),)
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn()
        assert tracker_of(pool).stats().status == "ok"
        pool._args = (own_server.dsn,)
        pool.putconn(pool.getconn())
        pool.closeall()
    assert [event for _level, event in told(signals)] == ["outage_started", "connect_refused", "outage_ended"]


def test_server_that_serves_nobody(signals: Signals, own_server: PostgresServer) -> None:
    """One that has no connection left for anybody cannot be reached, though it answers."""
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(0, 200, own_server.dsn)
        with pytest.raises(psycopg2.OperationalError, match=r"slots|too many"):
            exhaust(pool)
        assert tracker_of(pool).stats().status == "unreachable"
        assert [event for _level, event in told(signals) if not event.startswith("utilization")] == ["outage_started"]
        pool.closeall()


def test_engine(signals: Signals, instrumentation: None, engines: Engines, dsn: str) -> None:
    """An engine whose role does not exist, and one whose creator meets the same."""
    wrong = url_of(dsn, user="nobody_knows_me")
    for engine in (
        engines(url_of(wrong, scheme="postgresql+psycopg2")),
        engines(creator=lambda: psycopg2.connect(wrong), pool_logging_name="made"),
    ):
        with pytest.raises((OperationalError, psycopg2.OperationalError)):
            borrow(engine)
        assert engine_tracker(engine).stats().status == "ok"
    assert told(signals) == [(logging.WARNING, "connect_refused")] * 2


@pytest.mark.parametrize("scheme", ["psycopg2", "psycopg", "pg8000"])
def test_wrong_arguments_of_an_engine(
    signals: Signals, instrumentation: None, engines: Engines, dsn: str, scheme: str
) -> None:
    """Arguments with which no connect can begin are the program's fault, whatever the driver: no outage."""
    engine = engines(url_of(dsn, scheme=f"postgresql+{scheme}"), connect_args={"nonsense": 1})
    with pytest.raises((TypeError, ProgrammingError)):
        borrow(engine)
    assert told(signals) == [(logging.ERROR, "program_error")]


def test_wrong_arguments_of_a_pool(signals: Signals, instrumentation: None, dsn: str) -> None:
    """The same for a pool of psycopg2."""
    pool = ThreadedConnectionPool(0, 1, dsn)
    pool._kwargs["nonsense"] = 1
    with pytest.raises(psycopg2.ProgrammingError):
        pool.getconn()
    assert told(signals) == [(logging.ERROR, "program_error")]
