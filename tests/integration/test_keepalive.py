"""Pings of idle connections: what they reach, what they discard, and what a frozen server must not delay."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import PoolTimeout
from otel_pgpool.driver.deadline import IO_DEADLINE, NoAnswer
from otel_pgpool.pool import acquire, keepalive, liveness
from otel_pgpool.pool.liveness import CHECK_BUDGET
from tests.support.database import ask, kill, lives
from tests.support.internals import core_of, start_pass
from tests.support.pools import Recorder, fill, let_last, let_lie, make, pid_of_a_checkout
from tests.support.processes import exit_code_of, frozen
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool

AT_ONCE = 1.0
"""Seconds that are less than the time limit of a ping."""


class Check:
    """A program's check, which notes the connections, and waits from `hold_up` on."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def hold_up(self) -> None:
        """Let the next checks wait; those of checkouts are over."""
        self.pids.clear()
        self.go_on.clear()

    def __call__(self, conn: connection) -> None:
        self.pids.append(conn.info.backend_pid)
        assert self.go_on.wait(PATIENCE)
        ask(conn, "select 1")


@pytest.fixture
def held_up() -> Iterator[Check]:
    check = Check()
    yield check
    check.go_on.set()


def ping_now(pool: ConnectionPool) -> None:
    """As if each idle connection had been idle for as long as `keepalive`, at the most."""
    let_lie(pool, 61.0)
    start_pass(pool)


def keepalive_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "otel_pgpool-keepalive"]


def test_a_pool_that_nobody_uses(dsn: str) -> None:
    """Its connections are pinged although its maintenance is parked, by a thread that ends afterwards."""
    check = Check()
    with make(2, 2, dsn, keepalive=1.2, check=check) as pool:
        pids = set(fill(pool, 2))
        assert wait_until(lambda: core_of(pool).parked)
        check.pids.clear()
        assert wait_until(lambda: pids <= {*check.pids})
        assert wait_until(lambda: not keepalive_threads())
        assert (pool.stats().created, pool.stats().discarded) == (2, {})


def test_without_keepalive(dsn: str) -> None:
    """No ping is made, and no thread."""
    check = Check()
    with make(1, 1, dsn, check=check) as pool:
        let_lie(pool, 1e6)
        start_pass(pool)
        assert core_of(pool).next_ping() == float("inf")
        assert not wait_until(lambda: check.pids or keepalive_threads(), timeout=0.6)


def test_one_at_a_time_and_the_longest_idle_first(dsn: str, held_up: Check) -> None:
    """What was used last is left for callers, and is handed out first after the pings too."""
    with make(3, 3, dsn, keepalive=60, check=held_up) as pool:
        fill(pool, 3)
        order = [slot.pid for slot in core_of(pool).idle]
        held_up.hold_up()
        ping_now(pool)
        assert wait_until(lambda: held_up.pids)
        assert (held_up.pids, pool.stats().idle) == (order[:1], 2)
        held_up.go_on.set()
        assert wait_until(lambda: len(held_up.pids) == 3)
        assert wait_until(lambda: pool.stats().idle == 3)
        assert held_up.pids == order == [slot.pid for slot in core_of(pool).idle]
        assert all(slot.idle_since < slot.pinged - 60.0 for slot in core_of(pool).idle)


