"""A hold that is long by design, as a listener's, is flagged after its own time and sets off no alert before."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from otel_pgpool import ConnectionPool, PoolError, PoolTimeout
from otel_pgpool.pool import maintenance, server_queries, utilization
from otel_pgpool.pool.parts import Parts
from otel_pgpool.telemetry import Telemetry
from tests.support.telemetry import Signals, queued, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout

    Borrow = Callable[[ConnectionPool, float | None], AbstractContextManager[connection]]


class ByHand:
    """``getconn`` and ``putconn`` as a block."""

    def __init__(self, pool: ConnectionPool, expected: float | None) -> None:
        self.pool, self.expected = pool, expected

    def __enter__(self) -> connection:
        self.conn = self.pool.getconn(expected_hold=self.expected)
        return self.conn

    def __exit__(self, *_exc: object) -> None:
        self.pool.putconn(self.conn)


@pytest.fixture(params=["block", "by hand"])
def borrow(request: pytest.FixtureRequest) -> Borrow:
    if request.param == "by hand":
        return ByHand
    return lambda pool, expected: pool.connection(expected_hold=expected)


@pytest.mark.parametrize("expected", [None, 300, math.inf])
def test_an_expected_hold_is_not_flagged(dsn: str, borrow: Borrow, expected: float | None) -> None:
    """Nor does it age the oldest hold; another one beside it does both."""
    with Signals() as signals, signals.pool(2, 2, dsn, long_hold=0.1) as pool, borrow(pool, expected) as listener:
        other = pool.getconn()
        until(lambda: pool.stats().long_holds)
        assert 0 < pool.stats().oldest_hold == pytest.approx(pool.holders()[1].held, abs=0.2)
        pool.putconn(other)
        assert (pool.stats().long_holds, pool.stats().oldest_hold, pool.stats().used) == (1, 0, 1)
        assert [holder.pid for holder in pool.holders()] == [listener.info.backend_pid]
        assert signals.value("otel_pgpool.oldest_hold") == 0


def test_it_is_flagged_after_its_own_time(dsn: str, borrow: Borrow) -> None:
    """With this time as the threshold of the event, while it is held, on a pool that flags none otherwise too."""
    with Signals() as signals, signals.pool(1, 1, dsn, long_hold=None) as pool:
        with borrow(pool, 0.2):
            until(lambda: signals.logged("long_hold"))
        (record,) = signals.logged("long_hold")
        assert vars(record.record)["otel_pgpool.long_hold.threshold"] == 0.2
        assert vars(record.record)["otel_pgpool.held"] < 0.2 + 5
        assert pool.stats().long_holds == 1


def test_a_short_one_is_flagged_at_its_return(dsn: str, borrow: Borrow) -> None:
    """However short it was; the next hold of the same connection is as any other."""
    with ConnectionPool(1, 1, dsn, long_hold=60) as pool:
        with borrow(pool, 0.001):
            time.sleep(0.005)
        assert pool.stats().long_holds == 1
        with pool.connection():
            time.sleep(0.005)
        assert pool.stats().long_holds == 1


def test_the_threshold_is_there_at_the_hand_over(dsn: str, borrow: Borrow) -> None:
    """However late the thread gets its turn: the maintenance thread never sees the hold without it."""
    seen = []

    class Observer(Telemetry):
        def acquired(self, checkout: Checkout) -> None:
            seen.append(checkout.expected_hold)
            super().acquired(checkout)

    with ConnectionPool(1, 1, dsn, observer=Observer()) as pool:
        with borrow(pool, 300):
            pass
        with borrow(pool, None):
            pass
    assert seen == [300, math.inf]


def test_the_server_is_not_asked_before_its_time(dsn: str, borrow: Borrow, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is asked about a long hold beside it; then about this one too."""
    monkeypatch.setattr(server_queries, "QUERY_INTERVAL", 0.02)

    def asked() -> set[object]:
        return {record.attributes["otel_pgpool.connection.pid"] for record in signals.logged("database_state")}

    with (
        Signals() as signals,
        signals.pool(3, 3, dsn, long_hold=0.05) as pool,
        borrow(pool, None),
        ExitStack() as stack,
    ):
        other = stack.enter_context(pool.connection()).info.backend_pid
        until(lambda: len(signals.logged("database_state")) >= 3)  # of ages 0.05 s, 0.1 s and 0.2 s
        assert asked() == {other}
        late = stack.enter_context(borrow(pool, 0.1)).info.backend_pid
        until(lambda: late in asked())
        assert asked() == {other, late}


