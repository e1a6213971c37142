"""Which checkouts leave spans: the four modes, suppression, samplers. Metrics and logs in all of them."""

from __future__ import annotations

from time import sleep, time_ns
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from otel_pgpool import PoolTimeout
from otel_pgpool.telemetry import Telemetry
from tests.support.telemetry import (
    MOMENT,
    Signals,
    all_connects_told,
    assert_exactly,
    is_child,
    queued,
    served,
    unserved,
    until,
)
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool

MODES = ("always", "parent", "slow", "off")
SLOW = 0.1


def borrow(pool: ConnectionPool) -> None:
    with pool.connection():
        pass


def own_spans(signals: Signals) -> list[str]:
    return [span.name for span in signals.spans.started if span.name.startswith("pool.")]


# parent, off


def test_parent_without_a_caller(signals: Signals, dsn: str) -> None:
    """With `parent`, what is asked for outside any span leaves none, and neither does a refill."""
    with signals.pool(1, 2, dsn, telemetry={"spans": "parent"}) as pool:
        borrow(pool)
        conn = pool.getconn()
        borrow(pool)
        pool.putconn(conn)
    assert own_spans(signals) == []


def test_parent_under_a_recording_span(signals: Signals, dsn: str) -> None:
    """Under a recording span, `parent` is as `always`."""
    with signals.pool(0, 1, dsn, telemetry={"spans": "parent"}) as pool:
        with signals.tracer.start_as_current_span("order") as order:
            borrow(pool)
        all_connects_told(pool)
        checkout = signals.checkout()
        assert is_child(checkout, order)
        assert is_child(signals.one("pool.wait"), checkout)
        assert is_child(signals.one("pool.connect"), checkout)


def test_parent_under_a_span_that_does_not_record(signals: Signals, dsn: str) -> None:
    """Under a span that was sampled away, `parent` leaves none."""
    not_sampled = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))
    with signals.pool(0, 1, dsn, telemetry={"spans": "parent"}) as pool, trace.use_span(not_sampled):
        borrow(pool)
        assert trace.get_current_span() is not_sampled
    assert own_spans(signals) == []


def test_off(signals: Signals, dsn: str) -> None:
    """With `off` there are no spans of ours, and the caller's stays current in the block."""
    with (
        signals.pool(0, 1, dsn, telemetry={"spans": "off"}) as pool,
        signals.tracer.start_as_current_span("order") as order,
        pool.connection(),
    ):
        assert trace.get_current_span() is order
    assert own_spans(signals) == []


# slow


def slow_pool(signals: Signals, minconn: int, maxconn: int, dsn: str, **options: Any) -> Any:
    return signals.pool(minconn, maxconn, dsn, telemetry={"spans": "slow", "slow": SLOW}, **options)


def test_fast_leaves_nothing(signals: Signals, dsn: str) -> None:
    """With `slow`, a checkout that neither waited nor held that long leaves no span."""
    with signals.pool(1, 1, dsn, telemetry={"spans": "slow", "slow": PATIENCE}) as pool:
        for _ in range(5):
            borrow(pool)
    assert own_spans(signals) == []


