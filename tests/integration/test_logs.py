"""The log records: every event at its level, with its attributes, in the trace of its checkout."""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from otel_pgpool import PoolTimeout
from tests.support.database import kill
from tests.support.internals import core_of
from tests.support.pools import let_lie
from tests.support.telemetry import NAME, Record, Signals, assert_exactly, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan
    from psycopg2.extensions import connection

POOL = "db.client.connection.pool.name"


def the(signals: Signals, event: str) -> Record:
    """Wait for the only record of an event, and return it."""
    (record,) = until(lambda: signals.logged(event), event)
    return record


def assert_record(record: Record, level: int, event: str, **attributes: Any) -> None:
    """Logger, level, the attributes of every record, and these; ``otel_pgpool.`` is left out of their names."""
    assert (record.record.name, record.record.levelno) == ("otel_pgpool", level)
    assert NAME in record.record.getMessage()
    common = {"otel_pgpool.event": event, "otel.event.name": f"otel_pgpool.{event}", POOL: NAME}
    assert_exactly(record.attributes, common | attributes)


def in_trace_of(record: Record, span: ReadableSpan) -> bool:
    return record.span_context == span.get_span_context()


LONG_HOLD = {
    "otel_pgpool.long_hold.threshold": 0.05,
    "otel_pgpool.held": float,
    "otel_pgpool.connection.pid": int,
    "otel_pgpool.transaction.status": "idle",
    "otel_pgpool.checked_out_at": str,
    "code.file.path": str,
    "code.line.number": int,
    "code.function.name": str,
    "code.stacktrace": str,
    "thread.name": "MainThread",
}


def test_long_hold_and_its_return(signals: Signals, dsn: str) -> None:
    """WARNING while it is held, INFO when it came back; both in the trace of the checkout."""
    with signals.pool(1, 1, dsn, long_hold=0.05) as pool:
        conn = pool.getconn()
        record = the(signals, "long_hold")
        assert pool.stats().used == 1
        assert_record(record, logging.WARNING, "long_hold", **LONG_HOLD)
        path, line, function = (
            record.attributes[f"code.{part}"] for part in ("file.path", "line.number", "function.name")
        )
        assert f"{path}:{line} {function}" == record.attributes["otel_pgpool.checked_out_at"].splitlines()[0]
        pool.putconn(conn)
        span, returned = signals.checkout(), the(signals, "long_hold_returned")
        assert_record(
            returned,
            logging.INFO,
            "long_hold_returned",
            **{"otel_pgpool.hold_time": float, "otel_pgpool.connection.pid": int},
        )
        assert returned.attributes["otel_pgpool.hold_time"] == (span.attributes or {})["otel_pgpool.hold_time"]
        assert in_trace_of(record, span)
        assert in_trace_of(returned, span)
        for each in (record, returned):
            assert f" s (pid {each.attributes['otel_pgpool.connection.pid']})" in each.record.getMessage()


def test_reclaimed(signals: Signals, dsn: str) -> None:
    """A dropped checkout is a WARNING, with what is known of the hold, in its trace."""
    with signals.pool(1, 1, dsn, long_hold=60) as pool:
        conn = pool.getconn()
        del conn
        record = the(signals, "reclaimed")
        expected = LONG_HOLD | {"otel_pgpool.long_hold.threshold": 60.0, "otel_pgpool.transaction.status": "unknown"}
        assert_record(record, logging.WARNING, "reclaimed", **expected)
        assert f" s (pid {record.attributes['otel_pgpool.connection.pid']})" in record.record.getMessage()
        assert in_trace_of(record, until(lambda: signals.named("pool.checkout"))[0])


def test_timeout(signals: Signals, dsn: str) -> None:
    """ERROR, with the levels of PoolTimeout and the longest holders: pid, trace and where they asked."""
    with signals.pool(1, 1, dsn) as pool:
        with pool.connection() as conn:
            pid = conn.get_backend_pid()
            with pytest.raises(PoolTimeout) as raised:
                pool.getconn(timeout=0.02)
        record = the(signals, "timeout")
        levels = ("size", "used", "idle", "connecting", "waiting", "utilization", "oldest_hold", "retries")
        assert_record(
            record,
            logging.ERROR,
            "timeout",
            **{f"otel_pgpool.{level}": getattr(raised.value, level) for level in levels},
            **{
                "otel_pgpool.wait_time": raised.value.waited,
                "otel_pgpool.max": 1,
                "otel_pgpool.holders": tuple,
                "otel_pgpool.left_out": 0,
            },
        )
        failed, holder = signals.named("pool.checkout")
        assert in_trace_of(record, failed)
        (described,) = record.attributes["otel_pgpool.holders"]
        assert holder.context is not None
        for part in (f"pid {pid}", f"{holder.context.trace_id:032x}", __file__, "MainThread"):
            assert part in described
        message = record.record.getMessage()
        assert "\n" not in message
        assert "; ".join(line.strip() for line in str(raised.value).splitlines()) in message


