"""Waiting: order, timeouts, the queue's limit, interrupts, and growth in the background."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2 import extensions

from otel_pgpool import PoolTimeout, TooManyRequests
from otel_pgpool.pool import acquire
from tests.support.database import ask
from tests.support.pools import Gate, Recorder, fill, let_lie, make
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from otel_pgpool import ConnectionPool


def test_first_come_first_served(dsn: str) -> None:
    """A released connection belongs to the first waiter, and no newcomer gets that connection before the waiter."""
    served: list[int] = []
    go_on = threading.Event()
    with make(1, 1, dsn) as pool:
        held = pool.getconn()

        def work(number: int) -> None:
            with pool.connection():
                served.append(number)
                assert go_on.wait(PATIENCE)

        waiting = []
        for number in range(8):
            waiting.append(in_thread(work, number))
            assert wait_until(lambda number=number: pool.stats().waiting == number + 1)
        pool.putconn(held)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        go_on.set()
        for future in waiting:
            future.result(PATIENCE)
        assert served == list(range(8))
        assert pool.stats().queued == 8


def test_threads_in_a_hot_loop_get_equal_shares(dsn: str) -> None:
    """Nobody starves: with 8 threads on 2 connections the busiest is hardly ahead of the idlest."""
    with make(2, 2, dsn, timeout=PATIENCE) as pool:

        def spread() -> float:
            counts = [0] * 8
            stop = threading.Event()

            def work(number: int) -> None:
                while not stop.is_set():
                    with pool.connection() as conn:
                        ask(conn, "select pg_sleep(0.001)")
                    counts[number] += 1

            workers = [in_thread(work, number) for number in range(8)]
            assert wait_until(lambda: min(counts) >= 30)
            stop.set()
            spread = max(counts) / min(counts)
            for worker in workers:
                worker.result(PATIENCE)
            return spread

        assert wait_until(lambda: spread() <= 1.5)  # again, where the machine left a thread out for a while


def test_timeout_is_kept(dsn: str) -> None:
    """Neither earlier nor much later."""
    with closing(make(1, 1, dsn, timeout=0.3, open=False)) as pool:
        pool.wait(PATIENCE)  # its timeout bounds the opening too
        held = pool.getconn()
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.getconn()
        assert 0.3 <= time.monotonic() - began < PATIENCE
        assert pool.stats().timeouts == 1
        pool.putconn(held)


@pytest.mark.parametrize("idle_for", [0.0, 1.0, 60.0])
def test_timeout_0_takes_an_idle_one(dsn: str, monkeypatch: pytest.MonkeyPatch, idle_for: float) -> None:
    """At every rung of the ladder: just used, looked at, asked."""
    monkeypatch.setattr(acquire, "CHECK_BUDGET", PATIENCE)  # a busy machine does not answer in a tenth of a second
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, idle_for)
        conn = pool.getconn(timeout=0)
        assert conn.info.backend_pid == pid
        pool.putconn(conn)


def test_timeout_0_raises_at_once_and_asks_for_growth(dsn: str) -> None:
    """Nothing is idle: it raises without waiting, and a connection is made for the next."""
    with make(1, 2, dsn) as pool:
        held = pool.getconn()
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert time.monotonic() - began < PATIENCE
        assert wait_until(lambda: pool.stats().idle == 1)
        second = pool.getconn(timeout=0)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert pool.stats().size == 2
        pool.putconn(held)
        pool.putconn(second)


def test_timeout_0_as_the_pools_own(dsn: str) -> None:
    """The pool's own timeout may be 0, as a mover from the stock pool wants it."""
    with make(1, 2, dsn, timeout=0) as pool:
        held = pool.getconn()
        with pytest.raises(PoolTimeout):
            pool.getconn()
        pool.putconn(held)


def test_infinite_timeout(dsn: str) -> None:
    """`math.inf` waits for as long as it takes."""
    with make(1, 1, dsn, timeout=math.inf) as pool:
        held = pool.getconn()
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.putconn(held)
        pool.putconn(waiting.result(PATIENCE))


def interrupt_when(pool: ConnectionPool, waiting: int) -> threading.Thread:
    def run() -> None:
        assert wait_until(lambda: pool.stats().waiting == waiting)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("timeout", [math.inf, 30.0])
def test_interrupted_wait_leaves_no_waiter(dsn: str, timeout: float) -> None:
    """Ctrl-C ends the wait, and neither a waiter nor a connection stays behind."""
    recorder = Recorder()
    with make(1, 1, dsn, timeout=timeout, observer=recorder) as pool:
        held = pool.getconn()
        for number in (1, 2, 3):
            thread = interrupt_when(pool, 1)
            with pytest.raises(KeyboardInterrupt), pool.connection():
                pytest.fail("none was free")
            thread.join(PATIENCE)
            assert pool.stats().waiting == 0
            assert pool.stats().errors == number
        (checkout, error) = recorder.calls("failed")[0]
        assert (checkout.outcome, checkout.error_type) == ("error", "KeyboardInterrupt")
        assert isinstance(error, KeyboardInterrupt)
        pool.putconn(held)
        pool.putconn(pool.getconn(timeout=0))


