"""Totals never go down, every reader receives them to the end, and then nothing of a pool is kept."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View

from otel_pgpool.telemetry import metrics, pools_by_name, sdk_internals
from tests.support.totals import CHECKOUTS, DISCARDED, MAX, PATH, TIMEOUTS, WAIT_TIME, Meter, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.totals import Pool

KEPT = metrics.KEPT_AFTER_THE_END


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Provide two readers: one of increments, which it adds up, and one of sums."""
    return Meter(monkeypatch, Reader(delta=True), Reader())


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are reached soon."""
    monkeypatch.setattr(pools_by_name, "MAX_UNREPORTED", 100)
    monkeypatch.setattr(pools_by_name, "MAX_REPORTED", 10)


def all_told(meter: Meter, metric: str, expected: int, name: str = "shop") -> None:
    """Every reader has it, no more and no less."""
    meter.ask()
    assert [reader.sum_of(metric, name) for reader in meter.readers] == [expected] * len(meter.readers)
    assert [reader.resets[metric] for reader in meter.readers] == [0] * len(meter.readers)


def close(pool: Pool) -> None:
    pool.closed = True


# Pools that follow each other


@pytest.mark.parametrize("seconds", [0, 2 * KEPT])
def test_a_pool_made_anew_goes_on_where_its_name_ended(meter: Meter, seconds: float) -> None:
    """It continues the totals at once, or after every reader has exported the end; its own figures begin at 0."""
    first = meter.pool(timeouts=7, served=3)
    all_told(meter, TIMEOUTS, 7)
    close(first)
    for _ in range(2):
        all_told(meter, TIMEOUTS, 7)
        meter.pass_on(seconds)
    second = meter.pool()
    all_told(meter, TIMEOUTS, 7)
    second.timeouts = 2
    all_told(meter, TIMEOUTS, 9)
    all_told(meter, CHECKOUTS, 3)


def test_pools_of_one_name_between_two_collections(meter: Meter) -> None:
    """Closed, collected or open: all count."""
    meter.pool(timeouts=1)
    close(meter.pool(timeouts=2))
    closed = meter.pool(timeouts=4)
    close(closed)
    last = meter.pool(timeouts=8)
    all_told(meter, TIMEOUTS, 15)
    last.timeouts += 1
    all_told(meter, TIMEOUTS, 16)


def test_a_pool_that_introduces_itself_again_counts_once(meter: Meter) -> None:
    """As one does in a forked child."""
    pool = meter.pool(timeouts=3)
    meter.instruments.report(pool)
    all_told(meter, TIMEOUTS, 3)
    meter.instruments.report(pool)
    all_told(meter, TIMEOUTS, 3)


def test_a_figure_that_falls_for_a_moment(meter: Meter) -> None:
    """A reader that collects between two steps of a count gets the earlier, higher figure."""
    pool = meter.pool(timeouts=5, closed_connections={"idle": 2})
    all_told(meter, TIMEOUTS, 5)
    pool.timeouts, pool.closed_connections = 3, {}  # type: ignore[assignment]
    all_told(meter, TIMEOUTS, 5)
    all_told(meter, DISCARDED, 2)
    pool.timeouts = 6
    all_told(meter, TIMEOUTS, 6)


# The end


def test_a_pool_that_leaves_no_figures(meter: Meter) -> None:
    """Its class may have a finalizer of its own: then what was last read stands."""
    pool = meter.pool(timeouts=5)
    all_told(meter, TIMEOUTS, 5)
    pool.last_figures = None  # type: ignore[assignment]
    del pool
    for _ in range(3):
        all_told(meter, TIMEOUTS, 5)
    meter.pool(timeouts=1)
    all_told(meter, TIMEOUTS, 6)


def test_a_return_after_the_end_counts(meter: Meter) -> None:
    """The totals of a closed pool may grow while a connection is checked out; they are reported until its release."""
    pool = meter.pool(timeouts=1, oldest_hold=0.5)
    close(pool)
    for _ in range(3):
        all_told(meter, TIMEOUTS, 1)
        meter.pass_on(2 * KEPT)
    pool.closed_connections["closed"] += 1
    pool.oldest_hold = 0.0
    all_told(meter, DISCARDED, 1)


def test_each_reader_gets_the_end_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that collect every 5 s and every 300 s get the end from their own first collection, at least once."""
    often, seldom = Reader(delta=True), Reader()
    meter = Meter(monkeypatch, often, seldom)
    pool = meter.pool(timeouts=7)
    meter.ask()
    close(pool)
    told: dict[str, list[int]] = {"often": [], "seldom": []}
    for second in range(5, 1_000, 5):
        meter.pass_on(5)
        if "shop" in often.ask().get(TIMEOUTS, {}):
            told["often"].append(second)
        if second % 300 == 0 and "shop" in seldom.ask().get(TIMEOUTS, {}):
            told["seldom"].append(second)
    assert told == {"often": list(range(5, 5 + int(KEPT), 5)), "seldom": [300]}
    all_told(meter, TIMEOUTS, 7)


