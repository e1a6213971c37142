"""Waits, holds and held connections by the caller, if asked for: the entry span, or else the file and the function."""

from __future__ import annotations

import ast
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.trace import SpanKind

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.telemetry import Telemetry
from otel_pgpool.telemetry.callers import MOST_CALLERS, OTHER, Callers
from tests.support.processes import in_child
from tests.support.telemetry import NAME, Signals, all_connects_told
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

CALLER = "otel_pgpool.caller"
HELD, WAIT_TIME, USE_TIME, CREATE_TIME = (
    "otel_pgpool.connections.held",
    "db.client.connection.wait_time",
    "db.client.connection.use_time",
    "db.client.connection.create_time",
)
ON = {"caller": True}
DELTA = dict.fromkeys((Counter, Histogram, ObservableUpDownCounter), AggregationTemporality.DELTA)


def entry(signals: Signals, name: str) -> AbstractContextManager[Span]:
    return signals.tracer.start_as_current_span(name, kind=SpanKind.SERVER)


def held(signals: Signals, pool_name: str = NAME) -> dict[str, int]:
    """Return how many connections each caller holds."""
    return {caller: int(value) for (caller,), value in signals.values(HELD, pool_name).items()}


def callers(signals: Signals, histogram: str, pool_name: str = NAME) -> dict[str, int]:
    """Return how often each caller was recorded."""
    return {point.attributes[CALLER]: point.count for point in signals.points(histogram, pool_name)}


def here() -> str:
    """Return the caller's name for a function of this file: the function that calls this one."""
    file = Path(__file__)
    folder = max((each for each in sys.path if file.is_relative_to(each or Path.cwd())), key=len)
    return f"{file.relative_to(folder or Path.cwd())}:{sys._getframe(1).f_code.co_name}"


@pytest.fixture(params=["always", "parent", "slow", "off"])
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**ON, "spans": request.param}


def test_the_entry_span_names_the_caller(signals: Signals, dsn: str, mode: dict[str, Any]) -> None:
    """In each span mode, however deep inside of it, and however often; nothing of the URL's parameters gets in."""
    with signals.pool(1, 2, dsn, telemetry=mode) as pool:
        inner = signals.tracer.start_as_current_span("pay", end_on_exit=False)
        with entry(signals, "POST /orders/17?token=s3cret"), inner as span:
            with pool.connection(), pool.connection():
                assert held(signals) == {"POST /orders/{id}": 2}
            span.end()
            pool.putconn(pool.getconn())  # in the context of a span that is over
        with signals.tracer.start_as_current_span("nightly"), pool.connection():
            assert held(signals) == {"POST /orders/{id}": 0, here(): 0, "nightly": 1}
        expected = {"POST /orders/{id}": 2, here(): 1, "nightly": 1}
        assert callers(signals, WAIT_TIME) == callers(signals, USE_TIME) == expected
        assert all(CALLER not in point.attributes for point in signals.points(CREATE_TIME))
        metrics = "".join(metric.to_json() for metric in signals.metrics().values())
        assert "17" not in "".join(expected)
        assert "s3cret" not in metrics
        assert "token" not in metrics


def test_without_an_entry_span_the_call_site_names_it(signals: Signals, dsn: str, mode: dict[str, Any]) -> None:
    with signals.pool(1, 2, dsn, telemetry=mode) as pool:

        def load() -> None:
            conn = pool.getconn()
            assert list(held(signals).values()) == [1, 1]
            pool.putconn(conn)

        with pool.connection():
            load()
            assert held(signals)[here()] == 1
        mine, its = callers(signals, USE_TIME)
        assert {mine, its} == set(callers(signals, WAIT_TIME)) == set(held(signals))
        assert (mine, its)[mine == here()].startswith(here().rpartition(":")[0])
        assert (mine, its)[mine == here()].endswith("load")


def test_a_failed_checkout_has_its_caller_and_its_error(signals: Signals, dsn: str) -> None:
    with signals.pool(1, 1, dsn, telemetry=ON) as pool, pool.connection():
        with entry(signals, "GET /late"), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        (failed,) = [point for point in signals.points(WAIT_TIME) if "error.type" in point.attributes]
        assert (failed.attributes[CALLER], failed.attributes["error.type"]) == ("GET /late", "timeout")
        assert held(signals) == {"GET /late": 0, here(): 1}


