"""Every public name, used as a program uses it. Type-checked, never run: ``tests/test_typing.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import psycopg2.pool  # noqa: TC002 - as a program would
from psycopg2.extensions import connection, cursor
from psycopg2.extras import RealDictCursor
from typing_extensions import assert_type

import otel_pgpool
from otel_pgpool import (
    BlockingSession,
    ConnectionFailed,
    ConnectionPool,
    DatabaseState,
    Holder,
    PoolClosed,
    PoolError,
    PoolHealth,
    PoolObserver,
    PoolStats,
    PoolTimeout,
    Telemetry,
    TooManyRequests,
    reset_session,
)


def configure(conn: connection) -> None:
    conn.set_session(readonly=True)


def ask(conn: connection) -> bool:
    return not conn.closed


def credentials() -> Mapping[str, str]:
    return {"password": "token"}


def made_in_every_way() -> list[ConnectionPool]:
    return [
        ConnectionPool(2, 10, "postgresql://app@db/shop"),
        ConnectionPool(2, 10, host="db", port=5432, dbname="shop", cursor_factory=RealDictCursor),
        ConnectionPool(minconn=0, maxconn=1, dsn="host=db"),
        ConnectionPool(
            2,
            10,
            "postgresql://app@db/shop",
            name="shop",
            timeout=30,
            max_waiting=100,
            max_attempts=3,
            max_lifetime=math.inf,
            max_idle=60.0,
            keepalive=30.0,
            long_hold=0.5,
            check=ask,
            configure=configure,
            reset=ask,
            credentials=credentials,
            open=False,
            observer=None,
        ),
        ConnectionPool(
            1, 1, max_retries=None, max_lifetime=None, max_idle=None, keepalive=None, long_hold=None, check=None
        ),
        ConnectionPool(1, 1, check="auto", timeout=None, credentials=lambda: {"user": "app", "port": 5433}),
        ConnectionPool(1, 1, observer=Telemetry(spans="slow", slow=0.5, histograms=["wait_time"])),
        ConnectionPool(1, 1, observer=Telemetry(None, None)),
        ConnectionPool(1, 1, observer=Telemetry(stack_skip=["acme"])),
        ConnectionPool(1, 1, observer=Quiet()),
    ]


def borrowed(pool: ConnectionPool) -> None:
    with pool.connection() as conn, conn.cursor() as cur:
        assert_type(conn, connection)
        assert_type(cur, cursor)
    with pool.connection(timeout=5) as conn:
        assert_type(conn, connection)
    with pool.connection(0.5):
        pass
    conn = pool.getconn()
    assert_type(conn, connection)
    assert_type(pool.putconn(conn), None)
    pool.getconn("key", timeout=1.5)
    pool.putconn(key="key")
    pool.putconn(pool.getconn(), close=True)
    pool.putconn(pool.getconn(key=7), 7, True)


def a_function_may_end_in_a_block(pool: ConnectionPool) -> int:
    """End in a block: it swallows no exception, so a checker asks for no return after it."""
    with pool.connection() as conn:
        return conn.closed


def managed(pool: ConnectionPool) -> None:
    with ConnectionPool(1, 2) as opened:
        assert_type(opened, ConnectionPool)
    pool.open()
    pool.open(wait=False)
    pool.open(wait=True, timeout=60)
    pool.suspend()
    pool.resume()
    pool.timeout, pool.long_hold, pool.max_idle, pool.max_lifetime = 5, 0.5, 60, None
    ConnectionPool(1, 2, reentrant=True, evict_on=["57014", "XX"])
    ConnectionPool(1, 2, evict_on=lambda error: isinstance(error, OSError))
    pool.wait()
    pool.wait(5)
    pool.check()
    pool.drain()
    pool.resize(1, 5)
    pool.resize(minconn=1, maxconn=5)
    pool.resize(4, None)
    pool.close()
    pool.close(timeout=0)
    pool.closeall()


def looked_at(pool: ConnectionPool) -> None:
    assert_type(pool.name, str)
    assert_type((pool.timeout, pool.long_hold, pool.max_idle, pool.max_lifetime), tuple[float, float, float, float])
    assert_type(pool.minconn, int)
    assert_type(pool.maxconn, int)
    assert_type(pool.closed, bool)
    health = pool.health()
    assert_type(health, PoolHealth)
    assert_type(health.is_ok, bool)
    assert_type(health.reasons, tuple[str, ...])
    assert_type(health.duration, float | None)
    assert_type(health.as_dict(), dict[str, Any])
    if health.status == "saturated":
        print(health.status.description)
    stats = pool.stats()
    assert_type(stats, PoolStats)
    assert_type(stats.name, str)
    assert_type(stats.status, Literal["new", "ok", "high", "critical", "unreachable", "suspended", "closed"])
    assert_type((stats.minconn, stats.maxconn, stats.size, stats.used), tuple[int, int, int, int])
    assert_type((stats.idle, stats.connecting, stats.waiting), tuple[int, int, int])
    assert_type((stats.utilization, stats.oldest_hold), tuple[float, float])
    assert_type((stats.checkouts, stats.discarded), tuple[Mapping[str, int], Mapping[str, int]])
    assert_type((stats.queued, stats.timeouts, stats.errors, stats.retries), tuple[int, int, int, int])
    assert_type((stats.long_holds, stats.created), tuple[int, int])
    assert_type((stats.wait_seconds, stats.hold_seconds), tuple[float, float])
    assert_type(stats.as_dict(), dict[str, Any])
    assert_type(pool.get_stats(), dict[str, int])
    assert_type(pool.pop_stats()["requests_num"], int)
    assert_type(pool.holders(), list[Holder])


def why_held(holder: Holder) -> str | None:
    state = holder.database_state
    assert_type(state, DatabaseState | None)
    if state is None:
        return None
    assert_type(state.blocked_by, tuple[BlockingSession, ...])
    assert_type(state.root_blocker, BlockingSession | None)
    assert_type(state.transaction_age, float | None)
    return f"{state}: {state.wait_event_type} {state.lock_relation} {[each.trace_id for each in state.blocked_by]}"


def held_by(holder: Holder) -> str:
    assert_type((holder.connection_id, holder.pid), tuple[int, int])
    assert_type((holder.thread, holder.where), tuple[str, str])
    assert_type(holder.held, float)
    assert_type(holder.trace_id, str | None)
    return str(holder)


def failed(pool: ConnectionPool) -> None:
    try:
        pool.getconn()
    except PoolTimeout as error:
        assert_type((error.waited, error.retries), tuple[float, int])
        assert_type(error.holders, tuple[Holder, ...])
        assert_type((error.size, error.used, error.idle), tuple[int, int, int])
        assert_type((error.connecting, error.waiting), tuple[int, int])
        assert_type((error.minconn, error.maxconn), tuple[int, int])
        assert_type((error.utilization, error.oldest_hold), tuple[float, float])
        if isinstance(error, ConnectionFailed):
            print(error.retries)
    except (PoolClosed, TooManyRequests) as error:
        caught: PoolError = error
        stock: psycopg2.pool.PoolError = caught
        raise RuntimeError from stock


class Quiet:
    """An observer of one's own: every method of the protocol, and no base class."""

    def attached(self, pool: object) -> None: ...
    def started(self, checkout: object) -> None: ...
    def acquired(self, checkout: object) -> None: ...
    def failed(self, checkout: object, error: BaseException) -> None: ...
    def released(self, checkout: object) -> None: ...
    def abandoned(self, checkout: object) -> None: ...
    def reclaimed(self, checkout: object) -> None: ...
    def held_long(self, checkout: object) -> None: ...
    def connected(self, connect: object) -> None: ...
    def connect_failed(self, connect: object) -> None: ...
    def discarded(
        self, slots: Sequence[object], reason: str, error: BaseException | None, checkout: object
    ) -> None: ...
    def outage_started(self, connect: object) -> None: ...
    def outage_ended(self, attempts: int, duration: float) -> None: ...
    def utilization_changed(self, level: str, stats: PoolStats) -> None: ...


