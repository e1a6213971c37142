"""Totals of pools that end while readers collect, and after collections that were given up."""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics._internal import measurement_consumer
from opentelemetry.sdk.metrics._internal.exceptions import MetricsTimeoutError
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from otel_pgpool.telemetry import metrics, pools_by_name
from tests.support.metric_names import FAILURES
from tests.support.totals import CHECKOUTS, MAX, TIMEOUTS, WAIT_TIME, Meter, Reader, collecting

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = metrics.KEPT_AFTER_THE_END
NAMES = "shop", "jobs", "mail"


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Provide two readers: one of increments, which it adds up, and one of sums."""
    return Meter(monkeypatch, Reader(delta=True), Reader())


def all_told(meter: Meter, metric: str, expected: int, name: str = "shop") -> None:
    """Every reader has it, no more and no less."""
    meter.ask()
    assert [reader.sum_of(metric, name) for reader in meter.readers] == [expected] * len(meter.readers)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Let threads alternate as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
def test_pools_end_while_readers_collect() -> None:
    """Closed, dropped or garbage-collected, and made anew: every reader has all, and no total went down."""
    meter = Meter(None, Reader(delta=True), Reader(), Reader(delta=True))
    with collecting(meter.readers):
        for number in range(60):
            pool = meter.pool(NAMES[number % 3])
            for _ in range(number % 4):
                pool.timeouts += 1
                meter.instruments.connect_failures_of(pool).add("OperationalError")
            if number % 5 == 0:
                pool.itself = pool  # type: ignore[attr-defined]
            elif number % 2:
                pool.closed = True
            del pool
            if number % 20 == 0:
                gc.collect()
        gc.collect()
    for first, name in enumerate(NAMES):
        expected = sum(number % 4 for number in range(first, 60, 3))
        all_told(meter, TIMEOUTS, expected, name)
        all_told(meter, FAILURES, expected, name)


def test_readers_collect_while_a_pool_is_finalized(meter: Meter) -> None:
    """Finalizers of the program may run between the end of the weak reference and the pool's own finalizer."""

    class Reading:
        def __del__(self) -> None:
            for _ in range(3):
                meter.ask()
                meter.pass_on(1)

    reading: Any = Reading()
    pool = meter.pool(timeouts=5)
    all_told(meter, TIMEOUTS, 5)
    pool.timeouts = 7
    reading.pool, pool.reading = pool, reading  # type: ignore[attr-defined]  # a cycle, whose older part goes first
    del pool, reading
    gc.collect()
    all_told(meter, TIMEOUTS, 7)
    meter.pool(timeouts=1)
    all_told(meter, TIMEOUTS, 8)


def test_connect_failures_continue_with_their_name(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the totals of the name are kept; afterwards they begin anew, though the program keeps the closed pool."""
    monkeypatch.setattr(pools_by_name, "MAX_REPORTED", 1)
    kept = []
    for number in range(1, 4):
        pool = meter.pool()
        failures = meter.instruments.connect_failures_of(pool)
        failures.add("OperationalError")
        all_told(meter, FAILURES, number)
        assert not any(reader.resets[FAILURES] for reader in meter.readers)
        pool.closed = True
        kept.append((pool, failures))
        for _ in range(2):
            meter.ask()
            meter.pass_on(KEPT)
    meter.pool("jobs").closed = True
    for _ in range(3):
        meter.ask()
        meter.pass_on(KEPT)
    successor = meter.pool()
    meter.instruments.connect_failures_of(successor).add("OperationalError")
    assert [reader.ask()[FAILURES] for reader in meter.readers] == [{"shop": 1}] * 2
    assert [reader.sum_of(FAILURES) for reader in meter.readers] == [4, 4]
    assert [reader.resets[FAILURES] for reader in meter.readers] == [0, 1]


def test_connect_failures_of_a_forked_child(meter: Meter) -> None:
    """Those of the parent are not told again."""
    pool = meter.pool()
    failures = meter.instruments.connect_failures_of(pool)
    for error_type in ("OperationalError", "OperationalError", "timeout"):
        failures.add(error_type)
    all_told(meter, FAILURES, 3)
    failures.add("timeout")
    meter.instruments.report(pool)
    meter.instruments.reset_after_fork()
    for reader in meter.readers:
        reader.total.clear()
        reader.began.clear()
    all_told(meter, FAILURES, 0)
    failures.add("timeout")
    all_told(meter, FAILURES, 1)


def test_figures_that_never_come_are_not_waited_for(meter: Meter) -> None:
    """A pool whose finalizer leaves none is forgotten, its totals are not."""
    pool = meter.pool(timeouts=5)
    all_told(meter, TIMEOUTS, 5)
    pool.last_figures = None  # type: ignore[assignment]
    del pool
    successor = meter.pool(timeouts=1)
    all_told(meter, TIMEOUTS, 6)
    meter.pass_on(pools_by_name.LONGEST_FINALIZATION)
    all_told(meter, TIMEOUTS, 6)
    (pools,) = meter.instruments._pools._open.values()
    assert [each.pool() for each in pools._pools.values()] == [successor]


def test_collections_that_were_given_up(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK keeps what it has observed before its time limit, and would add the next observations to it."""
    hours = iter([*[1] * 2 * len(meter.readers), *[0] * 100])
    passed = 0

    def slow(_options: object) -> Iterator[Observation]:
        nonlocal passed
        passed += next(hours)
        yield Observation(1)

    monkeypatch.setattr(measurement_consumer, "time_ns", lambda: time.time_ns() + passed * 3_600_000_000_000)
    pool = meter.pool(timeouts=5, served=3)
    program = meter.provider.get_meter("program")
    for name in ("slow", "next"):
        program.create_observable_gauge(name, [slow] if name == "slow" else [lambda _options: [Observation(1)]])
    for reader in meter.readers * 2:
        with pytest.raises(MetricsTimeoutError):
            reader.inner.collect()
        pool.timeouts += 1
    for _ in range(2):
        assert [told[MAX] for told in meter.ask()] == [{"shop": 5}] * 2
        all_told(meter, TIMEOUTS, 9)
        all_told(meter, CHECKOUTS, 3)


@pytest.mark.parametrize("delta", [True, False])
def test_an_exponential_histogram_of_a_pool_that_ends_early(monkeypatch: pytest.MonkeyPatch, delta: bool) -> None:
    """Waits of exactly 0 s count too, and what is recorded after the end of the pool."""
    views = [View(instrument_name=WAIT_TIME, aggregation=ExponentialBucketHistogramAggregation())]
    reader = Reader(delta=delta)
    meter = Meter(monkeypatch, reader, views=views)
    meter.wait("shop", 0.0)
    meter.pool().closed = True
    assert reader.ask()[WAIT_TIME] == {"shop": 1}
    meter.wait("shop", 0.0)
    meter.pass_on(KEPT)
    assert reader.ask()[WAIT_TIME] == {"shop": 1 if delta else 2}
    assert WAIT_TIME not in reader.ask()
