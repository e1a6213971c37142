"""An instrumented program behaves as without: same objects, same order, same errors, whatever telemetry does."""

from __future__ import annotations

import _thread
import inspect
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from psycopg2.extensions import connection
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

from tests.support.broken_telemetry import BrokenAtEnd, BrokenAtStart, BrokenSampler, broken
from tests.support.instrumentation import STOCK, denied, instrumented, lent, name_of, quietly, tracker_of
from tests.support.telemetry import Signals, assert_exactly, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Pool = Any


class SemaphorePool(ThreadedConnectionPool):
    """As programs write it, for want of a pool that waits."""

    def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
        self.places = threading.Semaphore(maxconn)
        super().__init__(minconn, maxconn, *args, **kwargs)

    def getconn(self, *args: Any, **kwargs: Any) -> Any:
        if not self.places.acquire(blocking=False):
            raise PoolError("no place")
        try:
            return super().getconn(*args, **kwargs)
        except BaseException:
            self.places.release()
            raise

    def putconn(self, *args: Any, **kwargs: Any) -> None:
        super().putconn(*args, **kwargs)
        self.places.release()


class AbstractPool(AbstractConnectionPool):
    """One whose methods have the stock names, made the way psycopg2 makes its own."""

    getconn = AbstractConnectionPool._getconn  # type: ignore[attr-defined]
    putconn = AbstractConnectionPool._putconn  # type: ignore[attr-defined]
    closeall = AbstractConnectionPool._closeall  # type: ignore[attr-defined]


class Brittle(connection):
    """A connection whose rollback fails when it is told to."""

    brittle = False

    def rollback(self) -> None:
        if self.brittle:
            raise psycopg2.OperationalError("rollback failed")
        super().rollback()


