"""A hold that is long by design, as a listener's, is flagged after its own time and sets off no alert before."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest

from otel_pgpool import ConnectionPool, PoolError, PoolTimeout
from otel_pgpool.pool.parts import Parts
from tests.support.telemetry import Signals, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from psycopg2.extensions import connection

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