def test_interrupts_at_any_moment_lose_no_connection(dsn: str) -> None:
    """Ctrl-C while a connection is being handed over, again and again: all places are free in the end."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:

        def hand_over_and_interrupt(held: Any, round_: int) -> None:
            assert wait_until(lambda: pool.stats().waiting == 1)
            if round_ % 2:
                pool.putconn(held)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not round_ % 2:
                pool.putconn(held)

        for round_ in range(20):
            held = pool.getconn()
            other = in_thread(hand_over_and_interrupt, held, round_)
            del held
            try:
                with pool.connection():
                    time.sleep(PATIENCE)  # until the interrupt, where the hand-over was first
            except KeyboardInterrupt:
                pass
            other.result(PATIENCE)
        assert wait_until(lambda: pool.stats().used == 0)
        assert pool.stats().waiting == 0
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


def test_max_waiting(dsn: str) -> None:
    """Past the limit a checkout raises at once; who timed out no longer counts."""
    recorder = Recorder()
    with make(1, 1, dsn, max_waiting=2, timeout=PATIENCE, observer=recorder) as pool:
        held = pool.getconn()
        for _ in range(5):
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.02)
        assert pool.stats().waiting == 0
        short = [in_thread(pool.getconn, None) for _ in range(2)]
        assert wait_until(lambda: pool.stats().waiting == 2)
        began = time.monotonic()
        with pytest.raises(TooManyRequests, match=r"2 waiting \(max_waiting=2\)"):
            pool.getconn()
        assert time.monotonic() - began < PATIENCE
        assert recorder.calls("failed")[-1][0].error_type == "too_many_requests"
        pool.putconn(held)
        for future in short:
            pool.putconn(future.result(PATIENCE))
        assert pool.stats().errors == 1


def test_max_waiting_does_not_refuse_who_need_not_wait(dsn: str) -> None:
    """With a connection idle, the limit refuses nobody."""
    with make(1, 1, dsn, max_waiting=1) as pool:
        for _ in range(5):
            with pool.connection():
                pass


# Growth


def test_slow_connect_does_not_hold_up_callers(dsn: str) -> None:
    """Who waits for a new connection takes a returned one that comes before."""
    gate = Gate(free=1)
    recorder = Recorder()
    with make(1, 2, dsn, connection_factory=gate, observer=recorder) as pool:
        held = pool.getconn()
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: gate.calls == 2)
        assert pool.stats().connecting == 1
        pool.putconn(held)
        assert waiting.result(PATIENCE) is held
        assert recorder.calls("acquired")[-1][0].path == "queued"
        gate.open()
        assert wait_until(lambda: pool.stats().idle == 1)
        pool.putconn(held)
        assert pool.stats().size == 2


def test_spike_opens_at_most_three(dsn: str) -> None:
    """50 callers on 5 of at most 50 connections, with connects that do not come in time: at most 3 are begun."""
    gate = Gate(free=5)
    with make(5, 50, dsn, connection_factory=gate, timeout=PATIENCE) as pool:

        def work() -> None:
            with pool.connection():
                time.sleep(0.002)

        for future in [in_thread(work) for _ in range(50)]:
            future.result(PATIENCE)
        assert pool.stats().created == 5, "released ones have served all"
        assert gate.calls <= 8
        gate.open()
        assert wait_until(lambda: pool.stats().connecting == 0)
        assert gate.calls <= 8
        assert pool.stats().size <= 8


def test_connects_are_at_most_three_at_a_time(dsn: str) -> None:
    """Even when many connections are wanted, at most three are being made."""
    gate = Gate(free=0)
    with make(0, 10, dsn, connection_factory=gate, timeout=PATIENCE) as pool:
        done = threading.Event()

        def work() -> None:
            with pool.connection():
                done.wait(PATIENCE)

        workers = [in_thread(work) for _ in range(10)]
        assert wait_until(lambda: gate.at_once == 3)
        assert pool.stats().connecting == 3
        gate.open()
        assert wait_until(lambda: pool.stats().used == 10)
        done.set()
        for worker in workers:
            worker.result(PATIENCE)
        assert gate.most_at_once <= 3


def test_never_over_maxconn(dsn: str) -> None:
    """There are never more open connections than `maxconn`, whatever many threads do."""
    made: list[extensions.connection] = []

    def connect(*args: Any, **kwargs: Any) -> extensions.connection:
        conn = extensions.connection(*args, **kwargs)
        made.append(conn)
        assert sum(not conn.closed for conn in made) <= 3
        return conn

    with make(0, 3, dsn, connection_factory=connect, timeout=PATIENCE) as pool:

        def work(number: int) -> None:
            for turn in range(15):
                conn = pool.getconn()
                assert pool.stats().size <= 3
                pool.putconn(conn, close=(turn + number) % 5 == 0)

        for worker in [in_thread(work, number) for number in range(8)]:
            worker.result(PATIENCE)
        assert wait_until(lambda: pool.stats().connecting == 0)
        assert len(made) == pool.stats().created > 3, "each one that was made kept to the limit"
        assert pool.stats().used == 0