class Counting(PoolObserver):
    """Or the protocol as a base class, and only what one wants to know."""

    lost = 0

    def discarded(self, slots: Sequence[object], reason: str, error: BaseException | None, checkout: object) -> None:
        self.lost += len(slots)


quiet: PoolObserver = Quiet()
telemetry: PoolObserver = Telemetry()
version: str = otel_pgpool.__version__
reset: Callable[[connection], object] = configure
ready_made: Callable[[connection], None] = reset_session
clean: ConnectionPool = ConnectionPool(1, 2, reset=reset_session)


def mistakes_are_found(pool: ConnectionPool) -> None:
    """Strict mode reports each of these comments that hides no mistake."""
    ConnectionPool("1", 2)  # type: ignore[arg-type]
    ConnectionPool(1, 2, timeout="30")  # type: ignore[arg-type]
    ConnectionPool(1, 2, name=b"shop")  # type: ignore[arg-type]
    ConnectionPool(1, 2, max_retries=0.5)  # type: ignore[arg-type]
    ConnectionPool(1, 2, check="ping")  # type: ignore[arg-type]
    ConnectionPool(1, 2, check=credentials)  # type: ignore[arg-type]
    ConnectionPool(1, 2, credentials={"password": "x"})  # type: ignore[arg-type]
    ConnectionPool(1, 2, observer=object())  # type: ignore[arg-type]
    pool.connection(timeout="5")  # type: ignore[arg-type]
    pool.getconn(None, 5)  # type: ignore[call-arg]
    pool.name = "other"  # type: ignore[misc]
    pool.stats().used = 0  # type: ignore[misc]
    pool.stats().status == "hihg"  # type: ignore[comparison-overlap]  # noqa: B015 - that it is found
    pool.nonsense()  # type: ignore[attr-defined]