class Script:
    """Takes steps, and notes what comes of each: which of the pool's connections, or which error with which words."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.seen: list[Any] = []
        self.log: list[Any] = []

    def name(self, value: Any) -> Any:
        """Return the name of a connection: its number in the order of first use."""
        if not isinstance(value, connection):
            return repr(value)
        if not any(known is value for known in self.seen):
            self.seen.append(value)
        return next(f"conn {number}" for number, known in enumerate(self.seen) if known is value)

    def use(self, sql: str) -> Any:
        """Check a connection out and let it do something."""
        conn = self.step("getconn")
        try:
            conn.cursor().execute(sql)
        except psycopg2.Error as error:
            self.log.append((type(error), str(error)))
        return conn

    def step(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = getattr(self.pool, method)(*args, **kwargs)
            told = self.name(result)
        except BaseException as error:  # noqa: BLE001 - to compare
            cause = (error.__cause__, error.__context__, error.__suppress_context__)
            told = (type(error), str(error), repr(cause))
        pool = self.pool
        self.log.append(
            (
                method,
                told,
                [self.name(conn) for conn in pool._pool],
                {key: self.name(conn) for key, conn in pool._used.items()},
                len(pool._rused),
                pool._keys,
                pool.closed,
                [(conn.closed, conn.info.transaction_status) for conn in self.seen],
            )
        )
        return result


def play(cls: type[Pool], dsn: str) -> list[Any]:
    """Everything that may be done to a stock pool, the foolish included."""
    script = Script(cls(2, 3, dsn, connection_factory=Brittle))
    step = script.step
    first, second = step("getconn"), step("getconn", "second")
    assert step("getconn", key="second") is second
    third = step("getconn")
    step("getconn")  # exhausted
    step("getconn", 1, 2, 3)
    step("getconn", nokey=1)
    step("getconn", [])
    step("putconn")
    step("putconn", key="second")
    step("putconn", None)
    step("putconn", first, None, False, False)
    step("putconn", first, nokey=1)
    step("putconn", third)
    step("putconn", third)  # twice
    step("putconn", conn=second, key="second")
    step("putconn", second, "second")
    step("putconn", first)  # one too many
    step("putconn", object())
    step("putconn", "text")
    step("putconn", script.use("select 1"))  # in a transaction
    step("putconn", script.use("no sql"))  # in error
    held = script.use("select 1")
    held.brittle = True
    step("putconn", held)  # its rollback fails
    step("getconn", "more")
    step("putconn", held, None, True)
    held = step("getconn", "more")
    held.close()
    step("putconn", held, "more", False)
    step("putconn", step("getconn"), close=True)
    step("getconn")
    lost = step("getconn")
    step("closeall")
    step("closeall")
    step("getconn")
    step("getconn", "second")
    step("putconn", lost)
    step("putconn", lost, None, True)
    return script.log


@contextmanager
def hooked(signals: Signals, **options: Any) -> Iterator[None]:
    with instrumented(signals, **options):
        yield


@contextmanager
def suppressed(signals: Signals) -> Iterator[None]:
    with instrumented(signals), suppress_instrumentation():
        yield


HOOKS: dict[str, Callable[[Signals], Any]] = {
    "with spans and records": lambda signals: hooked(signals, long_hold=0.0001),
    "with the slow spans": lambda signals: hooked(signals, spans="slow"),
    "with records": lambda signals: hooked(signals, spans="off"),
    "quietly": lambda _signals: quietly(),
    "suppressed": suppressed,
}


@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize("cls", [*STOCK, SemaphorePool, AbstractPool])
def test_same_script(signals: Signals, dsn: str, cls: type[Pool], how: str) -> None:
    """One script, without the instrumentation and with it: the same results, errors, order and levels at every step."""
    without = play(cls, dsn)
    with HOOKS[how](signals):
        assert play(cls, dsn) == without


class Hollow(ThreadedConnectionPool):
    """A pool whose constructor has not done its work."""

    def __init__(self) -> None:
        pass

    def closeall(self) -> None:
        super().closeall()


class HollowSubclass(Hollow):
    def getconn(self, key: object = None) -> Any:
        return super().getconn(key)

    def putconn(self, *args: Any, **kwargs: Any) -> None:
        super().putconn(*args, **kwargs)


@pytest.mark.parametrize("cls", [Hollow, HollowSubclass])
def test_pool_that_is_none_yet(signals: Signals, cls: type[Pool]) -> None:
    """It fails in its own way."""

    def play() -> list[tuple[type, str]]:
        errors = []
        for method, args in [("getconn", ()), ("getconn", ("key",)), ("putconn", (None, "key")), ("putconn", (5,))]:
            with pytest.raises(AttributeError) as caught:
                getattr(cls(), method)(*args)
            errors.append((type(caught.value), str(caught.value)))
        with pytest.raises(AttributeError) as caught:
            cls().closeall()
        return [*errors, (type(caught.value), str(caught.value))]

    without = play()
    for hook in (instrumented(signals), quietly()):
        with hook:
            assert play() == without


@pytest.mark.parametrize("cls", STOCK)
def test_same_faces(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """Names, signatures and documentation of the methods are the stock ones."""

    def faces() -> list[Any]:
        methods = [getattr(cls, name) for name in ("__init__", "getconn", "putconn", "closeall", "_connect")]
        return [(inspect.signature(m), m.__name__, m.__qualname__, m.__doc__, m.__module__) for m in methods]

    without = faces()
    with instrumented(signals):
        assert faces() == without


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("cls", [*STOCK, SemaphorePool])
def test_called_by_nobody(signals: Signals, dsn: str, cls: type[Pool], quiet: bool) -> None:
    """A thread or greenlet whose first function is getconn itself has no caller: it is served all the same."""
    with quietly() if quiet else instrumented(signals):
        pool = cls(1, 1, dsn)
        pool.putconn(pool.getconn())  # so that it is not that thread which starts the watch
        _thread.start_new_thread(pool.getconn, ())
        (conn,) = until(lambda: list(pool._used.values()))
        tracker = tracker_of(pool)
        until(lambda: tracker.held or tracker.light)
        pool.putconn(conn)

        def figures() -> tuple[float, ...]:
            stats = tracker.stats()
            return sum(stats.checkouts.values()), stats.used, stats.oldest_hold

        until(lambda: figures() == (2, 0, 0.0))  # its getconn may not have ended yet


# What telemetry does wrong


def with_processor(processor: SpanProcessor) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


class BrokenTracerProvider(TracerProvider):
    get_tracer = broken


class BrokenMeterProvider(MeterProvider):
    get_meter = broken


BROKEN: dict[str, Callable[[], dict[str, Any]]] = {
    "start of a span": lambda: {"tracer_provider": with_processor(BrokenAtStart())},
    "end of a span": lambda: {"tracer_provider": with_processor(BrokenAtEnd())},
    "sampler": lambda: {"tracer_provider": TracerProvider(BrokenSampler(), shutdown_on_exit=False)},
    "tracer": lambda: {"tracer_provider": BrokenTracerProvider(shutdown_on_exit=False)},
    "meter": lambda: {"meter_provider": BrokenMeterProvider(shutdown_on_exit=False)},
    "no provider": lambda: {"tracer_provider": "nonsense", "meter_provider": 5},
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("cls", [ThreadedConnectionPool, SemaphorePool])
def test_telemetry_that_raises(dsn: str, caplog: pytest.LogCaptureFixture, cls: type[Pool], what: str) -> None:
    """The program sees none of it, no connection is lost, and it is logged, not each time."""
    without = play(cls, dsn)
    caplog.clear()
    with instrumented(None, **BROKEN[what](), long_hold=None):
        assert play(cls, dsn) == without
        pool = cls(1, 2, dsn)
        for _ in range(20):
            pool.putconn(pool.getconn())
        assert (len(pool._pool), len(pool._used)) == (1, 0)
    messages = [record.message for record in caplog.records if record.name == "otel_pgpool"]
    lamented = [message for message in messages if "raised" in message or "must be a provider" in message]
    assert 1 <= len(lamented) <= 3  # each pool, or each provider, once


class Interrupting(SpanProcessor):
    """Raises an interrupt, as Ctrl-C does where it happens to arrive, at the next start or end of a checkout's span."""

    armed = ""

    def _at(self, moment: str, span: Any) -> None:
        if self.armed == moment and span.name == "pool.checkout":
            self.armed = ""
            raise KeyboardInterrupt

    def on_start(self, span: Any, parent_context: object = None) -> None:
        self._at("start", span)

    def on_end(self, span: Any) -> None:
        self._at("end", span)


