"""A suspended pool: checkouts wait, holders release, nothing is opened; what the pool says of it."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from otel_pgpool import PoolClosed, PoolTimeout, TooManyRequests
from tests.support.calls import calls_in
from tests.support.database import ask
from tests.support.internals import core_of
from tests.support.pools import fill, let_lie, make, pid_of_a_checkout
from tests.support.processes import in_child
from tests.support.telemetry import Signals
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from otel_pgpool.demo.postgres import PostgresServer


def test_checkouts_wait_until_it_is_resumed(dsn: str) -> None:
    """Although connections are idle; then they are served in the order in which they asked."""
    served: list[int] = []

    def ask_for_one(number: int) -> None:
        with pool.connection() as conn:
            served.append(number)
            assert ask(conn, "select 1") == 1

    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pid_of_a_checkout(pool)
        pool.suspend()
        pool.suspend()
        callers = []
        for number in range(3):
            callers.append(in_thread(ask_for_one, number))
            assert wait_until(lambda: pool.stats().waiting == len(callers))
        assert (pool.stats().idle, pool.stats().used, served) == (1, 0, [])
        pool.resume()
        for caller in callers:
            caller.result(PATIENCE)
        assert served == [0, 1, 2]
        pool.resume()
        assert pid_of_a_checkout(pool)


def test_a_wait_is_bounded(dsn: str) -> None:
    """By the checkout's timeout, or the pool's; the error says why, and counts as a timeout."""
    with make(1, 1, dsn, timeout=0.05) as pool:
        pool.suspend()
        with pytest.raises(PoolTimeout, match=r"^the pool is suspended: no connection within 0\.05 s"):
            pool.getconn()
        with pytest.raises(PoolTimeout, match=r"within 0\.02 s"), pool.connection(timeout=0.02):
            pass
        with pytest.raises(PoolTimeout, match=r"^the pool is suspended: no connection at once"):
            pool.getconn(timeout=0)
        assert (pool.stats().timeouts, pool.stats().waiting, pool.stats().idle) == (3, 0, 1)
        pool.resume()
        assert pid_of_a_checkout(pool, 0)


def test_holders_keep_and_release_theirs(dsn: str) -> None:
    """A connection in use works on; its release leaves it idle, also when others wait."""
    with make(2, 2, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn("a")
        with pool.connection() as conn:
            pool.suspend()
            assert pool.getconn("a") is held, "its key finds what it holds"
            waiting = in_thread(pool.getconn)
            assert wait_until(lambda: pool.stats().waiting == 1)
            assert ask(conn, "select 1") == ask(held, "select 1")
        pool.putconn(held, "a")
        assert (pool.stats().used, pool.stats().idle, pool.stats().waiting) == (0, 2, 1)
        pool.resume()
        pool.putconn(waiting.result(PATIENCE))


def test_nothing_is_opened(dsn: str) -> None:
    """Neither for a waiter nor for the minimum, until it is resumed; `drain()` leaves no session."""
    with make(2, 3, dsn, timeout=PATIENCE) as pool:
        pool.suspend()
        pool.drain()
        waiting = [in_thread(pool.getconn) for _ in range(3)]
        assert wait_until(lambda: pool.stats().waiting == 3)
        with pytest.raises(PoolTimeout, match=r"^the pool is suspended: 2 connections could not be opened"):
            pool.wait(0.01)
        assert (pool.stats().size, pool.stats().created) == (0, 2)
        pool.resume()
        for waiter in waiting:
            pool.putconn(waiter.result(PATIENCE))


def test_a_pool_that_is_not_open_yet(dsn: str) -> None:
    """To open it takes until it is resumed, unless the caller does not wait; an open minimum needs no wait."""
    with closing(make(1, 1, dsn, open=False)) as pool:
        pool.suspend()
        with pytest.raises(PoolTimeout, match=r"^the pool is suspended: 1 connection could not be opened"):
            pool.open(timeout=0.01)
        pool.open(wait=False)
        opening = in_thread(pool.open, True, PATIENCE)
        assert wait_until(lambda: len(core_of(pool).fill_waiters) == 1)
        pool.resume()
        opening.result(PATIENCE)
        pool.suspend()
        pool.wait(0)
        assert pool.stats().idle == 1


def test_what_it_says_of_itself(dsn: str) -> None:
    """Its status is neither that of a pool that serves nor that of a broken one, and the duration that of the pause."""
    with make(1, 1, dsn) as pool:
        pool.suspend()
        assert pool.stats().status == "suspended"
        assert "suspended" in repr(pool)
        health = pool.health()
        assert (health.status, health.is_ok) == ("suspended", False)
        assert health.reasons == ("the pool is suspended until resume() is called: 0 waiting",)
        time.sleep(0.02)
        duration = pool.health().duration
        assert duration is not None
        assert 0.02 <= duration < PATIENCE
        pool.resume()
        assert (pool.stats().status, pool.health().is_ok) == ("ok", True)


def test_a_full_queue_refuses(dsn: str) -> None:
    """As long as the pool is suspended, `max_waiting` counts although connections are idle."""
    with make(1, 1, dsn, timeout=PATIENCE, max_waiting=1) as pool:
        pool.suspend()
        waiting = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        with pytest.raises(TooManyRequests, match="the pool is suspended"):
            pool.getconn()
        assert list(pool.health().reasons) == [
            "the pool is suspended until resume() is called: 1 waiting",
            "the queue is full, further callers are refused: 1 waiting (max_waiting=1)",
        ]
        pool.resume()
        assert waiting.result(PATIENCE)


def test_a_failover(own_server: PostgresServer) -> None:
    """While it is suspended the server goes away and comes back: no caller fails, and no connect is attempted."""
    with make(1, 2, own_server.dsn, timeout=PATIENCE) as pool:
        fill(pool, 2)
        pool.suspend()
        assert wait_until(lambda: pool.stats().used == 0)
        pool.drain()
        own_server.stop()
        waiting = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        time.sleep(0.05)
        assert (pool.stats().connecting, pool.stats().retries) == (0, 0)
        own_server.start()
        pool.resume()
        assert waiting.result(PATIENCE)


def test_an_outage_is_left_alone(own_server: PostgresServer) -> None:
    """The retries stop with the suspension, and begin again after it."""
    with make(1, 1, own_server.dsn, timeout=PATIENCE) as pool:
        own_server.stop()
        pool.check()
        assert wait_until(lambda: pool.stats().status == "unreachable")
        pool.suspend()
        assert wait_until(lambda: pool.stats().connecting == 0)
        first, second = pool.health().reasons
        assert first.startswith("the pool is suspended")
        assert second.startswith("no connection can be opened")
        own_server.start()
        pool.resume()
        assert pid_of_a_checkout(pool)
        assert pool.health().is_ok


def test_idle_connections_age(dsn: str) -> None:
    """Those idle for too long are closed, and the others stay."""
    with make(1, 2, dsn) as pool:
        fill(pool, 2)
        pool.suspend()
        let_lie(pool, 10)
        pool.max_idle = 5
        assert wait_until(lambda: pool.stats().size == 1)
        pool.check()
        assert pool.stats().idle == 1


def test_a_timeout_that_is_changed(dsn: str) -> None:
    """The callers of a suspended pool wait on with the new one."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pool.suspend()
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.timeout = 0.01
        with pytest.raises(PoolTimeout):
            waiting.result(PATIENCE)


