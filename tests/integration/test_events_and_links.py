"""The course of a checkout in its span: events at their times, long holds while they last, links to the holders."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager
from time import monotonic, sleep, time_ns
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import psycopg2
import pytest
from flask import Flask
from opentelemetry.instrumentation.utils import suppress_instrumentation
from psycopg2 import extensions
from werkzeug.serving import make_server

from otel_pgpool import PoolTimeout
from tests.support.call_sites import shown_name
from tests.support.pools import let_last
from tests.support.telemetry import (
    MOMENT,
    NAME,
    Signals,
    assert_exactly,
    is_child,
    queued,
    until,
    waited,
)
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import Event, ReadableSpan
    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool

THRESHOLD = 0.05
NEXT_TO_NOTHING = 1e4  # ns, for what is rounded
HERE = os.path.abspath(__file__)  # noqa: PTH100 - as code objects have it


def start(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


def figure(attributes: Any, name: str) -> float:
    value = attributes[f"otel_pgpool.{name}"]
    assert type(value) is float
    return value


def told(attributes: Any, name: str) -> Any:
    return told_as(attributes, f"otel_pgpool.{name}")


def told_as(attributes: Any, name: str) -> Any:
    return attributes[name]


def assert_in_order(span: ReadableSpan) -> None:
    """Events lie within their span and in the order of their times."""
    times = [event.timestamp for event in span.events]
    assert times == sorted(times)
    assert all(start(span) <= time <= end(span) for time in times)


# pool.acquired


def assert_acquired(span: ReadableSpan, path: str) -> None:
    (event,) = [event for event in span.events if event.name == "pool.acquired"]
    assert_exactly(event.attributes, {"otel_pgpool.path": path})
    waited, held = (figure(span.attributes, name) for name in ("wait_time", "hold_time"))
    assert event.timestamp == pytest.approx(end(span) - held * 1e9, abs=NEXT_TO_NOTHING)
    assert event.timestamp >= start(span) + waited * 1e9 - NEXT_TO_NOTHING
    assert_in_order(span)


def test_acquired_after_a_wait(signals: Signals, dsn: str) -> None:
    """A hand-over that was not at once is an event at its real time: start plus wait."""
    with signals.pool(0, 1, dsn) as pool:
        conn = pool.getconn()
        began = monotonic()
        with queued(pool, lambda: pool.putconn(pool.getconn())):
            sleep(0.3)  # the wait itself
            pool.putconn(conn)
        most = monotonic() - began
    new, waited = signals.named("pool.checkout")
    assert_acquired(new, "new")
    assert_acquired(waited, "queued")
    assert 0.3 <= figure(waited.attributes, "wait_time") <= most


def test_wait_has_real_times(signals: Signals, dsn: str) -> None:
    """pool.wait lasts from the queueing to the hand-over, inside its checkout, which goes on."""
    with signals.pool(1, 1, dsn) as pool:
        conn = pool.getconn()
        lent: list[float] = []  # the waiter looks at what was not used for a while, before it has it

        def borrow() -> None:
            conn = pool.getconn()
            lent.append(monotonic())
            sleep(0.2)  # the hold
            pool.putconn(conn)

        began = monotonic()
        with queued(pool, borrow):
            sleep(0.3)  # the wait
            returned = monotonic()
            pool.putconn(conn)
        ended = monotonic()
    checkout, wait = signals.named("pool.checkout")[-1], signals.one("pool.wait")
    assert start(checkout) <= start(wait) <= end(wait) <= end(checkout)
    assert 0.3e9 <= end(wait) - start(wait) <= (lent[0] - began) * 1e9
    assert 0.2e9 <= end(checkout) - end(wait) <= (ended - returned) * 1e9
    (acquired,) = checkout.events
    assert acquired.timestamp == pytest.approx(end(wait), abs=NEXT_TO_NOTHING)


def test_connect_has_real_times(signals: Signals, dsn: str) -> None:
    """pool.connect lasts as long as the connect and the program's configure."""
    began = monotonic()
    with signals.pool(0, 1, dsn, configure=lambda _conn: sleep(0.2)) as pool, pool.connection():
        most = monotonic() - began
    checkout, connect = signals.one("pool.checkout"), signals.one("pool.connect")
    assert start(checkout) <= start(connect) <= end(connect) <= end(checkout)
    assert 0.2e9 <= end(connect) - start(connect) <= most * 1e9