def test_it_is_no_utilization(dsn: str, borrow: Borrow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of listeners alone is not full, as nobody else is kept waiting; the others' connections count."""
    for module in (utilization, maintenance):
        monkeypatch.setattr(module, "SAMPLE_INTERVAL", 0.01)
    with Signals() as signals, signals.pool(3, 3, dsn) as pool:
        with borrow(pool, None), borrow(pool, 60):
            assert (pool.stats().used, pool.stats().utilization, pool.stats().status) == (2, 0, "ok")
            with pool.connection():
                assert signals.value("otel_pgpool.utilization") == 1
                until(lambda: signals.logged("utilization_critical"))
            until(lambda: signals.logged("utilization_normal"))
            with borrow(pool, 60):
                assert (pool.stats().used, pool.stats().utilization, pool.stats().status) == (3, 0, "ok")
                with queued(pool, lambda: pool.putconn(pool.getconn())):
                    assert (pool.stats().utilization, pool.stats().status) == (1, "critical")
                    pool.resize(1, 2)
                    assert pool.stats().utilization == 1
                    pool.resize(1, 4)
        assert pool.stats().utilization == 0


@pytest.mark.parametrize("mode", ["always", "slow"])
def test_its_span_says_so(dsn: str, borrow: Borrow, mode: str) -> None:
    """Which the report needs; other spans have no such attribute."""
    with Signals() as signals:
        with signals.pool(1, 1, dsn, telemetry={"spans": mode, "slow": 0}) as pool:
            with borrow(pool, None):
                pass
            with pool.connection():
                pass
        expected, other = signals.named("pool.checkout")
    assert (expected.attributes or {})["otel_pgpool.expected_hold"] is True
    assert "otel_pgpool.expected_hold" not in (other.attributes or {})


@pytest.mark.parametrize("wrong", [0, -1, "long", math.nan, True])
def test_a_wrong_value_is_refused(dsn: str, wrong: object) -> None:
    """With the option's name, the value and what is accepted; nothing is lent."""
    with ConnectionPool(1, 1, dsn) as pool:
        for ask in (pool.connection, pool.getconn):
            with pytest.raises(ValueError, match=r"expected_hold must be a number of seconds above 0 .* or None, not"):
                ask(expected_hold=wrong)
        assert pool.stats().used == 0


def test_a_block_in_use_is_refused(dsn: str) -> None:
    """Entering it inside itself takes nothing from the outer one, which goes on with its connection."""
    with ConnectionPool(1, 1, dsn) as pool:
        block = pool.connection(expected_hold=60)
        with block as conn:
            pid = conn.info.backend_pid
            with pytest.raises(PoolError, match="in use"), block:
                pass
            with pytest.raises(PoolTimeout), pool.connection(timeout=0):
                pass
            assert (pool.stats().used, conn.info.backend_pid) == (1, pid)
        assert pool.stats().used == 0


def test_an_interrupt_after_the_hand_over(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as it is, and the connection is free again."""
    with ConnectionPool(1, 1, dsn) as pool:
        monkeypatch.setattr(Parts, "expect_hold", interrupt)
        with pytest.raises(KeyboardInterrupt), pool.connection(expected_hold=60):
            pass
        assert pool.stats().used == 0


def interrupt(*_args: object) -> None:
    raise KeyboardInterrupt