def test_one_that_nobody_reads_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is never asked does not keep a pool's end from the other, and gets it when it is."""
    read, unread = Reader(delta=True), Reader()
    meter = Meter(monkeypatch, read, unread)
    meter.wait("shop")
    close(meter.pool(timeouts=7))
    assert read.ask()[TIMEOUTS] == {"shop": 7}
    meter.pass_on(KEPT)
    assert read.ask() == {}
    meter.pass_on(100 * KEPT)
    told = unread.ask()
    assert (told[TIMEOUTS], told[WAIT_TIME]) == ({"shop": 7}, {"shop": 1})


# Histograms


@pytest.mark.parametrize("aggregation", [None, ExponentialBucketHistogramAggregation()])
def test_histograms_end_for_each_reader(monkeypatch: pytest.MonkeyPatch, aggregation: Any) -> None:
    """A while after it has exported the end; a reader that collects rarely still gets all of it."""
    views = [] if aggregation is None else [View(instrument_name=WAIT_TIME, aggregation=aggregation)]
    often, seldom = Reader(), Reader()
    meter = Meter(monkeypatch, often, seldom, views=views)
    pool = meter.pool()
    meter.wait("shop")
    often.ask()
    close(pool)
    meter.wait("stays")
    assert often.ask()[WAIT_TIME] == {"shop": 1, "stays": 1}
    meter.pass_on(KEPT)
    assert often.ask()[WAIT_TIME] == {"stays": 1}
    assert seldom.ask()[WAIT_TIME] == {"shop": 1, "stays": 1}
    meter.pass_on(KEPT)
    assert seldom.ask()[WAIT_TIME] == {"stays": 1}


def test_what_is_recorded_after_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program's requests to a closed pool are, which fail."""
    reader = Reader()
    meter = Meter(monkeypatch, reader)
    close(meter.pool())
    for _ in range(3):
        reader.ask()
        meter.pass_on(KEPT)
        meter.wait("shop")
        assert reader.ask()[WAIT_TIME] == {"shop": 1}
        assert reader.ask() == {}


def test_histograms_of_a_pool_made_anew_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has not ended."""
    reader = Reader()
    meter = Meter(monkeypatch, reader)
    close(meter.pool())
    meter.wait("shop")
    reader.ask()
    second = meter.pool()
    meter.pass_on(KEPT)
    for _ in range(2):
        assert reader.ask()[WAIT_TIME] == {"shop": 1}
    assert not second.closed


# Bounds


def test_nothing_grows_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of ended names leave a bounded number of series and totals, though a reader never collects."""
    read, unread = Reader(delta=True), Reader()
    meter = Meter(monkeypatch, read, unread)
    sizes = []
    for number in range(6):
        for each in range(pools_by_name.MAX_UNREPORTED):
            name = f"{number}-{each}"
            meter.wait(name)
            close(meter.pool(name, timeouts=1))
        meter.pass_on(KEPT)
        read.ask()
        meter.pass_on(KEPT)
        read.ask()
        sizes.append((meter.kept_by_the_sdk(), len(meter.instruments._pools._ended)))
    told = [name for metric, name in read.total if metric == TIMEOUTS]
    assert sum(read.sum_of(TIMEOUTS, name) for name in told) == 6 * pools_by_name.MAX_UNREPORTED
    assert sizes[1:] == [sizes[1]] * 5
    assert sizes[0][1] == pools_by_name.MAX_UNREPORTED


