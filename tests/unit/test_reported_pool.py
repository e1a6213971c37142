"""An instrumented pool as its observer sees it: its target and its connects, also while it is being set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from psycopg2 import OperationalError
from psycopg2.pool import PoolError

from otel_pgpool.driver.target import target_of_parameters
from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.observer import ARGUMENTS
from otel_pgpool.pool import registry
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.types import PoolErrorType
from tests.support.adapters import FakeAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from tests.support.telemetry import Signals

LATE = target_of_parameters({"host": "db.example", "port": "5433", "dbname": "shop"})


class Pool:
    """A pool, and a connection of it."""


@pytest.fixture
def session(signals: Signals) -> Iterator[InstrumentationSession]:
    options = InstrumentationOptions.of(
        tracer_provider=signals.tracer_provider, meter_provider=signals.meter_provider, long_hold=10
    )
    session = InstrumentationSession(options)
    session.watch.parked = False  # no thread is started
    yield session
    session.end()


def track(session: InstrumentationSession, pool: Any) -> PoolTracker:
    tracker = session.track(pool, FakeAdapter(), name="shop")
    assert tracker is not None
    return tracker


# A target that becomes known late


def test_spans_name_a_target_that_becomes_known(session: InstrumentationSession, signals: Signals) -> None:
    """The spans that start from then on have the address, the port and the database."""
    pool = Pool()
    tracker = track(session, pool)
    for _ in range(2):
        tracker.acquired(checkout := tracker.start(()), conn := Pool())
        tracker.released(checkout)
        tracker.target_known(LATE)
    keys = ("server.address", "server.port", "db.namespace")
    spans = [dict(span.attributes or {}) for span in signals.named("pool.checkout")]
    assert [tuple(span.get(key) for key in keys) for span in spans] == [("", None, ""), ("db.example", 5433, "shop")]
    assert conn is not None


def test_a_target_that_becomes_known_during_a_checkout(session: InstrumentationSession, signals: Signals) -> None:
    """The lock of long holds and the limit on records of timeouts are the same afterwards."""
    pool = Pool()
    tracker = track(session, pool)
    lock = tracker._observer._lock
    for _ in range(3):
        tracker.failed(tracker.start(()), PoolError("connection pool exhausted"), PoolErrorType.TIMEOUT)
        tracker.target_known(LATE)
    assert len([record for record in signals.records.all if record.event == "timeout"]) == 1
    assert tracker._observer._lock is lock


# Callbacks of the program


def test_an_error_of_a_callback(session: InstrumentationSession, signals: Signals) -> None:
    """A record names the callback and the error, once a minute for each callback, beside that of a refusal."""
    tracker = track(session, pool := Pool())
    for error, callback, is_connected in (
        (ValueError("secret-word"), "configure", True),
        (ValueError("secret-word"), "configure", True),
        (KeyError("secret-word"), "kwargs", False),
        (TypeError("secret-word"), ARGUMENTS, False),
        (KeyboardInterrupt(), "configure", True),
        (OperationalError("FATAL:  no such database: shop"), "", False),
    ):
        tracker.connect_failed(monotonic(), error, callback=callback, is_connected=is_connected)
    tracker.callback_failed("check", ValueError("secret-word"))
    tracker.report_connects()
    records = [record for record in signals.records.all if record.event in ("program_error", "connect_refused")]
    texts = [record.record.getMessage().removeprefix("pool shop: ") for record in records]
    assert texts == [
        "a connection cannot be handed out: the callback check raised ValueError; correct the callback",
        "a new connection cannot be used: the callback configure raised ValueError; correct the callback",
        "no connection can be made: the callback kwargs raised KeyError; correct the callback",
        "no connection can be made: the connect raised TypeError before it reached a server; correct its arguments",
        "the database cannot be reached with these arguments: FATAL:  no such database: ...",
    ]
    assert [record.attributes.get("otel_pgpool.callback") for record in records] == [
        *("check", "configure", "kwargs", "connect", None)
    ]
    assert not signals.logged("outage_started")
    assert tracker.stats().status == "ok"
    assert "secret-word" not in signals.everything()
    assert pool


# The set-up


def test_fork_during_the_set_up(
    session: InstrumentationSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracker that is registered at the moment of a fork, and used by nobody yet, is reset in the child."""
    register = registry.register

    def register_and_fork(*args: Any) -> str:
        name = register(*args)
        registry._after_fork()
        return name

    monkeypatch.setattr(registry, "register", register_and_fork)
    monkeypatch.setattr(FakeAdapter, "inherited", 3)
    pool = Pool()
    tracker = track(session, pool)
    assert "could not reset" not in caplog.text
    assert tracker.stats().discarded == {"forked": 3}


# Connects


class Choosy(FakeAdapter):
    """An adapter with an answer of its own to whether the server refused a connection."""

    def is_refusal(self, error: BaseException) -> bool:
        return isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    ("error", "events"),
    [
        (RuntimeError("no"), ["connect_failed", "connect_refused"]),
        (OperationalError("FATAL:  no such database: shop"), ["connect_failed", "outage_started"]),
    ],
)
def test_the_adapter_says_what_is_a_refusal(
    session: InstrumentationSession, signals: Signals, error: Exception, events: list[str]
) -> None:
    """Its answer decides between an outage and a refusal, whatever psycopg2's errors mean elsewhere."""
    pool = Pool()
    tracker = session.track(pool, Choosy(), name="shop")
    assert tracker is not None
    tracker.connect_failed(monotonic(), error)
    tracker.report_connects()
    assert [record.event for record in signals.records.all] == events


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (asyncpg.exceptions.InvalidPasswordError(), "the database cannot be reached with these arguments"),
        (asyncpg.exceptions.InvalidCatalogNameError(), "the database cannot be reached with these arguments"),
        (asyncpg.exceptions.UndefinedTableError(), "a new connection cannot be used"),
    ],
)
def test_refused_login_with_an_sqlstate(
    session: InstrumentationSession, signals: Signals, error: Any, told: str
) -> None:
    """Drivers other than psycopg2 know the SQLSTATE of a refused login, which is no query that the server refused."""
    pool = Pool()
    adapter = Choosy()
    adapter.is_refusal = lambda _error: True  # type: ignore[method-assign]
    tracker = session.track(pool, adapter, name="shop")
    assert tracker is not None
    tracker.connect_failed(monotonic(), error)
    tracker.report_connects()
    (record,) = signals.logged("connect_refused")
    assert record.record.getMessage() == f"pool shop: {told}: {error.sqlstate}"


def test_duration_of_an_outage(session: InstrumentationSession, signals: Signals) -> None:
    """It counts from the beginning of the first attempt that failed, as that of the package's own pool does."""
    pool = Pool()
    tracker = track(session, pool)
    tracker.connect_failed(monotonic() - 60.0, OSError())
    tracker.connect_failed(monotonic() - 20.0, OSError())
    tracker.connected(monotonic(), conn := Pool())
    tracker.report_connects()
    (ended,) = [record for record in signals.records.all if record.event == "outage_ended"]
    assert round(ended.attributes["otel_pgpool.duration"]) == 60
    assert conn is not None