def test_off_by_default(signals: Signals, dsn: str) -> None:
    with signals.pool(1, 1, dsn) as pool, entry(signals, "GET /"):
        with pool.connection():
            assert HELD not in signals.metrics()
        for histogram in (WAIT_TIME, USE_TIME):
            (point,) = signals.points(histogram)
            assert CALLER not in point.attributes


def test_without_histograms_and_spans(signals: Signals, dsn: str) -> None:
    """Held connections are counted all the same."""
    with signals.pool(1, 1, dsn, telemetry={**ON, "spans": "off", "histograms": []}) as pool:
        with entry(signals, "GET /"), pool.connection():
            assert held(signals) == {"GET /": 1}
        assert held(signals) == {"GET /": 0}


def test_suppressed_checkouts_are_held_too(signals: Signals, dsn: str) -> None:
    """They leave nothing else, and the entry span is not asked for."""
    with signals.pool(1, 1, dsn, telemetry=ON) as pool, entry(signals, "GET /"):
        with suppress_instrumentation(), pool.connection():
            assert held(signals) == {here(): 1}
        assert callers(signals, WAIT_TIME) == callers(signals, USE_TIME) == {}


def test_fifty_callers_then_other(signals: Signals, dsn: str) -> None:
    """In all metrics alike; those that are known keep their names, and a second pool has fifty of its own."""
    names = [f"job {chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(MOST_CALLERS + 10)]
    with signals.pool(2, 2, dsn, telemetry=ON) as pool, signals.pool(1, 1, dsn, name="own", telemetry=ON) as own:
        for name in names:
            with entry(signals, name), pool.connection():
                pass
        expected = {**dict.fromkeys(names[:MOST_CALLERS], 1), OTHER: 10}
        assert callers(signals, WAIT_TIME) == callers(signals, USE_TIME) == expected
        assert held(signals) == dict.fromkeys(expected, 0)
        with pool.connection(), entry(signals, names[0]), pool.connection():
            assert held(signals) == {**dict.fromkeys(expected, 0), OTHER: 1, names[0]: 1}
        with entry(signals, names[-1]), own.connection():
            assert held(signals, "own") == {names[-1]: 1}


def test_the_cap_holds_with_many_threads() -> None:
    """However many callers come at the same moment: exactly fifty keep their names."""
    callers, start = Callers(), threading.Barrier(8)
    files = [compile("", f"job_{number}.py", "exec") for number in range(MOST_CALLERS + 10)]

    def come() -> set[str]:
        start.wait()
        return {callers.at((code, 0)) for code in files}

    threads = [in_thread(come) for _ in range(8)]
    (names,) = {frozenset(thread.result()) for thread in threads}
    assert len(names - {OTHER}) == MOST_CALLERS
    assert OTHER in names


def test_many_ids_are_one_caller(signals: Signals, dsn: str) -> None:
    """However many different names the spans have, without end."""
    with signals.pool(1, 1, dsn, telemetry=ON) as pool:
        for number in range(1_100):
            with entry(signals, f"GET /orders/{number}?page={number}"), pool.connection():
                pass
        assert callers(signals, USE_TIME) == {"GET /orders/{id}": 1_100}


def test_release_in_another_thread(signals: Signals, dsn: str) -> None:
    """The caller is that of the checkout, also when its entry span has ended and another is current."""
    with signals.pool(1, 1, dsn, telemetry=ON) as pool:
        with entry(signals, "GET /"):
            conn = pool.getconn()
        assert held(signals) == {"GET /": 1}

        def release() -> None:
            with entry(signals, "POST /"):
                pool.putconn(conn)

        in_thread(release).result()
        assert held(signals) == {"GET /": 0}
        assert callers(signals, USE_TIME) == {"GET /": 1}


def test_a_pool_made_anew_under_the_name(signals: Signals, dsn: str) -> None:
    """The name has fifty callers, not each of its pools. What the closed pool still holds is none of the new one's."""
    names = [f"job {chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(MOST_CALLERS)]
    with signals.pool(1, 1, dsn, telemetry=ON) as pool:
        for name in names:
            with entry(signals, name), pool.connection():
                pass
        with entry(signals, names[0]), ExitStack() as stack:
            stack.enter_context(pool.connection())
            assert held(signals)[names[0]] == 1
            pool.close(0)
            assert held(signals) == dict.fromkeys(names, 0)
            again = stack.enter_context(signals.pool(1, 1, dsn, telemetry=ON))
            with entry(signals, "job new"), again.connection():
                assert held(signals) == {**dict.fromkeys(names, 0), OTHER: 1}


@pytest.fixture
def total() -> Iterator[tuple[Signals, Any]]:
    """Signals with a reader of increments, and what a backend has summed them up to."""
    sums: dict[str, int] = {}
    with Signals() as signals:
        reader = InMemoryMetricReader(preferred_temporality=DELTA)  # type: ignore[arg-type]
        signals.meter_provider.add_metric_reader(reader)

        def collect() -> dict[str, int]:
            data = reader.get_metrics_data()
            found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
            for point in [point for metric in found if metric.name == HELD for point in metric.data.data_points]:
                caller = str((point.attributes or {})[CALLER])
                sums[caller] = sums.get(caller, 0) + int(getattr(point, "value", 0))
                assert sums[caller] >= 0
            return dict(sums)

        yield signals, collect


def test_increments_add_up(total: tuple[Signals, Any], dsn: str) -> None:
    """With delta temporality the sum is what is held: also after the end of a pool, and with a new one of its name."""
    signals, collect = total
    with entry(signals, "GET /"):
        with signals.pool(1, 2, dsn, telemetry=ON) as pool, pool.connection():
            assert collect() == {"GET /": 1}
            with pool.connection():
                assert collect() == {"GET /": 2}
            assert collect() == {"GET /": 1}
            assert collect() == {"GET /": 1}
            pool.close(0)
        assert collect() == {"GET /": 0}
        with signals.pool(1, 1, dsn, telemetry=ON) as pool, pool.connection():
            assert collect() == {"GET /": 1}
        with signals.pool(1, 1, dsn, telemetry=ON) as pool, pool.connection():  # of the first nothing was collected
            assert collect() == {"GET /": 1}
            pool.close(0)
        assert collect() == {"GET /": 0}


def test_a_forked_child_has_its_own(signals: Signals, dsn: str) -> None:
    """Its fifty callers begin anew, and what the parent holds is the parent's."""
    with signals.pool(1, 1, dsn, telemetry=ON) as pool, entry(signals, "GET /"):

        def child() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
            fresh = held(signals) if HELD in signals.metrics() else {}
            with entry(signals, "POST /"), pool.connection():
                during = held(signals)
            uses = callers(signals, USE_TIME)
            pool.close(0)
            return fresh, during, uses

        all_connects_told(pool)  # a child would inherit the locks of a handler that writes at that moment
        with pool.connection():
            assert held(signals) == {"GET /": 1}
            assert ast.literal_eval(in_child(child)) == ({}, {"POST /": 1}, {"POST /": 1})
            assert held(signals) == {"GET /": 1}
        assert callers(signals, USE_TIME) == {"GET /": 1}


def test_an_error_of_the_look_up_costs_no_connection(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout goes on, and is counted under its call site."""
    monkeypatch.setattr("otel_pgpool.telemetry.callers.name_of_span", lambda _name: 1 / 0)
    with signals.pool(1, 1, dsn, telemetry=ON) as pool:
        with entry(signals, "GET /"), pool.connection():
            assert held(signals) == {here(): 1}
        assert callers(signals, USE_TIME) == {here(): 1}


@pytest.mark.parametrize(("value", "on"), [("1", True), (" 1 ", True), ("0", False), ("", False)])
def test_the_variable(monkeypatch: pytest.MonkeyPatch, value: str, *, on: bool) -> None:
    """The argument goes before it."""
    monkeypatch.setenv("OTEL_PGPOOL_CALLER", value)
    assert Telemetry()._config.caller is on
    assert Telemetry(caller=not on)._config.caller is not on


def test_wrong_values_are_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the option or the variable, the value and what is accepted."""
    with pytest.raises(ValueError, match=r"^caller must be True or False, not 1$"):
        Telemetry(caller=1)  # type: ignore[arg-type]
    monkeypatch.setenv("OTEL_PGPOOL_CALLER", "yes")
    with pytest.raises(ValueError, match=r"^OTEL_PGPOOL_CALLER must be one of 0, 1, not 'yes'$"):
        ConnectionPool(1, 1, dsn)
