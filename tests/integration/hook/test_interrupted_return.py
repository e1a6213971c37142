"""A return that an interrupt breaks off: Ctrl-C, or gevent's Timeout while it waits for the stock pool's lock."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest
from psycopg2.pool import ThreadedConnectionPool

from otel_pgpool import PgPoolInstrumentor
from otel_pgpool.runtime.background import BackgroundThread
from tests.support.instrumentation import tracker_of
from tests.support.telemetry import Signals
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import Checkout


class Interrupted:
    """A lock that nobody gets."""

    def acquire(self) -> None:
        raise KeyboardInterrupt

    def release(self) -> None:
        raise AssertionError


@pytest.fixture
def signals() -> Iterator[Signals]:
    instrumentor = PgPoolInstrumentor()
    with Signals() as signals:
        instrumentor.instrument(tracer_provider=signals.tracer_provider, meter_provider=signals.meter_provider)
        yield signals
        instrumentor.uninstrument()


def test_the_hold_goes_on(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool still counts the connection as used, and so does telemetry, until it does come back."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_lock", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            pool.putconn(conn)
    assert signals.named("pool.checkout") == []
    (point,) = signals.metrics()["otel_pgpool.oldest_hold"].data.data_points
    assert point.value > 0
    pool.putconn(conn)
    assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "released"
    pool.closeall()


class Late(ThreadedConnectionPool):
    """Interrupted when the connection is back already."""

    interrupted = False

    def _putconn(self, *args: object, **kwargs: object) -> None:
        super()._putconn(*args, **kwargs)  # type: ignore[misc]  # psycopg2 has no types for it
        if self.interrupted:
            raise KeyboardInterrupt


def test_the_hold_has_ended(signals: Signals, dsn: str) -> None:
    """The pool has taken note: so has telemetry, and no error of the pool's is told."""
    pool = Late(1, 1, dsn)
    conn = pool.getconn()
    pool.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        pool.putconn(conn)
    attributes = signals.checkout().attributes or {}
    assert attributes["otel_pgpool.outcome"] == "released"
    assert "error.type" not in attributes
    assert signals.live() == []
    pool.closeall()


@contextmanager
def struck(tracker: PoolTracker, strike: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Call ``strike`` inside the first notification about a return."""
    released, calls = tracker._observer.released, count()

    def told(loan: Checkout) -> None:
        if next(calls) == 0:
            strike()
        released(loan)

    with monkeypatch.context() as patch:
        patch.setattr(tracker._observer, "released", told)
        yield


def test_what_was_left_undone_is_done(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt inside the telemetry itself costs neither the hold's end nor its span."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    conn = pool.getconn()
    tracker = tracker_of(pool)
    with struck(tracker, Interrupted().acquire, monkeypatch), pytest.raises(KeyboardInterrupt):
        pool.putconn(conn)
    assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "released"
    assert (len(tracker.held), signals.live()) == (0, [])
    pool.closeall()


class Handler:
    """One that is an object, and equal to none."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, _number: int, _frame: object) -> None:
        raise SoftTimeLimitExceeded


def handle(_number: int, _frame: object) -> None:
    """One that is a function."""
    raise SoftTimeLimitExceeded


class SoftTimeLimitExceeded(Exception):  # noqa: N818 - it is called so
    """As Celery's."""


@pytest.mark.parametrize("handler", [handle, Handler()])
def test_a_time_limit_reaches_the_program(
    signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, handler: Callable[[int, object], None]
) -> None:
    """What a signal handler raises inside the telemetry is the program's, though it is an `Exception`."""
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        pool = ThreadedConnectionPool(1, 1, dsn)
        conn = pool.getconn()
        tracker = tracker_of(pool)
        raised = pytest.raises(SoftTimeLimitExceeded)
        with struck(tracker, lambda: signal.raise_signal(signal.SIGUSR1), monkeypatch), raised:
            pool.putconn(conn)
        assert (len(tracker.held), signals.live()) == (0, [])
        pool.closeall()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_watch_is_woken_by_the_next(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt on the way to the watch leaves it to the next checkout to wake it."""
    pool = ThreadedConnectionPool(2, 2, dsn)
    watch = tracker_of(pool).watch
    with monkeypatch.context() as patch:
        patch.setattr(BackgroundThread, "wake", Interrupted().acquire)
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
    assert watch.parked
    conn = pool.getconn()
    assert not watch.parked
    assert wait_until(lambda: tracker_of(pool).long_holds)
    pool.putconn(conn)
    assert signals.live() == []
    pool.closeall()
