"""Instrumented engines of SQLAlchemy beside other instrumentors and dialects, in forks, and at `uninstrument()`."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import Span, SpanProcessor
from sqlalchemy import event, exc
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, Pool, QueuePool, StaticPool
from sqlalchemy.util.queue import Queue

from tests.support.database import lives
from tests.support.forked_pools import states
from tests.support.processes import in_child
from tests.support.sqlalchemy_engines import (
    POOL_NAME,
    Engines,
    attribute,
    borrow,
    engine_tracker,
    fill,
    hooked,
    listening,
    select,
    told,
    waits,
)
from tests.support.telemetry import Signals, is_child, until
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from psycopg2.extensions import connection

POOLS = (QueuePool, NullPool, StaticPool)
EVENTS = ("connect", "checkout", "checkin", "invalidate", "detach", "close", "soft_invalidate", "reset")


def names(signals: Signals) -> list[str]:
    return sorted(span.name for span in list(signals.spans.started))


# Other dialects, other pools


def test_other_dialect(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine on anything but psycopg2 is left alone."""
    engine = engines("sqlite://")
    with engine.connect() as conn:
        assert select(conn) == 1
        conn.invalidate()
    with Session(engine) as session:
        assert select(session) == 1
    engine.dispose()
    assert names(signals) == []
    assert signals.metrics() == {}
    assert "_otel_pgpool" not in vars(engine.pool)