def test_times_hold_while_other_threads_are_busy(signals: Signals, dsn: str) -> None:
    """However busy the process is, a wait lies inside its checkout and the hand-over stands at start plus wait."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    spinners = [in_thread(spin, name="spinner") for _ in range(3)]
    try:
        with signals.pool(0, 1, dsn) as pool:
            for _ in range(10):
                with pool.connection():
                    pool.drain()
    finally:
        stop.set()
        for spinner in spinners:
            spinner.result(PATIENCE)
    checkouts, waits = signals.named("pool.checkout"), signals.named("pool.wait")
    assert len(checkouts) == 10
    for checkout in checkouts:
        assert_in_order(checkout)
        assert [start(checkout) <= start(wait) <= end(wait) for wait in waits if is_child(wait, checkout)] in (
            [],
            [True],
        )


# pool.retry


def test_retries(signals: Signals, dsn: str) -> None:
    """Each failed attempt is an event at its time: its number, the error's name and the delay until the next."""
    missing = iter([{"port": 1}, {"port": 1}, {"port": 1}])
    with signals.pool(0, 1, dsn, credentials=lambda: next(missing, {})) as pool, pool.connection():
        pass
    span, connects = signals.checkout(), signals.named("pool.connect")
    *retries, acquired = span.events
    assert [event.name for event in span.events] == ["pool.retry"] * 3 + ["pool.acquired"]
    for number, event in enumerate(retries, 1):
        assert_exactly(
            event.attributes,
            {"otel_pgpool.attempt": number, "error.type": "OperationalError", "otel_pgpool.delay": float},
        )
        assert event.timestamp == pytest.approx(end(connects[number - 1]), abs=MOMENT * 1e9)
    assert_in_order(span)
    for event, following in zip(retries, connects[1:], strict=True):
        delay = figure(event.attributes, "delay")
        assert 0 <= delay <= 0.4
        assert start(following) >= event.timestamp + delay * 1e9 - MOMENT * 1e9
    assert acquired.timestamp >= end(connects[-1]) - MOMENT * 1e9


def test_retries_of_a_failed_checkout(signals: Signals) -> None:
    """A checkout without a connection has events of its failed attempts too."""
    dsn = "postgresql://postgres@127.0.0.1:1/postgres"
    with signals.pool(0, 1, dsn, open=False, max_retries=2) as pool, pytest.raises(PoolTimeout):
        pool.getconn()
    span = signals.checkout()
    assert [event.name for event in span.events] == ["pool.retry"] * 2
    assert [(event.attributes or {})["otel_pgpool.attempt"] for event in span.events] == [1, 2]
    assert_in_order(span)