def test_some_names_are_kept_when_all_have_been_told(meter: Meter) -> None:
    """Those that ended last; of the others the SDK has forgotten everything too, so that a delta does not fall."""
    for number in range(pools_by_name.MAX_REPORTED + 1):
        close(meter.pool(f"shop-{number}", timeouts=7))
    meter.ask()
    meter.pass_on(KEPT)
    meter.ask()
    assert len(meter.instruments._pools._ended) == pools_by_name.MAX_REPORTED
    before = meter.kept_by_the_sdk()
    anew = [meter.pool("shop-0", timeouts=1), meter.pool("shop-1", timeouts=1)]
    often, _seldom = meter.readers
    assert often.ask()[TIMEOUTS] == {"shop-0": 1, "shop-1": 1}
    assert meter.kept_by_the_sdk() > before
    assert not anew[0].closed


later_reader = pytest.mark.skipif(
    not hasattr(MeterProvider, "add_metric_reader"),
    reason="OpenTelemetry 1.36 takes readers at the start only",
)


@later_reader
def test_nothing_grows_where_nobody_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without the SDK, or without a reader, may make as many pools as it likes."""
    meter = Meter(monkeypatch)
    alive = [meter.pool() for _ in range(10)]
    for number in range(5 * pools_by_name.MAX_UNREPORTED):
        meter.pool(f"shop-{number}", timeouts=1)
    assert len(meter.instruments._pools._new) <= 2 * (pools_by_name.MAX_UNREPORTED + len(alive))
    late = Reader()
    meter.provider.add_metric_reader(late.inner)
    assert late.ask()[MAX] == {"shop": 5}
    assert late.sum_of(TIMEOUTS, f"shop-{5 * pools_by_name.MAX_UNREPORTED - 1}") == 1


def test_thousands_of_one_name_between_two_collections(meter: Meter) -> None:
    """A program that makes a pool for each request loses none of their totals."""
    for _ in range(5 * pools_by_name.MAX_UNREPORTED):
        meter.pool(timeouts=1)
    all_told(meter, TIMEOUTS, 5 * pools_by_name.MAX_UNREPORTED)


# A forked child


def forked(meter: Meter, *pools: Pool) -> None:
    """Do what happens in a forked child: the pools restart, and so does their telemetry."""
    for pool in pools:
        pool.timeouts = pool.served = 0
        pool.oldest_hold = 0.0
        meter.instruments.report(pool)
    meter.instruments.reset_after_fork()


def test_a_forked_child_counts_from_zero(meter: Meter) -> None:
    """Its parent has collected, closed and dropped pools: no total goes down, and nothing is reported again."""
    pool, ended = meter.pool(timeouts=8), meter.pool("ended", timeouts=3)
    meter.pool("dropped", timeouts=2)
    meter.ask()
    meter.pool("dropped later", timeouts=2)
    close(ended)
    close(unseen := meter.pool("unseen", timeouts=2))
    forked(meter, pool, ended, unseen)
    for reader in meter.readers:
        reader.total.clear()
        reader.began.clear()
    assert [each[TIMEOUTS] for each in meter.ask()] == [{"shop": 0}] * 2
    pool.timeouts = 1
    all_told(meter, TIMEOUTS, 1)
    assert [name for _metric, name in meter.readers[0].total if name != "shop"] == []


class Opaque:
    """An SDK whose private parts differ."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sdk_internals, "_real", lambda _instrument: object())
        monkeypatch.setattr(sdk_internals, "collecting_reader", lambda _frame: None)


