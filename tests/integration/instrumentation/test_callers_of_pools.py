"""Waits, holds and held connections of instrumented pools by the caller, with ``OTEL_PGPOOL_CALLER=1``."""

from __future__ import annotations

import ast
import logging
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.trace import SpanKind
from psycopg2.pool import ThreadedConnectionPool

from tests.support.instrumentation import instrumented, name_of, tracker_of
from tests.support.monitored_pools import KINDS, opened
from tests.support.processes import in_child
from tests.support.sqlalchemy_drivers import allow_quick_passwords
from tests.support.sqlalchemy_engines import Engines, select
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from tests.support.telemetry import Signals

CALLER = "otel_pgpool.caller"
HELD, WAIT_TIME, USE_TIME = (
    "otel_pgpool.connections.held",
    "db.client.connection.wait_time",
    "db.client.connection.use_time",
)


@pytest.fixture(autouse=True)
def by_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PGPOOL_CALLER", "1")


def points(signals: Signals, metric: str) -> list[Any]:
    found = signals.metrics().get(metric)
    return [] if found is None else list(found.data.data_points)


def held(signals: Signals) -> dict[str, int]:
    return {point.attributes[CALLER]: point.value for point in points(signals, HELD)}


def callers(signals: Signals, histogram: str) -> dict[str, int]:
    return {point.attributes[CALLER]: point.count for point in points(signals, histogram)}


@pytest.mark.parametrize("spans", ["always", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, spans: str, dsn: str, signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry span of the caller, also at a release in another thread; outside of it, the program's own call site."""
    allow_quick_passwords(monkeypatch)
    with instrumented(signals, long_hold=None, spans=spans), opened(kind, dsn) as pool:
        with signals.tracer.start_as_current_span("GET /orders/17?token=s3cret", kind=SpanKind.SERVER):
            with signals.tracer.start_as_current_span("load"):
                conn = pool.acquire()
            assert held(signals) == {"GET /orders/{id}": 1}
        in_thread(pool.release, conn).result()
        assert held(signals) == {"GET /orders/{id}": 0}
        conn = pool.acquire()
        (site,) = held(signals).keys() - {"GET /orders/{id}"}
        assert "/monitored_pools.py:" in site
        assert "acquire" in site
        pool.release(conn)
        assert held(signals) == {"GET /orders/{id}": 0, site: 0}
        assert callers(signals, WAIT_TIME) == callers(signals, USE_TIME) == {"GET /orders/{id}": 1, site: 1}
    assert set(held(signals).values()) <= {0}


def test_light_checkouts_are_held_by_their_call_site(dsn: str, signals: Signals) -> None:
    """Of one from before a meter provider was set there is no record."""
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()
        tracker = tracker_of(pool)
        (checkout,) = tracker.held
        tracker.light[id(conn)] = (checkout.acquired, checkout.thread, *checkout.stack)
        tracker.held.clear()
        checkout.slot.checkout = None
        ((site, count),) = held(signals).items()
        assert site.endswith("test_callers_of_pools.py:test_light_checkouts_are_held_by_their_call_site")
        assert count == 1
        pool.putconn(conn)
        assert held(signals) == {site: 0}
        pool.closeall()


def test_an_engine_that_replaces_its_pool(dsn: str, signals: Signals) -> None:
    """The new pool continues with the name's callers; what the old one still holds is not the new one's."""
    with instrumented(signals, long_hold=None), Engines(dsn) as engines:
        engine = engines()
        with signals.tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
            conn = engine.connect()
        assert held(signals) == {"GET /": 1}
        engine.dispose()
        with signals.tracer.start_as_current_span("POST /", kind=SpanKind.SERVER), engine.connect() as other:
            select(other)
            assert held(signals) == {"GET /": 0, "POST /": 1}
        conn.close()
        assert callers(signals, USE_TIME) == {"GET /": 1, "POST /": 1}


def test_a_forked_child_has_its_own(dsn: str, signals: Signals) -> None:
    with instrumented(signals, long_hold=None):
        pool = ThreadedConnectionPool(1, 2, dsn)
        conn = pool.getconn()
        assert list(held(signals).values()) == [1]

        def child() -> tuple[dict[str, int], list[int]]:
            fresh = held(signals)
            mine = pool.getconn()
            during = list(held(signals).values())
            pool.putconn(mine)
            return fresh, during

        assert ast.literal_eval(in_child(child)) == ({}, [1])
        pool.putconn(conn)
        pool.closeall()


def test_a_wrong_value_is_logged(
    dsn: str, signals: Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the variable, the value and what is accepted; the default is used instead."""
    monkeypatch.setenv("OTEL_PGPOOL_CALLER", "yes")
    with caplog.at_level(logging.ERROR, "otel_pgpool"), instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn, application_name=name_of(dsn))
        pool.putconn(pool.getconn())
        pool.closeall()
    assert caplog.messages == ["OTEL_PGPOOL_CALLER must be one of 0, 1, not 'yes'; the default is used instead"]
    assert held(signals) == {}
    (point,) = points(signals, USE_TIME)
    assert CALLER not in point.attributes