def test_retry_of_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """A connection found dead at checkout is a failed attempt, with no delay before the next."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
        with admin.cursor() as cur:
            cur.execute("select pg_terminate_backend(%s, 10000)", [pid])
        sleep(0.06)  # one used within the last 50 ms is lent without a look
        with pool.connection():
            pass
    span = signals.named("pool.checkout")[-1]
    retry, acquired = span.events
    assert (retry.name, acquired.name) == ("pool.retry", "pool.acquired")
    assert_exactly(retry.attributes, {"otel_pgpool.attempt": 1, "error.type": str, "otel_pgpool.delay": 0.0})
    assert_in_order(span)


# pool.long_hold


def long_hold_events(span: ReadableSpan) -> list[Event]:
    return [event for event in span.events if event.name == "pool.long_hold"]


@contextmanager
def held_long(signals: Signals, pool: ConnectionPool, conn: connection) -> Iterator[dict[str, Any]]:
    """While the connection is still held: the attributes of the event that stands on the living span."""
    (span,) = until(signals.live)
    (event,) = until(lambda: long_hold_events(span))
    assert span.end_time is None
    assert pool.stats().used == 1
    yield dict(event.attributes or {})
    pool.putconn(conn)


def test_held_for_ever(signals: Signals, dsn: str) -> None:
    """All three signals report a hold while it lasts: an event on the open span, a record, a counter."""
    with signals.pool(1, 1, dsn, long_hold=THRESHOLD) as pool:
        before, began = time_ns(), monotonic()
        conn = pool.getconn()
        with held_long(signals, pool, conn) as attributes:
            most = monotonic() - began
            (span,) = signals.live()
            (event,) = long_hold_events(span)
            assert_exactly(
                attributes,
                {
                    "otel_pgpool.long_hold.threshold": THRESHOLD,
                    "otel_pgpool.held": float,
                    "otel_pgpool.connection.pid": conn.get_backend_pid(),
                    "otel_pgpool.transaction.status": "idle",
                    "otel_pgpool.checked_out_at": str,
                    "code.file.path": str,
                    "code.line.number": int,
                    "code.function.name": str,
                    "code.stacktrace": str,
                },
            )
            assert THRESHOLD <= figure(attributes, "held") <= most
            assert event.timestamp >= before + THRESHOLD * 1e9 - MOMENT * 1e9
            (record,) = until(lambda: signals.logged("long_hold"))
            assert record.span_context == span.get_span_context()
            assert signals.value("otel_pgpool.long_holds") == 1
            assert signals.value("otel_pgpool.oldest_hold") >= THRESHOLD
            assert signals.named("pool.checkout") == []
            assert [holder.connection_id for holder in pool.holders()] == [1]
        ended = signals.checkout()
        assert (ended.attributes or {})["otel_pgpool.long_hold"] is True
        assert len(long_hold_events(ended)) == 1
        assert ended.status.is_unset
        assert_in_order(ended)


def status_idle(conn: connection) -> None:
    conn.autocommit = True


def status_in_transaction(conn: connection) -> None:
    with conn.cursor() as cur:
        cur.execute("select 1")


def status_in_error(conn: connection) -> None:
    with pytest.raises(psycopg2.Error), conn.cursor() as cur:
        cur.execute("select 1/0")


def status_unknown(conn: connection) -> None:
    conn.close()


@pytest.mark.parametrize("make", [status_idle, status_in_transaction, status_in_error, status_unknown])
def test_transaction_status(signals: Signals, dsn: str, make: Any) -> None:
    """The event says in which state the transaction is at that moment."""
    with signals.pool(1, 1, dsn, long_hold=60) as pool:
        conn = pool.getconn()
        make(conn)
        let_last(pool)
        with held_long(signals, pool, conn) as attributes:
            assert attributes["otel_pgpool.transaction.status"] == make.__name__.removeprefix("status_")


def test_transaction_status_active(signals: Signals, dsn: str) -> None:
    """A running query differs from a transaction left open: the status is read while the query runs."""
    with signals.pool(1, 1, dsn, long_hold=60) as pool:
        conn = pool.getconn()
        status_in_transaction(conn)  # the BEGIN would look active too, and end before the query begins

        def query() -> None:
            with pytest.raises(extensions.QueryCanceledError), conn.cursor() as cur:
                cur.execute("select pg_sleep(30)")

        worker = in_thread(query)
        until(lambda: conn.get_transaction_status() == extensions.TRANSACTION_STATUS_ACTIVE)
        let_last(pool)
        (span,) = until(signals.live)
        (event,) = until(lambda: long_hold_events(span))
        assert (event.attributes or {})["otel_pgpool.transaction.status"] == "active"
        conn.cancel()
        worker.result(PATIENCE)
        pool.putconn(conn)


def where(function: str, line: int) -> str:
    """Return how a frame is shown."""
    return f"{HERE}:{line} {shown_name(function)}"


def test_checked_out_at(signals: Signals, dsn: str) -> None:
    """Where it was asked for, innermost first: up to four frames for getconn, one for a block, none of our own."""

    def inner(pool: ConnectionPool) -> connection:
        return pool.getconn()

    def outer(pool: ConnectionPool) -> connection:
        return inner(pool)

    with signals.pool(1, 1, dsn, long_hold=THRESHOLD) as pool:
        conn = outer(pool)
        with held_long(signals, pool, conn) as attributes:
            first, second, third, fourth = attributes["otel_pgpool.checked_out_at"].split("\n")
            code = test_checked_out_at.__code__
            assert first == where("test_checked_out_at.<locals>.inner", code.co_firstlineno + 4)
            assert second == where("test_checked_out_at.<locals>.outer", code.co_firstlineno + 7)
            assert third == where("test_checked_out_at", code.co_firstlineno + 10)
            assert "otel_pgpool/_" not in fourth
        signals.spans.started.clear()
        with pool.connection():
            (span,) = signals.live()
            (event,) = until(lambda: long_hold_events(span))
            (place,) = (event.attributes or {})["otel_pgpool.checked_out_at"].split("\n")
            assert place == where("test_checked_out_at", code.co_firstlineno + 19)


def test_stacktrace_is_the_borrowers(signals: Signals, dsn: str) -> None:
    """code.stacktrace is what the borrowing thread does now: places only, since source lines may hold SQL."""
    go_on = threading.Event()

    def dawdle(pool: ConnectionPool) -> None:
        with pool.connection():
            go_on.wait() and "select s3cret from accounts"

    with signals.pool(1, 1, dsn, long_hold=THRESHOLD) as pool:
        worker = in_thread(lambda: dawdle(pool))
        (span,) = until(signals.live)
        (event,) = until(lambda: long_hold_events(span))
        go_on.set()
        worker.result(PATIENCE)
        trace = str((event.attributes or {})["code.stacktrace"])
        assert "dawdle" in trace
        assert HERE in trace
        assert "s3cret" not in signals.everything()


def test_a_stacktrace_begins_at_the_programs_line(signals: Signals, dsn: str) -> None:
    """In a view of Flask's, served by a thread: on the span's event and on the record, no server stands above it."""
    app = Flask("shop")
    with signals.pool(1, 1, dsn, long_hold=THRESHOLD) as pool:

        @app.route("/report")
        def report() -> str:
            with pool.connection():
                until(lambda: signals.logged("long_hold"))
            return "done"

        server = make_server("127.0.0.1", 0, app, threaded=True)
        worker = in_thread(server.serve_forever)
        try:
            with urlopen(f"http://127.0.0.1:{server.port}/report", timeout=PATIENCE) as answer:
                assert answer.read() == b"done"
        finally:
            server.shutdown()
            worker.result(PATIENCE)
            server.server_close()
    (event,) = long_hold_events(signals.checkout())
    (record,) = signals.logged("long_hold")
    stack = told_as(event.attributes, "code.stacktrace")
    assert stack == record.attributes["code.stacktrace"]
    assert stack.startswith(f'File "{HERE}"')
    assert stack.partition("\n")[0].endswith("in report")


def test_packages_of_a_program_that_stand_above_it(signals: Signals, dsn: str) -> None:
    """`stack_skip` adds to what is known: here the tests' own, above a function that is another's."""
    space: dict[str, Any] = {"__name__": "shop.views"}
    exec("def view(inner):\n    return inner()", space)  # noqa: S102 - a frame of that module

    def borrow() -> None:
        with pool.connection():
            space["view"](lambda: until(lambda: signals.logged("long_hold")))

    with signals.pool(1, 1, dsn, long_hold=THRESHOLD, telemetry={"stack_skip": ["tests"]}) as pool:
        in_thread(borrow).result(PATIENCE)
    (record,) = signals.logged("long_hold")
    assert record.attributes["code.stacktrace"].startswith('File "<string>", line 2, in view\n')


def test_no_stacktrace_of_a_thread_that_ended(signals: Signals, dsn: str) -> None:
    """When the borrowing thread lives no more, there is no stack to show."""
    taken: list[connection] = []
    with signals.pool(1, 1, dsn, long_hold=60) as pool:
        borrower = threading.Thread(target=lambda: taken.append(pool.getconn()), name="borrower")
        borrower.start()
        borrower.join()
        let_last(pool)
        with held_long(signals, pool, taken.pop()) as attributes:
            assert "code.stacktrace" not in attributes
            assert len(attributes) == 8


def test_told_once(signals: Signals, dsn: str) -> None:
    """Whether the watcher or the return is faster, a long hold is one event and one record, ahead of the span's end."""
    with signals.pool(1, 1, dsn, long_hold=0.005) as pool:
        for number in range(30):
            with pool.connection():
                sleep(0.004 + number * 0.0001)
        flagged = [span for span in signals.named("pool.checkout") if (span.attributes or {})["otel_pgpool.long_hold"]]
        assert len(flagged) == pool.stats().long_holds > 0
        assert [len(long_hold_events(span)) for span in flagged] == [1] * len(flagged)
        assert sum(len(long_hold_events(span)) for span in signals.named("pool.checkout")) == len(flagged)
        until(lambda: len(signals.logged("long_hold")) >= len(flagged))  # the watcher may be about to write the last
        assert len(signals.logged("long_hold")) == len(signals.logged("long_hold_returned")) == len(flagged)