def test_a_pinged_connection_needs_no_ping_at_its_checkout(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known to be alive, although it counts as unused."""
    pings: list[Any] = []
    monkeypatch.setattr(liveness, "ping", lambda *args: pings.append(args))
    with make(1, 1, dsn, keepalive=60) as pool:
        ping_now(pool)
        assert wait_until(lambda: all(slot.pinged > 0 for slot in core_of(pool).idle) and pool.stats().idle)
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
        assert pings == []
        let_lie(pool, 61.0)  # without a ping in between, there is one
        core_of(pool).idle[0].pinged -= 61.0
        with pool.connection():
            pass
        assert len(pings) == 1


@pytest.mark.parametrize("check", ["auto", None], ids=["auto", "no_check"])
def test_a_dead_one_is_replaced(dsn: str, admin: connection, check: Any) -> None:
    """The pool refills without a caller; the reason is that of a check at a checkout."""
    recorder = Recorder()
    with make(2, 2, dsn, keepalive=60, check=check, observer=recorder) as pool:
        pids = fill(pool, 2)
        kill(admin, pids[:1])
        ping_now(pool)
        assert wait_until(lambda: (pool.stats().discarded, pool.stats().idle) == ({"broken": 1}, 2))
        [(slots, reason, error, checkout)] = recorder.calls("discarded")
        assert ([slot.pid for slot in slots], reason, checkout) == (pids[:1], "broken", None)
        assert error is not None
        assert pool.stats().created == 3


def test_a_check_that_raises(dsn: str) -> None:
    """The connection is open, but the program wants it no more."""
    refused: set[int] = set()

    def check(conn: connection) -> None:
        if conn.info.backend_pid in refused:
            raise LookupError

    with make(1, 1, dsn, keepalive=60, check=check) as pool:
        refused.update(fill(pool, 1))
        ping_now(pool)
        assert wait_until(lambda: (pool.stats().discarded, pool.stats().idle) == ({"check_failed": 1}, 1))


def test_a_frozen_server_delays_nothing_else(dsn: str) -> None:
    """During a ping without an answer, long holds are told of, dropped connections reclaimed, and forks made."""
    recorder = Recorder()
    with make(2, 3, dsn, keepalive=60, observer=recorder, long_hold=0.3) as pool:
        pids = fill(pool, 3)
        conn: Any = pool.getconn()
        with frozen(*pids):
            ping_now(pool)
            assert wait_until(lambda: core_of(pool).checking)
            let_last(pool)
            assert wait_until(lambda: recorder.calls("held_long"), timeout=AT_ONCE)
            began = time.monotonic()
            assert exit_code_of(lambda: pool.stats().used == 0) == 0
            assert time.monotonic() - began < 0.5
            del conn
            gc.collect()
            assert wait_until(lambda: recorder.calls("reclaimed"), timeout=AT_ONCE)
            assert core_of(pool).checking, "it lasts"
            began = time.monotonic()
            pool.close()
            assert time.monotonic() - began < AT_ONCE
        assert wait_until(lambda: not keepalive_threads())
        assert "broken" not in pool.stats().discarded
        assert pool.stats().size == 0


def test_a_ping_that_gets_no_answer(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time limit the connection is discarded and replaced; the server is not said to have closed it."""
    recorder = Recorder()
    ping = keepalive.ping
    monkeypatch.setattr(keepalive, "ping", lambda conn, check: ping(conn, check, 0.2))
    with make(1, 1, dsn, keepalive=60, observer=recorder) as pool, frozen(*fill(pool, 1)):
        ping_now(pool)
        assert wait_until(lambda: (pool.stats().discarded, pool.stats().idle) == ({"broken": 1}, 1))
        [(_slots, _reason, error, _checkout)] = recorder.calls("discarded")
        assert (type(error), str(error)) == (NoAnswer, "no answer within 0.2 s")


def test_a_caller_during_the_ping_of_the_only_connection(
    dsn: str, held_up: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller with timeout 0 waits a moment for the end of the ping, and gets the connection."""
    monkeypatch.setattr(acquire, "CHECK_BUDGET", PATIENCE)
    with make(1, 1, dsn, keepalive=60, check=held_up) as pool:
        [pid] = fill(pool, 1)
        held_up.hold_up()
        ping_now(pool)
        assert wait_until(lambda: held_up.pids)
        caller = in_thread(pid_of_a_checkout, pool, 0)
        assert wait_until(lambda: pool.stats().waiting)
        held_up.go_on.set()
        assert caller.result(PATIENCE) == pid
        assert pool.stats().created == 1


def test_a_caller_that_does_not_wait_for_a_ping(dsn: str, held_up: Check) -> None:
    """With timeout 0 it waits for 0.1 s, and costs a ping that has just begun nothing."""
    with make(1, 1, dsn, keepalive=60, check=held_up) as pool:
        [pid] = fill(pool, 1)
        held_up.hold_up()
        ping_now(pool)
        assert wait_until(lambda: held_up.pids)
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0)
        assert CHECK_BUDGET <= caught.value.waited < AT_ONCE
        held_up.go_on.set()
        assert wait_until(lambda: pool.stats().idle)
        assert pid_of_a_checkout(pool, 0) == pid


@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_a_caller_during_a_ping_without_an_answer(dsn: str, monkeypatch: pytest.MonkeyPatch, timeout: float) -> None:
    """The ping may last as long as a check at a checkout; then it is cut, and the caller gets another connection."""
    monkeypatch.setattr(acquire, "MIN_FIRST_CHECK", 0.2)
    monkeypatch.setattr(liveness, "IO_DEADLINE", 0.3)
    recorder = Recorder()
    with make(1, 1, dsn, keepalive=60, observer=recorder) as pool, frozen(*fill(pool, 1)):
        ping_now(pool)
        assert wait_until(lambda: core_of(pool).checking)
        began = time.monotonic()

        def is_served() -> bool:
            with contextlib.suppress(PoolTimeout):
                return pid_of_a_checkout(pool, timeout) > 0
            return False

        assert wait_until(is_served)
        assert time.monotonic() - began < IO_DEADLINE - AT_ONCE
        [(_slots, reason, error, _checkout)] = recorder.calls("discarded")
        assert (reason, type(error)) == ("broken", NoAnswer)


def test_drained_before_a_ping(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is to be closed is not pinged: a frozen server would delay its close."""
    check = Check()
    with make(1, 1, dsn, keepalive=60, check=check) as pool:
        fill(pool, 1)
        begin = type(core_of(pool)).begin_ping

        def begin_and_change(core: Any, now: float) -> Any:
            slot = begin(core, now)
            if slot is not None:
                core.drain("drained")
            return slot

        monkeypatch.setattr(type(core_of(pool)), "begin_ping", begin_and_change)
        check.pids.clear()
        ping_now(pool)
        assert wait_until(lambda: pool.stats().discarded)
        assert check.pids == []


@pytest.mark.parametrize("what", ["close", "drain"])
def test_closed_or_drained_during_a_ping(dsn: str, admin: connection, held_up: Check, what: str) -> None:
    """The pinged connection goes after its ping, for that reason."""
    pool = make(1, 1, dsn, keepalive=60, check=held_up)
    [pid] = fill(pool, 1)
    held_up.hold_up()
    ping_now(pool)
    assert wait_until(lambda: held_up.pids)
    done = in_thread(getattr(pool, what))
    assert wait_until(lambda: all(slot.evict_reason for slot in core_of(pool).checking))
    held_up.go_on.set()
    done.result(PATIENCE)
    reason = {"close": "closed", "drain": "drained"}[what]
    assert wait_until(lambda: pool.stats().discarded == {reason: 1})
    assert wait_until(lambda: not lives(admin, pid))
    pool.close()
    assert wait_until(lambda: not keepalive_threads())


def test_a_pool_dropped_during_a_ping(dsn: str, admin: connection, held_up: Check) -> None:
    """The thread ends with its ping, and the connections are closed."""
    pool: Any = make(2, 2, dsn, keepalive=60, check=held_up)
    pids = fill(pool, 2)
    dropped = weakref.ref(pool)
    held_up.hold_up()
    ping_now(pool)
    assert wait_until(lambda: held_up.pids)
    del pool
    gc.collect()
    assert dropped() is None
    held_up.go_on.set()
    assert wait_until(lambda: not keepalive_threads())
    gc.collect()
    assert wait_until(lambda: not any(lives(admin, pid) for pid in pids))
    assert len(held_up.pids) == 1


def test_an_interrupt_of_a_ping(dsn: str) -> None:
    """An exception that another thread raises into the one that pings costs the connection, and not the pings."""
    check = Check()
    entered = threading.Event()
    leave = threading.Event()

    def interrupted(conn: connection) -> None:
        check(conn)
        if not entered.is_set():
            entered.set()
            while not leave.is_set():
                time.sleep(0.001)

    with make(1, 1, dsn, keepalive=60, check=interrupted) as pool:
        ping_now(pool)
        assert entered.wait(PATIENCE)
        [thread] = keepalive_threads()
        raised = ctypes.py_object(KeyboardInterrupt)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), raised)
        assert wait_until(lambda: (pool.stats().discarded, pool.stats().idle) == ({"check_failed": 1}, 1))
        leave.set()
        ping_now(pool)
        assert wait_until(lambda: len(check.pids) == 2)
        assert wait_until(lambda: pool.stats().idle == 1)


def test_a_child_of_a_fork_pings_its_own(dsn: str, admin: connection, held_up: Check) -> None:
    """It neither waits for the parent's ping nor touches its connection."""
    with make(1, 1, dsn, keepalive=60, check=held_up) as pool:
        [pid] = fill(pool, 1)
        held_up.hold_up()
        ping_now(pool)
        assert wait_until(lambda: held_up.pids)

        def child() -> bool:
            held_up.go_on.set()
            with pool.connection() as conn:
                own = conn.info.backend_pid
            ping_now(pool)
            return own != pid and wait_until(lambda: held_up.pids[-1] == own)

        assert exit_code_of(child) == 0
        held_up.go_on.set()
        assert wait_until(lambda: pool.stats().idle == 1)
        assert lives(admin, pid)