def test_timeouts_are_limited(signals: Signals, dsn: str) -> None:
    """At most one record of timeouts a second for each pool; the next one counts those that were left out."""

    def time_out(pool: Any) -> None:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)

    with signals.pool(1, 1, dsn) as pool, signals.pool(1, 1, dsn, name="other") as other:
        held, others = pool.getconn(), other.getconn()
        began = monotonic()
        for _ in range(20):
            time_out(pool)
        time_out(other)
        sleep(1.05)  # the interval itself
        time_out(pool)
        passed = monotonic() - began
        records = [record for record in signals.logged("timeout") if record.attributes[POOL] == NAME]
        assert 2 <= len(records) <= 1 + passed
        left_out = [record.attributes["otel_pgpool.left_out"] for record in records]
        assert left_out[0] == 0
        assert sum(left_out) + len(records) == 21
        assert str(left_out[-1]) in records[-1].record.getMessage()
        assert len(signals.logged("timeout")) == len(records) + 1
        pool.putconn(held)
        other.putconn(others)


def test_connection_lost_while_idle(signals: Signals, dsn: str, admin: connection) -> None:
    """Dead connections that are found together have one record, in the trace of the checkout that found the first."""
    with signals.pool(3, 3, dsn) as pool:
        conns = [pool.getconn() for _ in range(3)]
        pids = [conn.get_backend_pid() for conn in conns]
        for conn in conns:
            pool.putconn(conn)
        del conn, conns
        signals.spans.ended.clear()
        kill(admin, pids)
        let_lie(pool)
        with pool.connection():
            pass
        record = the(signals, "connection_lost")
        assert_record(
            record,
            logging.WARNING,
            "connection_lost",
            **{
                "otel_pgpool.reason": "broken",
                "otel_pgpool.connection.pids": list,
                "otel_pgpool.connections": 3,
                "error.type": str,
            },
        )
        assert sorted(record.attributes["otel_pgpool.connection.pids"]) == sorted(pids)
        assert in_trace_of(record, signals.checkout())


def test_connection_lost_in_use(signals: Signals, dsn: str, admin: connection) -> None:
    """The record of a connection that died in use has its pid and SQLSTATE or error, in the trace of its checkout."""
    with signals.pool(1, 1, dsn) as pool:
        with suppress(psycopg2.Error), pool.connection() as conn:
            pid = conn.get_backend_pid()
            kill(admin, [pid])
            conn.cursor().execute("select 1")
        record = the(signals, "connection_lost")
        assert_record(
            record,
            logging.WARNING,
            "connection_lost",
            **{
                "otel_pgpool.reason": "broken",
                "otel_pgpool.connection.pid": pid,
                "otel_pgpool.connections": 1,
                "error.type": str,
            },
        )
        assert in_trace_of(record, signals.checkout())


def test_connection_lost_by_getconn(signals: Signals, dsn: str, admin: connection) -> None:
    """The same with getconn, where the span is not current."""
    with signals.pool(1, 1, dsn) as pool:
        conn = pool.getconn()
        kill(admin, [conn.get_backend_pid()])
        with pytest.raises(psycopg2.Error):
            conn.cursor().execute("select 1")
        pool.putconn(conn)
        record = the(signals, "connection_lost")
        assert record.attributes["otel_pgpool.reason"] == "broken"
        assert in_trace_of(record, signals.checkout())


def test_utilization(signals: Signals, dsn: str) -> None:
    """Crossing 80 % is a WARNING, 95 % an ERROR, coming back an INFO; in between nothing is repeated."""
    with signals.pool(5, 5, dsn) as pool:
        conns = [pool.getconn() for _ in range(4)]
        assert_utilization(signals, logging.WARNING, "high", 4)
        conns.append(pool.getconn())
        assert_utilization(signals, logging.ERROR, "critical", 5)
        with core_of(pool).lock:  # the watch sees all of them come back at once
            for conn in conns:
                pool.putconn(conn)
        assert_utilization(signals, logging.INFO, "normal", 0)
        assert len([record for record in signals.records.all if "utilization" in (record.event or "")]) == 3