# Links


def test_links_name_the_holders(signals: Signals, dsn: str) -> None:
    """pool.wait links to the spans of the five longest holders, longest first, with how long each had held by then."""
    with signals.pool(7, 7, dsn) as pool:

        def hold() -> tuple[float, connection, float]:
            return monotonic(), pool.getconn(), monotonic()

        held = [hold() for _ in range(7)]
        pids = [conn.get_backend_pid() for _asked, conn, _had in held]
        spans = signals.live()
        joined: list[float] = []

        def borrow() -> None:
            joined.append(monotonic())
            pool.putconn(pool.getconn())

        with queued(pool, borrow):
            seen = monotonic()
            serials = [holder.connection_id for holder in pool.holders()]
            pool.putconn(held[6][1])
        for _asked, conn, _had in held[:6]:
            pool.putconn(conn)
    wait = signals.one("pool.wait")
    assert [link.context for link in wait.links] == [span.get_span_context() for span in spans[:5]]
    for link, (asked, _conn, had), serial in zip(wait.links, held[:5], serials[:5], strict=True):
        assert_exactly(link.attributes, {"otel_pgpool.held": float, "otel_pgpool.connection.id": serial})
        assert joined[0] - had <= figure(link.attributes, "held") <= seen - asked
    times = [figure(link.attributes, "held") for link in wait.links]
    assert times == sorted(times, reverse=True)
    assert_exactly(wait.attributes, waited(5))
    assert figure(wait.attributes, "blocker.held") == times[0]
    assert told(wait.attributes, "blocker.connection.pid") == pids[0]
    assert told(wait.attributes, "blocker.trace_id") == f"{wait.links[0].context.trace_id:032x}"
    place = told(wait.attributes, "blocker.checked_out_at").partition("\n")[0]
    assert place == where(hold.__qualname__, hold.__code__.co_firstlineno + 1)