@pytest.mark.parametrize("cls", [ThreadedConnectionPool, SemaphorePool])
def test_interrupt_before_the_connection(dsn: str, cls: type[Pool]) -> None:
    """An interrupt inside getconn, before the pool gave anything, leaves the pool as it was."""
    interrupting = Interrupting()
    with instrumented(None, tracer_provider=with_processor(interrupting)):
        pool = cls(1, 1, dsn)
        interrupting.armed = "start"
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        assert len(pool._used) == 0
        pool.putconn(pool.getconn())
        assert sum(tracker_of(pool).stats().checkouts.values()) == 1


@pytest.mark.parametrize("cls", [ThreadedConnectionPool, SimpleConnectionPool, SemaphorePool])
def test_interrupt_after_the_connection(signals: Signals, dsn: str, cls: type[Pool]) -> None:
    """One that arrives between the pool's gift and the caller's hand gives the connection back."""
    with instrumented(signals):
        pool = cls(1, 1, dsn)
        tracker = tracker_of(pool)
        histogram = tracker._observer._wait_time

        class Interrupted:
            def record(self, *_args: object) -> None:
                tracker._observer._wait_time = histogram
                raise KeyboardInterrupt

        tracker._observer._wait_time = Interrupted()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        assert len(pool._used) == 0
        assert tracker.held == {}
        assert signals.live() == []
        assert len(signals.named("pool.checkout")) == 1
        conn = pool.getconn()  # and the thread's next checkout is seen
        assert len(signals.live()) == 1
        pool.putconn(conn)