def test_closing(dsn: str) -> None:
    """It ends the waits; a closed pool is closed, whether it is suspended or resumed."""
    pool = make(1, 1, dsn, timeout=PATIENCE)
    pool.suspend()
    waiting = in_thread(pool.getconn)
    assert wait_until(lambda: pool.stats().waiting == 1)
    pool.close()
    with pytest.raises(PoolClosed):
        waiting.result(PATIENCE)
    pool.suspend()
    assert (pool.stats().status, pool.health().status) == ("closed", "closed")
    pool.resume()
    with pytest.raises(PoolClosed):
        pool.getconn()


def test_a_pool_that_is_not_open(dsn: str) -> None:
    """Its first checkout waits, and opens nothing before the end of the suspension."""
    with closing(make(1, 1, dsn, open=False, timeout=PATIENCE)) as pool:
        pool.suspend()
        assert pool.stats().status == "suspended"
        waiting = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        assert pool.stats().size == 0
        pool.resume()
        assert waiting.result(PATIENCE)


def test_a_fork(dsn: str) -> None:
    """The child's pool is suspended too, and has to be resumed there."""
    with make(1, 1, dsn, timeout=0.05) as pool:
        pool.suspend()

        def resumed() -> tuple[str, bool]:
            status = pool.stats().status
            with pytest.raises(PoolTimeout):
                pool.getconn()
            pool.resume()
            return status, pid_of_a_checkout(pool, PATIENCE) > 0

        assert in_child(resumed) == str(("suspended", True))
        assert pool.stats().status == "suspended"


def test_a_waiting_checkout_in_telemetry(dsn: str) -> None:
    """Its wait is a span, and its failure a timeout."""
    with Signals() as signals, signals.pool(1, 1, dsn, timeout=0.05) as pool:
        pool.suspend()
        with pytest.raises(PoolTimeout), pool.connection():
            pass
        span = signals.checkout()
        assert (span.attributes or {})["otel_pgpool.outcome"] == "timeout"
        assert span.status.description is not None
        assert span.status.description.startswith("the pool is suspended")


def test_it_costs_an_ordinary_checkout_nothing(dsn: str) -> None:
    """After a suspension a checkout makes the same calls as before."""

    def block() -> None:
        with pool.connection():
            pass

    with make(1, 1, dsn) as pool:
        block()
        before = calls_in(block)
        pool.suspend()
        pool.resume()
        assert wait_until(lambda: not core_of(pool).parked)
        assert calls_in(block) == before