def assert_utilization(signals: Signals, level: int, name: str, used: int) -> None:
    record, event = the(signals, f"utilization_{name}"), f"utilization_{name}"
    levels = {"utilization": used / 5, "used": used, "max": 5, "waiting": 0}
    assert_record(record, level, event, **{f"otel_pgpool.{each}": value for each, value in levels.items()})


def test_outage(signals: Signals, dsn: str) -> None:
    """ERROR once when PostgreSQL cannot be reached, with the reason, and INFO when it is back, with the duration."""
    missing = iter([{"port": 1}] * 3)
    with signals.pool(0, 1, dsn, credentials=lambda: next(missing, {})) as pool:
        began = monotonic()
        with pool.connection():
            took = monotonic() - began
        started, ended = the(signals, "outage_started"), the(signals, "outage_ended")
        assert_record(
            started,
            logging.ERROR,
            "outage_started",
            **{"error.type": "OperationalError", "otel_pgpool.attempts": 1, "otel_pgpool.duration": 0.0},
        )
        assert "Connection refused" in started.record.getMessage()
        assert_record(ended, logging.INFO, "outage_ended", **{"otel_pgpool.attempts": 3, "otel_pgpool.duration": float})
        assert f"after {ended.attributes['otel_pgpool.duration']:.3f} s" in ended.record.getMessage()
        assert 0 < ended.attributes["otel_pgpool.duration"] <= took
        failed = signals.logged("connect_failed")
        assert [record.record.levelno for record in failed] == [logging.DEBUG] * 3


def test_nothing_above_debug_for_a_checkout(signals: Signals, dsn: str) -> None:
    """Ordinary work is silent but for DEBUG: connects, checkouts by every path, returns, a drain, a close."""
    with signals.pool(0, 4, dsn) as pool:
        for _ in range(3):
            with pool.connection(), pool.connection():
                pass
        pool.putconn(pool.getconn(), close=True)
        pool.drain()
    levels = {record.record.levelno for record in signals.records.all}
    assert levels <= {logging.DEBUG}
    events = {record.event for record in signals.records.all}
    assert {"connected", "discarded"} <= events


@pytest.fixture
def accounts(admin: connection) -> Iterator[None]:
    """Create a table whose constraint is checked at the commit."""
    with admin.cursor() as cur:
        cur.execute("create table accounts (card text unique deferrable initially deferred)")
    yield
    with admin.cursor() as cur:
        cur.execute("drop table accounts")


def test_nothing_secret_anywhere(signals: Signals, dsn: str, admin: connection, accounts: None) -> None:
    """SQL text, parameters and the values of rows are in no span, record or metric, whatever goes wrong."""
    with signals.pool(1, 1, dsn, long_hold=0.02) as pool:
        with pytest.raises(psycopg2.IntegrityError), pool.connection() as conn:  # noqa: PT012 - its end raises
            cur = conn.cursor()
            cur.execute("select 'lit3ral', %s", ["param3ter"])
            cur.execute("insert into accounts values (%s), (%s)", ["d3tail", "d3tail"])
        with pytest.raises(psycopg2.DataError), pool.connection() as conn, conn.cursor() as cur:
            cur.execute("select 'lit3ral'::int")
        with pytest.raises(psycopg2.ProgrammingError), pool.connection() as conn, conn.cursor() as cur:
            cur.execute("select lit3ral from nowh3re where card = %s", ["param3ter"])
        with pool.connection() as conn, conn.cursor() as cur:
            cur.execute("select 'lit3ral'")
            until(lambda: signals.logged("long_hold"), "insert into accounts")  # held on a source line with SQL
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
        with pytest.raises(psycopg2.Error), pool.connection() as conn, conn.cursor() as cur:  # noqa: PT012 - the same
            kill(admin, [conn.get_backend_pid()])
            cur.execute("select 'lit3ral', %s", ["param3ter"])
        the(signals, "connection_lost")
        assert all(record.record.getMessage().isprintable() for record in signals.records.all)  # in one line each
        emitted = signals.everything()
    assert all(told in emitted for told in ("23505", "pool.long_hold", "test_nothing_secret_anywhere", "timeout"))
    for secret in ("lit3ral", "param3ter", "d3tail", "nowh3re", "insert into"):
        assert secret not in emitted, secret


def test_records_under_the_level(signals: Signals, dsn: str) -> None:
    """Records under the logger's level are not written at all, and the hold is flagged all the same."""
    logging.getLogger("otel_pgpool").setLevel(logging.ERROR)
    with signals.pool(1, 2, dsn, long_hold=0.02) as pool:
        conn = pool.getconn()
        (span,) = signals.live()
        until(lambda: span.events)
        pool.putconn(conn)
    assert signals.records.all == []