def test_interrupt_in_the_quiet_path(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a checkout leaves nothing."""
    with quietly():
        pool = ThreadedConnectionPool(1, 1, dsn)
        watch = tracker_of(pool).watch

        def interrupted() -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        watch.parked = True
        monkeypatch.setattr(watch, "wake", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        assert len(pool._used) == 0
        assert tracker_of(pool).light == {}
        pool.putconn(pool.getconn())


def test_interrupt_in_a_subclass(signals: Signals, instrumentation: None, dsn: str) -> None:
    """An interrupt of the program's own wait fails its checkout, with the interrupt as the type."""

    class Interrupted(ThreadedConnectionPool):
        armed = True

        def getconn(self, key: object = None) -> Any:
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return super().getconn(key)

    pool = Interrupted(1, 1, dsn)
    with pytest.raises(KeyboardInterrupt):
        pool.getconn()
    assert_exactly(signals.checkout().attributes, denied(dsn, "error", "KeyboardInterrupt"))
    pool.putconn(pool.getconn())
    assert_exactly(signals.named("pool.checkout")[1].attributes, lent(dsn))


@pytest.mark.parametrize("quiet", [False, True])
def test_no_thread_can_be_started(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    """A program out of threads gets its connections; the watch begins with the first checkout that can start it."""

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with instrumented(None if quiet else signals, long_hold=0.02, **({"spans": "off"} if quiet else {})):
        pool = ThreadedConnectionPool(1, 2, dsn)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            pool.putconn(pool.getconn())
            first = pool.getconn()
        second = pool.getconn()
        until(lambda: len(signals.logged("long_hold")) == 2)
        pool.putconn(first)
        pool.putconn(second)


# Modes


def test_only_under_a_recording_span(signals: Signals, dsn: str) -> None:
    """`spans=parent` tells of checkouts inside the program's traces; records and totals of all."""
    with instrumented(signals, spans="parent", long_hold=None):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert signals.named("pool.checkout") == []
        with signals.tracer.start_as_current_span("order"):
            pool.putconn(pool.getconn())
        assert_exactly(signals.checkout().attributes, lent(dsn))
        assert signals.value("otel_pgpool.checkouts", "idle", pool_name=name_of(dsn)) == 2
        (waits,) = signals.points("db.client.connection.wait_time", name_of(dsn))
        (uses,) = signals.points("db.client.connection.use_time", name_of(dsn))
        assert (waits.count, uses.count) == (2, 2)


def test_only_slow_ones(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`spans=slow` tells of those that held or waited long, failed or were flagged."""
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "30")
    with instrumented(signals, spans="slow", long_hold=30):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert signals.named("pool.checkout") == []
        tracker_of(pool).long_hold = 0.02
        conn = pool.getconn()
        with pytest.raises(PoolError):
            pool.getconn()
        assert_exactly(signals.checkout().attributes, denied(dsn, "timeout", "timeout", "idle"))
        until(lambda: signals.logged("long_hold"))
        pool.putconn(conn)
        flagged = signals.named("pool.checkout")[1]
        assert_exactly(flagged.attributes, lent(dsn, long_hold=True))
        assert [event.name for event in flagged.events] == ["pool.long_hold"]


def test_no_spans(signals: Signals, dsn: str) -> None:
    """`spans=off` leaves metrics and logs."""
    with instrumented(signals, spans="off", long_hold=0.02):
        pool = ThreadedConnectionPool(0, 1, dsn)
        conn = pool.getconn()
        with pytest.raises(PoolError):
            pool.getconn()
        until(lambda: signals.logged("long_hold"))
        pool.putconn(conn)
        assert signals.spans.started == []
        points = signals.points("db.client.connection.wait_time", name_of(dsn))
        assert sorted(point.attributes.get("error.type", "") for point in points) == ["", "timeout"]
        assert len(signals.logged("timeout")) == 1
        (created,) = signals.points("db.client.connection.create_time", name_of(dsn))
        assert created.count == 1


def test_no_spans_and_no_records(signals: Signals, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without histograms too, levels, totals and logs are as true, and a meter provider costs a checkout nothing."""
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "none")
    with instrumented(signals, spans="off", long_hold=0.25):
        pool = ThreadedConnectionPool(0, 1, dsn)
        conn = pool.getconn()
        assert tracker_of(pool).light != {}
        assert signals.value("db.client.connection.count", "used", pool_name=name_of(dsn)) == 1
        with pytest.raises(PoolError):
            pool.getconn()
        until(lambda: signals.logged("long_hold"))
        assert signals.value("otel_pgpool.oldest_hold", pool_name=name_of(dsn)) >= 0.25
        pool.putconn(conn)
        assert signals.values("otel_pgpool.checkouts", name_of(dsn)) == {("idle",): 0, ("queued",): 0, ("new",): 1}
        assert signals.value("otel_pgpool.long_holds", pool_name=name_of(dsn)) == 1
        assert signals.value("db.client.connection.timeouts", pool_name=name_of(dsn)) == 1
        assert len(signals.logged("timeout")) == 1
        assert signals.points("db.client.connection.wait_time", name_of(dsn)) == []


def test_suppressed(signals: Signals, instrumentation: None, dsn: str) -> None:
    """Under the SDK's own suppression a checkout leaves neither span nor record; levels and totals stay true."""
    pool = ThreadedConnectionPool(1, 1, dsn)
    signals.spans.started.clear()
    with suppress_instrumentation():
        conn = pool.getconn()
        assert signals.value("db.client.connection.count", "used", pool_name=name_of(dsn)) == 1
        pool.putconn(conn)
    assert signals.spans.started == []
    assert signals.points("db.client.connection.wait_time", name_of(dsn)) == []
    assert signals.value("otel_pgpool.checkouts", "idle", pool_name=name_of(dsn)) == 1


def test_unsampled(dsn: str) -> None:
    """A trace that is not sampled costs the program nothing but that."""
    with Signals(ALWAYS_OFF) as signals, instrumented(signals):
        pool = ThreadedConnectionPool(1, 1, dsn)
        pool.putconn(pool.getconn())
        assert signals.spans.ended == []
        assert signals.value("otel_pgpool.checkouts", "idle", pool_name=name_of(dsn)) == 1