def test_slow_hold(signals: Signals, dsn: str) -> None:
    """A long hold leaves a span that is made afterwards, with the real times, under the caller, and is not current."""
    with slow_pool(signals, 1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:
        before = time_ns()
        with pool.connection():
            assert trace.get_current_span() is order
            sleep(SLOW + 0.1)
            assert "pool.checkout" not in own_spans(signals)
        after = time_ns()
    span = signals.checkout()
    assert is_child(span, order)
    assert_exactly(span.attributes, served(dsn))
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time < span.end_time <= after
    assert span.end_time - span.start_time >= (SLOW + 0.1) * 1e9


def test_slow_wait(signals: Signals, dsn: str) -> None:
    """A long wait leaves the span, its wait with the links that there are, and the hand-over at its real time."""
    with slow_pool(signals, 1, 1, dsn) as pool:
        conn = pool.getconn()
        before = time_ns()
        with queued(pool, lambda: borrow(pool)):
            asked = time_ns()
            sleep(SLOW + 0.1)
            handed = time_ns()
            pool.putconn(conn)
            given = time_ns()
    waited = next(span for span in signals.named("pool.checkout") if span.events)
    assert_exactly(waited.attributes, served(dsn, path="queued"))
    (acquired,) = waited.events
    assert acquired.name == "pool.acquired"
    assert handed - MOMENT * 1e9 <= acquired.timestamp <= given + MOMENT * 1e9
    assert waited.start_time is not None
    assert before <= waited.start_time <= asked
    wait = signals.one("pool.wait")
    assert is_child(wait, waited)
    assert wait.start_time is not None
    assert waited.start_time <= wait.start_time <= asked + MOMENT * 1e9
    assert wait.end_time == acquired.timestamp


def test_slow_and_failed(signals: Signals, dsn: str) -> None:
    """A checkout that failed leaves its span, however fast it was."""
    with slow_pool(signals, 1, 1, dsn) as pool:
        with pool.connection(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        span = signals.checkout()
        assert_exactly(span.attributes, unserved(dsn, "idle", "timeout", "timeout"))
        assert not span.status.is_ok
        assert span.status.description


def test_slow_and_retried(signals: Signals, dsn: str) -> None:
    """A checkout with retries leaves its span, with their events; the attempt that failed leaves its own."""
    missing = iter([{"port": 1}])
    with slow_pool(signals, 0, 1, dsn, credentials=lambda: next(missing, {})) as pool:
        borrow(pool)
    span = signals.checkout()
    assert_exactly(span.attributes, served(dsn, path="new", retries=1))
    assert [event.name for event in span.events] == ["pool.retry", "pool.acquired"]
    failed = signals.named("pool.connect")[0]
    assert (failed.attributes or {})["error.type"] == "OperationalError"


def test_slow_and_flagged(signals: Signals, dsn: str) -> None:
    """A flagged hold leaves its span, with the event at the moment when the threshold passed."""
    with signals.pool(1, 1, dsn, telemetry={"spans": "slow", "slow": 60}, long_hold=0.05) as pool:
        began = time_ns()
        with pool.connection():
            (record,) = until(lambda: signals.logged("long_hold"))
            told = time_ns()
            sleep(0.2)
        span = signals.checkout()
    assert_exactly(span.attributes, served(dsn, long_hold=True))
    (event,) = [event for event in span.events if event.name == "pool.long_hold"]
    assert began + 0.05e9 - MOMENT * 1e9 <= event.timestamp <= told + MOMENT * 1e9
    assert (event.attributes or {})["otel_pgpool.held"] == record.attributes["otel_pgpool.held"]


# In every mode


@pytest.mark.parametrize("mode", MODES)
def test_metrics_and_logs_in_every_mode(signals: Signals, dsn: str, mode: str) -> None:
    """Metrics and logs do not depend on the mode."""
    with signals.pool(1, 1, dsn, telemetry={"spans": mode}, long_hold=0.02) as pool:
        with pool.connection():
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
            until(lambda: signals.logged("long_hold"))
        all_connects_told(pool)
        assert len(signals.logged("timeout")) == 1
        assert signals.value("otel_pgpool.long_holds") == 1
        assert signals.value("db.client.connection.timeouts") == 1
        assert sum(signals.values("otel_pgpool.checkouts").values()) == 1
        for name, count in (("wait_time", 2), ("use_time", 1), ("create_time", 1)):
            assert sum(point.count for point in signals.points(f"db.client.connection.{name}")) == count


@pytest.mark.parametrize("mode", MODES)
def test_mode_from_the_environment(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """OTEL_PGPOOL_SPANS and OTEL_PGPOOL_SLOW choose; an argument goes before them."""
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", mode)
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "0")
    with signals.pool(1, 1, dsn, name="by environment") as pool:
        borrow(pool)
    left = len(signals.named("pool.checkout"))
    assert left == (1 if mode in ("always", "slow") else 0)
    with signals.pool(1, 1, dsn, telemetry={"spans": "always"}, name="by argument") as pool:
        borrow(pool)
    assert len(signals.named("pool.checkout")) == left + 1


def test_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that does not exist is refused, with the option or variable, the value and what is accepted."""
    with pytest.raises(ValueError, match=r"spans must be one of always, parent, slow, off, not 'sometimes'"):
        Telemetry(spans="sometimes")
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", "sometimes")
    with pytest.raises(ValueError, match=r"OTEL_PGPOOL_SPANS.*always, parent, slow, off.*sometimes"):
        Telemetry()


# Suppression and sampling


@pytest.mark.parametrize("mode", MODES)
def test_suppression(signals: Signals, dsn: str, mode: str) -> None:
    """Where instrumentation is suppressed, a checkout, its wait and its connect leave no span and no duration."""
    with signals.pool(0, 1, dsn, telemetry={"spans": mode, "slow": 0}) as pool:
        token = contexts.attach(contexts.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            borrow(pool)
            conn = pool.getconn()
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
            pool.putconn(conn)
            assert contexts.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is True
        finally:
            contexts.detach(token)
        assert own_spans(signals) == []
        assert signals.points("db.client.connection.wait_time") == []
        assert signals.points("db.client.connection.use_time") == []
        borrow(pool)
        assert own_spans(signals) == (["pool.checkout"] if mode in ("always", "slow") else [])


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF), TraceIdRatioBased(0)])
def test_sampled_away(dsn: str, sampler: Any) -> None:
    """What the sampler drops is dropped whole: its context is handed on, so that children do not become roots."""
    with Signals(ParentBased(sampler)) as signals, signals.pool(0, 1, dsn) as pool:
        with pool.connection():
            current = trace.get_current_span()
            assert not current.is_recording()
            assert current.get_span_context().is_valid
            with signals.tracer.start_as_current_span("query") as query:
                assert query.get_span_context().trace_id == current.get_span_context().trace_id
                assert not query.is_recording()
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert signals.spans.started == []
        assert sum(point.count for point in signals.points("db.client.connection.wait_time")) == 1


def test_sampled_away_by_the_caller(signals: Signals, dsn: str) -> None:
    """Under a remote parent that was not sampled, the checkout stays in its trace and leaves no span."""
    parent = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True))
    with signals.pool(0, 1, dsn) as pool, trace.use_span(parent):
        with pool.connection():
            assert trace.get_current_span().get_span_context().trace_id == 0xABC
        in_thread(lambda: None).result(PATIENCE)
    assert [span for span in signals.spans.started if span.context.trace_id == 0xABC] == []
    assert signals.named("pool.checkout") == []


def test_telemetry_none(signals: Signals, dsn: str, admin: connection) -> None:
    """Without any observer nothing is emitted."""
    from otel_pgpool import ConnectionPool

    pool = ConnectionPool(1, 1, dsn, name="silent", observer=None, long_hold=0.02)
    with pool.connection():
        sleep(0.05)
    pool.close()
    assert signals.spans.started == []
    assert signals.metrics() == {}
    assert [record.event for record in signals.records.all if record.event] == []