def test_a_forked_child_of_an_sdk_that_forgets_nothing(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where the parent ended, so that nothing falls, and a delta is right."""
    pool = meter.pool(timeouts=8)
    all_told(meter, TIMEOUTS, 8)
    Opaque(monkeypatch)
    forked(meter, pool)
    all_told(meter, TIMEOUTS, 8)
    pool.timeouts = 1
    all_told(meter, TIMEOUTS, 9)


# An SDK or a view that is otherwise


def test_an_sdk_that_does_not_tell_its_readers_apart(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every collection gets the end, until the slowest reader has collected; no total goes down afterwards."""
    Opaque(monkeypatch)
    pool = meter.pool(timeouts=7)
    meter.ask()
    close(pool)
    often, seldom = meter.readers
    for _ in range(5, 300, 5):
        meter.pass_on(5)
        often.ask()
    assert seldom.ask()[TIMEOUTS] == {"shop": 7}
    meter.pass_on(metrics.KEPT_IF_READER_UNKNOWN)
    assert TIMEOUTS not in often.ask()
    for number in range(2 * pools_by_name.MAX_UNREPORTED):
        close(meter.pool(f"other-{number}"))
    meter.ask()
    again = meter.pool(timeouts=1)
    all_told(meter, TIMEOUTS, 8)
    assert not again.closed


def test_a_view_without_the_pools_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the pools are one sum: it does not fall when a pool ends, nor when its name is forgotten."""
    views = [View(instrument_name=CHECKOUTS, attribute_keys={PATH})]
    meter = Meter(monkeypatch, Reader(delta=True), Reader(), views=views)
    stays = meter.pool("stays", served=1)
    for number in range(pools_by_name.MAX_REPORTED + 20):
        pool = meter.pool(f"shop-{number}", served=2)
        meter.ask()
        close(pool)
    for _ in range(3):
        meter.pass_on(KEPT)
        all_told(meter, CHECKOUTS, 1 + 2 * (pools_by_name.MAX_REPORTED + 20), "")
    anew = [meter.pool("shop-0", served=5), meter.pool("shop-29", served=5)]
    stays.served += 1
    all_told(meter, CHECKOUTS, 12 + 2 * (pools_by_name.MAX_REPORTED + 20), "")
    assert not anew[0].closed


def test_instruments_that_a_view_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are reported as always, and end as always."""
    reader = Reader()
    dropped = ["db.client.connection.count", CHECKOUTS, WAIT_TIME]
    meter = Meter(
        monkeypatch, reader, views=[View(instrument_name=name, aggregation=DropAggregation()) for name in dropped]
    )
    meter.wait("shop")
    close(meter.pool(timeouts=7, served=1))
    assert {CHECKOUTS, WAIT_TIME}.isdisjoint(told := reader.ask())
    assert told[TIMEOUTS] == {"shop": 7}
    meter.pass_on(KEPT)
    assert reader.ask() == {}


@later_reader
def test_a_reader_that_comes_late(meter: Meter) -> None:
    """It gets what has ended before it came, as far as that is kept."""
    close(meter.pool(timeouts=7))
    for _ in range(2):
        meter.ask()
        meter.pass_on(KEPT)
    late = Reader()
    meter.provider.add_metric_reader(late.inner)
    assert late.ask()[TIMEOUTS] == {"shop": 7}
    (*_others, storage) = sdk_internals.all_readers([meter.instruments.wait_time])
    kept = weakref.ref(storage)
    del storage, _others
    meter.provider.remove_metric_reader(late.inner)
    assert [each.get(TIMEOUTS) for each in meter.ask()] == [None, None]
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("broken", ["_reader_storages", "_instrument_view_instrument_matches"])
def test_an_inside_without_what_we_look_for(meter: Meter, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised, and nothing forgotten."""

    class Without:
        def __getattr__(self, name: str) -> Any:
            if name == broken:
                raise AttributeError(name)
            return Without() if name == "_measurement_consumer" else {Without(): Without()}

    real: Callable[[Any], Any] = sdk_internals._real
    assert sdk_internals.all_readers([meter.instruments.wait_time]) != []
    monkeypatch.setattr(sdk_internals, "_real", lambda _instrument: Without())
    assert sdk_internals.drop_all_series([meter.instruments.wait_time]) is False
    assert sdk_internals.drop_series([Without()], [meter.instruments.wait_time], bool) is (broken == "_reader_storages")
    assert sdk_internals.drops_attribute(Without(), None, "x") is False
    assert real(None) is None