def test_past_the_engine(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A connection taken from the pool itself, past its engine, is no checkout; the levels count it."""
    engine = engines()
    borrow(engine)
    taken = engine.pool.connect()
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 1, ("idle",): 0}
    taken.close()
    assert signals.values("db.client.connection.count", engines.name) == {("used",): 0, ("idle",): 1}
    assert len(signals.named("pool.checkout")) == 1


# Beside other instrumentors


ORDERS = (
    ("instrumentation", "queries", "engines"),
    ("engines", "queries", "instrumentation"),
    ("queries", "instrumentation", "engines"),
)


@pytest.mark.parametrize("order", ORDERS)
def test_beside_other_instrumentors(signals: Signals, engines: Engines, order: tuple[str, ...]) -> None:
    """With those of OpenTelemetry for SQLAlchemy and psycopg2, in any order, no span comes out twice.

    Their spans are where they would be without the instrumentation, and a hold's place is still the program's line.
    """
    providers = {"tracer_provider": signals.tracer_provider, "meter_provider": signals.meter_provider}
    with ExitStack() as stack:
        for each in order:
            if each == "instrumentation":
                stack.enter_context(hooked(signals, long_hold=PATIENCE))
                continue
            other = SQLAlchemyInstrumentor() if each == "engines" else Psycopg2Instrumentor()
            other.instrument(**providers, skip_dep_check=True)
            stack.callback(other.uninstrument)
        engine = sqlalchemy.create_engine(engines.url)
        stack.callback(engine.dispose)
        borrow(engine)
        signals.spans.started.clear()
        signals.records.all.clear()
        with signals.tracer.start_as_current_span("order") as root, engine.connect() as conn:
            select(conn)
            engine_tracker(engine).long_hold = 0.0
            (record,) = until(lambda: signals.logged("long_hold"))
        assert signals.live() == []
        # The queries' spans are both instrumentors' own: the one for psycopg2 and the one for SQLAlchemy.
        assert names(signals) == ["connect", "order", "pool.checkout", "select", "select postgres"]
        connect = signals.named("connect")[-1]
        assert is_child(connect, root)
        assert is_child(signals.named("pool.checkout")[-1], connect)
        innermost = record.attributes["otel_pgpool.checked_out_at"].splitlines()[0]
        assert innermost.endswith(" test_beside_other_instrumentors")
    assert Engine.raw_connection.__module__ == "sqlalchemy.engine.base"


@pytest.mark.parametrize("order", ORDERS)
def test_uninstrumented_in_the_order_of_their_coming(
    signals: Signals, engines: Engines, order: tuple[str, ...]
) -> None:
    """Whoever is taken off first, a program goes on without any of them."""
    others: dict[str, Any] = {"queries": Psycopg2Instrumentor(), "engines": SQLAlchemyInstrumentor()}
    with hooked(signals) as own:
        for each in order:
            if each != "instrumentation":
                others[each].instrument(tracer_provider=signals.tracer_provider, skip_dep_check=True)
        engine = engines()
        borrow(engine)
        for each in order:
            others.get(each, own).uninstrument()
        before = len(signals.spans.started)
        borrow(engines())
        borrow(engine)
        assert "pool.checkout" not in [span.name for span in signals.spans.started[before:]]


# Which checkouts leave spans


def test_suppressed(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Under suppression a checkout leaves neither span nor record; the levels count it."""
    engine = engines()
    with suppress_instrumentation(), engine.connect():
        assert signals.values("db.client.connection.count", engines.name) == {("used",): 1, ("idle",): 0}
    assert names(signals) == []
    assert signals.points("db.client.connection.wait_time", engines.name) == []
    assert signals.value("otel_pgpool.checkouts", "new", pool_name=engines.name) == 1


@pytest.mark.parametrize("mode", ["always", "parent", "slow", "off"])
def test_span_modes(signals: Signals, engines: Engines, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The modes are those of every pool; metrics do not depend on them."""
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "60")
    engine = engines()
    with hooked(signals, spans=mode):
        borrow(engine)
        with signals.tracer.start_as_current_span("order"):
            borrow(engine)
        with pytest.raises(exc.DBAPIError), engine.connect() as conn:
            select(conn, "nonsense")
        spans = {"always": 3, "parent": 1, "slow": 0, "off": 0}[mode]
        assert len(signals.named("pool.checkout")) == spans
        (waits_of_all,) = signals.points("db.client.connection.wait_time", engines.name)
        assert waits_of_all.count == 3
        assert signals.values("otel_pgpool.checkouts", engines.name) == {("idle",): 2, ("queued",): 0, ("new",): 1}
        stats = engine_tracker(engine).stats()
        assert (stats.used, stats.idle) == (0, 1)


@pytest.mark.parametrize("mode", ["slow", "off"])
def test_failures_in_span_modes(signals: Signals, engines: Engines, mode: str) -> None:
    """With `slow`, a timeout leaves a span, made afterwards; with `off` none, and its log and metrics all the same."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=0)
    with hooked(signals, spans=mode), engine.connect():
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        assert [attribute(span, "outcome") for span in signals.named("pool.checkout")] == (
            ["timeout"] if mode == "slow" else []
        )
        assert signals.value("db.client.connection.timeouts", pool_name=engines.name) == 1
        assert len(signals.logged("timeout")) == 1


# Telemetry that fails


class Failing(SpanProcessor):
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        raise RuntimeError("telemetry fails")

    on_end = on_start  # type: ignore[assignment]


def story(engine: Engine) -> None:
    """Use the engine in several ways."""
    with engine.connect() as one, engine.connect() as two:
        one.invalidate()
        two.detach()
    borrow(engine)
    with engine.connect():
        held = engine.connect()
        with pytest.raises(exc.TimeoutError):
            engine.connect()
        held.close()
    engine.dispose()
    borrow(engine)


def test_telemetry_that_raises(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Spans that cannot be started, and loggers that raise, cost nobody a connection; it is lamented once."""
    signals.tracer_provider.add_span_processor(Failing())
    story(engines(pool_size=1, max_overflow=1, pool_timeout=0))
    assert len([record for record in signals.records.all if "the observer raised" in record.record.msg]) <= 2


def test_tracker_that_cannot_be_opened(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A program whose pools cannot be watched goes on without."""

    def fail(*_args: Any, **_options: Any) -> Any:
        raise RuntimeError("telemetry fails")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("otel_pgpool.instrumentation.reported_pool.Telemetry", fail)
        story(engines(pool_size=1, max_overflow=1, pool_timeout=0))
    assert names(signals) == []


def test_dialect_that_cannot_be_asked(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A dialect of the program's that refuses to say where its URL leads is watched all the same."""
    engine = engines()

    def refuse(*_args: Any) -> Any:
        raise NotImplementedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.dialect, "create_connect_args", refuse)
        borrow(engine)
    assert len(signals.named("pool.checkout")) == 1


def test_engine_put_together_by_hand(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine that has no URL is watched all the same."""
    model = engines()
    engine = Engine(model.pool, model.dialect, None)  # type: ignore[arg-type]
    borrow(engine)
    assert attribute(signals.checkout(), "outcome") == "released"
    assert (signals.checkout().attributes or {})[POOL_NAME] == "psycopg2"


# Fork


def work(engine: Engine) -> list[int]:
    return [borrow(engine) for _ in range(3)]


def work_with_options(engine: Engine) -> list[int]:
    return work(engine.execution_options(logging_token="child"))


def dispose_and_work(engine: Engine) -> list[int]:
    engine.dispose()
    return work(engine)


@pytest.mark.parametrize("deed", [work, work_with_options, dispose_and_work])
@pytest.mark.parametrize("first", [work, work_with_options])
def test_child_has_a_pool_of_its_own(
    signals: Signals,
    instrumentation: None,
    engines: Engines,
    admin: connection,
    *,
    deed: Callable[[Engine], list[int]],
    first: Callable[[Engine], list[int]],
) -> None:
    """The child connects anew, and the server hears nothing of it on the parent's sockets."""
    engine = engines(pool_size=3)
    first(engine)
    pids = fill(engine, 3)
    before = states(admin, pids)
    theirs = {int(pid) for pid in in_child(lambda: " ".join(map(str, deed(engine)))).split()}
    assert len(theirs) == 1
    assert not theirs & {*pids}
    assert states(admin, pids) == before
    assert sorted(fill(engine, 3)) == sorted(pids)


@pytest.mark.parametrize("poolclass", POOLS)
def test_child_counts_its_own(signals: Signals, instrumentation: None, engines: Engines, poolclass: type) -> None:
    """In the child nothing is out and nothing was done yet; the pool goes on under its name."""
    engine = engines(poolclass=poolclass)
    borrow(engine)
    held = engine.connect()

    def child() -> Any:
        borrow(engine)
        checkouts = signals.values("otel_pgpool.checkouts", engines.name)
        count = signals.values("db.client.connection.count", engines.name)
        known = {
            point.attributes[POOL_NAME] for metric in signals.metrics().values() for point in metric.data.data_points
        }
        return (
            sum(checkouts.values()),
            count["used",],
            signals.value("otel_pgpool.connections.created", pool_name=engines.name),
            known == {engines.name},
        )

    assert in_child(child) == str((1, 0, 1, True))
    held.close()
    assert told(signals, "outcome") == ["released"] * 2
    assert sum(signals.values("otel_pgpool.checkouts", engines.name).values()) == 2


def test_fork_of_a_pool_that_is_used_past_its_engine(
    signals: Signals, instrumentation: None, engines: Engines, admin: connection
) -> None:
    """In the child it has lost the parent's connections, like the engine, and connects anew."""
    engine = sqlalchemy.create_engine(engines.url)
    pid = borrow(engine)
    pool = engine.pool
    del engine
    gc.collect()

    def child() -> int:
        raw: Any = pool.connect()
        return int(raw.dbapi_connection.info.backend_pid)

    assert int(in_child(child)) != pid
    assert lives(admin, pid)
    pool.dispose()
    until(lambda: not lives(admin, pid))


def test_fork_by_an_early_release(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """Where SQLAlchemy cannot leave connections open when it disposes of a pool, the pool is replaced all the same."""
    engine = engines()
    pid = borrow(engine)

    def dispose() -> None:
        raise AssertionError("not called without an argument")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "dispose", dispose)
        assert int(in_child(lambda: borrow(engine))) != pid
    assert borrow(engine) == pid


def test_fork_of_an_engine_never_used(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """An engine that the parent has not used is the child's like any other."""
    engine = engines()
    assert int(in_child(lambda: borrow(engine)))
    assert int(in_child(lambda: borrow(engine)))
    borrow(engine)
    assert told(signals, "path") == ["new"]


def test_fork_while_others_wait(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """A child of a parent whose pool is full and waited for has a pool that is neither."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    held = engine.connect()
    waiter = in_thread(borrow, engine)
    until(waits(engine))

    def child() -> Any:
        borrow(engine)
        stats = engine_tracker(engine).stats()
        return stats.used, stats.waiting, stats.idle

    assert in_child(child) == str((0, 0, 1))
    held.close()
    waiter.result(PATIENCE)


# Its end


def listeners() -> dict[str, list[Any]]:
    """Who listens to every pool."""
    kinds = {Pool: EVENTS, Dialect: ("do_connect",)}
    return {name: [*getattr(kind.dispatch, name)._clslevel.get(kind, ())] for kind in kinds for name in kinds[kind]}


def test_nothing_is_left(signals: Signals, engines: Engines) -> None:
    """Taken off, the instrumentation leaves the classes, their listeners and the pools as it found them."""
    before = listeners(), Engine.raw_connection, Queue.get
    engine = engines()
    known = set(vars(engine.pool))
    for _ in range(2):
        with hooked(signals):
            borrow(engine)
            assert listeners() != before[0]
        assert (listeners(), Engine.raw_connection, Queue.get) == before
        assert set(vars(engine.pool)) <= known | {"connection"}
    spans = len(signals.spans.started)
    borrow(engine)
    assert len(signals.spans.started) == spans
    assert signals.values("db.client.connection.count", engines.name) == {}


@pytest.mark.parametrize("poolclass", POOLS)
def test_taken_off_while_lent(signals: Signals, engines: Engines, poolclass: type) -> None:
    """What is out when the instrumentation is taken off ends with it, and comes back as ever."""
    engine = engines(poolclass=poolclass)
    with hooked(signals):
        held = engine.connect()
        pid = select(held, "select pg_backend_pid()")
    assert told(signals, "outcome") == ["released"]
    assert select(held, "select pg_backend_pid()") == pid
    with hooked(signals):
        held.close()
        borrow(engine)
    assert told(signals, "outcome") == ["released", "released"]
    assert signals.live() == []


def test_taken_off_while_waited_for(signals: Signals, engines: Engines) -> None:
    """A caller who waits when the instrumentation is taken off is served, and its span ends."""
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=PATIENCE)
    with hooked(signals):
        held = engine.connect()
        waiter = in_thread(borrow, engine)
        until(waits(engine))
    held.close()
    waiter.result(PATIENCE)
    assert sorted(told(signals, "path")) == ["new", "queued"]
    assert signals.live() == []


def test_taken_off_between(signals: Signals, engines: Engines) -> None:
    """A checkout that is served at the moment when the instrumentation is taken off ends with it."""
    engine = engines()
    with hooked(signals) as instrumentor, pytest.MonkeyPatch.context() as patch:
        stock = engine.pool.connect

        def connect() -> Any:
            served = stock()
            instrumentor.uninstrument()
            return served

        patch.setattr(engine.pool, "connect", connect)
        held = engine.connect()
        assert told(signals, "outcome") == ["released"]
        assert select(held) == 1
        held.close()
    assert signals.live() == []


def test_on_again(signals: Signals, engines: Engines) -> None:
    """On again, the instrumentation begins anew, under the pool's name, whose totals go on."""
    engine = engines()
    for number in range(3):
        with hooked(signals):
            borrow(engine)
            checkouts = signals.values("otel_pgpool.checkouts", engines.name)
            assert sum(checkouts.values()) == number + 1
            assert engine_tracker(engine).handed_out == 1
    assert told(signals, "path") == ["new", "idle", "idle"]


def test_wrapped_by_another_since(signals: Signals, engines: Engines) -> None:
    """A wrapper that others have put around the instrumentation's stays at `uninstrument()`, and passes calls on."""
    engine, original = engines(), Engine.raw_connection
    calls = []
    try:
        with hooked(signals):
            inner = Engine.raw_connection

            def outer(self: Engine, *args: Any, **kwargs: Any) -> Any:
                calls.append(self)
                return inner(self, *args, **kwargs)

            Engine.raw_connection = outer  # type: ignore[method-assign]
            borrow(engine)
        borrow(engine)
        assert Engine.raw_connection is outer
        with hooked(signals):
            borrow(engine)
    finally:
        Engine.raw_connection = original  # type: ignore[method-assign]
    assert calls == [engine] * 3
    assert len(signals.named("pool.checkout")) == 2
    assert signals.live() == []


def test_killed_in_the_end(signals: Signals, engines: Engines, admin: connection) -> None:
    """An engine that outlives the instrumentation disposes of its connections as ever."""
    engine = engines()
    with hooked(signals):
        pid = borrow(engine)
    engine.dispose()
    until(lambda: not lives(admin, pid))


def test_program_that_removes_its_listeners(signals: Signals, instrumentation: None, engines: Engines) -> None:
    """The program's own listeners come and go beside the instrumentation's."""
    heard: list[int] = []

    def listener(*_args: Any) -> None:
        heard.append(os.getpid())

    engine = engines()
    with listening(Pool, "checkout", listener), listening(engine, "checkin", listener):
        borrow(engine)
    assert not event.contains(Pool, "checkout", listener)
    borrow(engine)
    assert len(heard) == 2
    assert told(signals, "path") == ["new", "idle"]