def test_links_of_a_wait_that_failed(signals: Signals, dsn: str) -> None:
    """One that timed out says whom it waited for just as well."""
    with signals.pool(2, 2, dsn) as pool, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(pool.connection())
        holders = signals.live()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.05)
        wait = signals.one("pool.wait")
        assert [link.context for link in wait.links] == [span.get_span_context() for span in holders]
        assert start(wait) + 0.04e9 <= end(wait)


def test_a_holder_that_leaves_no_span(signals: Signals, dsn: str) -> None:
    """The wait has no link to it and no trace, but how long it has held, where it was checked out, and its backend."""
    with signals.pool(1, 1, dsn) as pool:
        with suppress_instrumentation():
            conn = pool.getconn()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.02)
        wait = signals.one("pool.wait")
        assert wait.links == ()
        expected = waited(1) | {"otel_pgpool.blocker.count": 0}
        del expected["otel_pgpool.blocker.trace_id"]
        assert_exactly(wait.attributes, expected)
        assert told(wait.attributes, "blocker.connection.pid") == conn.get_backend_pid()
        pool.putconn(conn)


def test_a_holder_whose_span_is_yet_to_be_made(signals: Signals, dsn: str) -> None:
    """With `slow` there is nothing to link to yet, but the trace is known from the holder's caller."""
    with signals.pool(1, 1, dsn, telemetry={"spans": "slow"}) as pool:
        with signals.tracer.start_as_current_span("report") as report, pool.connection(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.02)
        attributes = signals.one("pool.wait").attributes
        assert told(attributes, "blocker.count") == 0
        assert told(attributes, "blocker.trace_id") == f"{report.get_span_context().trace_id:032x}"


@pytest.mark.parametrize("mode", ["always", "slow"])
def test_durations_are_told_to_the_microsecond(signals: Signals, dsn: str, mode: str) -> None:
    """In every attribute of every span, event and link."""
    missing = iter([{"port": 1}])
    options: dict[str, Any] = {"long_hold": THRESHOLD, "credentials": lambda: next(missing, {})}
    with signals.pool(0, 1, dsn, telemetry={"spans": mode, "slow": 0}, **options) as pool, pool.connection():
        until(lambda: signals.logged("long_hold"))
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.02)
    spans = list(signals.spans.ended)
    told = [dict(each.attributes or {}) for span in spans for each in (span, *span.events, *span.links)]
    durations = {name: value for each in told for name, value in each.items() if isinstance(value, float)}
    assert durations.keys() >= {
        "otel_pgpool.wait_time",
        "otel_pgpool.hold_time",
        "otel_pgpool.blocker.held",
        "otel_pgpool.delay",
        "otel_pgpool.held",
        "otel_pgpool.long_hold.threshold",
    }
    values = [value for each in told for value in each.values() if isinstance(value, float)]
    assert values == [round(value, 6) for value in values]


def test_no_links_when_nobody_holds(signals: Signals, dsn: str) -> None:
    """A checkout that waits for the pool's first connection waits for no holder."""
    with signals.pool(0, 1, dsn) as pool, pool.connection():
        pass
    assert signals.one("pool.wait").links == ()
    assert_exactly(signals.one("pool.wait").attributes, waited(0))
    assert (signals.checkout().attributes or {})["db.client.connection.pool.name"] == NAME
