"""What the pool promises, a test for each row of the table, where other pools fail."""

from __future__ import annotations

import gc
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import errors, extensions

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.pool import acquire
from tests.support.database import IDLE, ask, kill
from tests.support.internals import start_pass
from tests.support.pools import Gate, Recorder, fill, let_lie, make, pid_of_a_checkout
from tests.support.processes import in_child
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer


def test_waiters_are_served_first_come_first_served_by_direct_hand_off(dsn: str) -> None:
    """A connection that comes back belongs to the first in the queue: who has just given it back cannot snatch it."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        order: list[int] = []
        go_on = threading.Event()

        def work(number: int) -> None:
            with pool.connection():
                order.append(number)
                assert go_on.wait(PATIENCE)

        waiting = []
        for number in range(5):
            waiting.append(in_thread(work, number))
            assert wait_until(lambda number=number: pool.stats().waiting == number + 1)
        pool.putconn(held)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        go_on.set()
        for future in waiting:
            future.result(PATIENCE)
        assert order == list(range(5))


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


def test_a_waiter_that_timed_out_leaves_the_queue_at_once(dsn: str) -> None:
    """It does not count toward `max_waiting`, and no connection is handed to it."""
    with make(1, 1, dsn, max_waiting=2) as pool:
        held = pool.getconn()
        for _ in range(5):
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.02)
        assert pool.stats().waiting == 0
        living = [in_thread(pid_of_a_checkout, pool, PATIENCE) for _ in range(2)]
        assert wait_until(lambda: pool.stats().waiting == 2)
        pool.putconn(held)
        assert all(future.result(PATIENCE) for future in living)


def test_timeout_0_succeeds_when_a_connection_is_idle(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just used, idle for a while, idle for so long that the server is asked."""
    monkeypatch.setattr(acquire, "CHECK_BUDGET", PATIENCE)  # a busy machine does not answer in a tenth of a second
    with make(1, 1, dsn) as pool:
        for idle_for in (0, 1, 60):
            fill(pool, 1)
            let_lie(pool, idle_for)
            with pool.connection(timeout=0) as conn:
                assert ask(conn, "select 1") == 1


class Stuck:
    """The first call once it is armed blocks until it may go on."""

    def __init__(self) -> None:
        self.armed = False
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *_args: object) -> dict[str, Any]:
        if self.armed:
            self.armed = False
            self.entered.set()
            assert self.go_on.wait(PATIENCE)
        return {}


STUCK = Stuck()


class SlowConnection(extensions.connection):
    slow = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._when("connect")
        super().__init__(*args, **kwargs)

    def _when(self, deed: str) -> None:
        if SlowConnection.slow == deed:
            STUCK()

    def commit(self) -> None:
        self._when("commit")
        super().commit()

    def rollback(self) -> None:
        self._when("rollback")
        super().rollback()

    def close(self) -> None:
        self._when("close")
        super().close()


class SlowObserver(Recorder):
    def __init__(self, slow: str) -> None:
        super().__init__()
        self.slow = slow

    def __getattr__(self, name: str) -> Any:
        if name == self.slow:
            return STUCK
        return super().__getattr__(name)


class SlowHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        STUCK()


def work(pool: ConnectionPool) -> None:
    let_lie(pool)
    with pool.connection() as conn:
        ask(conn, "select 1")


def fail(pool: ConnectionPool) -> None:
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
        ask(conn, "select 1")
        raise ZeroDivisionError


def discard(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn(), close=True)


def grow(pool: ConnectionPool) -> None:
    pool.resize(4, 4)
    assert STUCK.entered.wait(PATIENCE)


def time_out(pool: ConnectionPool) -> None:
    conns = [pool.getconn() for _ in range(3)]
    try:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
    finally:
        for conn in conns:
            pool.putconn(conn)


DEEDS: dict[str, tuple[dict[str, Any], Callable[[ConnectionPool], None]]] = {
    "connect": ({}, grow),
    "configure": ({"configure": STUCK}, grow),
    "credentials": ({"credentials": STUCK}, grow),
    "check": ({"check": STUCK}, work),
    "commit": ({}, work),
    "rollback": ({}, fail),
    "reset": ({"reset": STUCK}, work),
    "close": ({}, discard),
    "telemetry of a request": ({"observer": "started"}, work),
    "telemetry of a hand-over": ({"observer": "acquired"}, work),
    "telemetry of a return": ({"observer": "released"}, work),
    "telemetry of a discard": ({"observer": "discarded"}, discard),
    "telemetry of a connect": ({"observer": "connected"}, grow),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_no_connect_ping_rollback_log_or_telemetry_while_holding_the_lock(
    dsn: str, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    """While one thread is stuck in any of these, the others borrow, give back and look as if nothing were."""
    options, act = DEEDS[deed]
    STUCK.__init__()  # type: ignore[misc]
    if "observer" in options:
        options = {"observer": SlowObserver(options["observer"])}
    with make(3, 3, dsn, connection_factory=SlowConnection, timeout=PATIENCE, **options) as pool:
        monkeypatch.setattr(SlowConnection, "slow", deed)
        STUCK.armed = True
        stuck = in_thread(act, pool)
        try:
            assert STUCK.entered.wait(PATIENCE)
            assert_in_service(pool)
        finally:
            STUCK.go_on.set()
            stuck.result(PATIENCE)


def assert_in_service(pool: ConnectionPool) -> None:
    """Everything a neighbour may want is done while the other is stuck."""

    def neighbour() -> None:
        for _ in range(3):
            with pool.connection(5) as conn:
                ask(conn, "select 1")
        pool.putconn(pool.getconn("by key"), "by key")
        pool.stats()
        pool.holders()
        repr(pool)

    for future in [in_thread(neighbour) for _ in range(2)]:
        future.result(10)


def test_no_log_while_holding_the_lock(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log handler that is stuck over the record of a timeout holds up nobody else."""
    logger, handler = logging.getLogger("otel_pgpool"), SlowHandler()
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    STUCK.__init__()  # type: ignore[misc]
    with ConnectionPool(3, 4, dsn, timeout=PATIENCE) as pool:
        pool.resize(3, 3)
        STUCK.armed = True
        held = [pool.getconn() for _ in range(3)]
        stuck = in_thread(pool.getconn, None)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.putconn(held.pop())
        pool.putconn(stuck.result(PATIENCE))
        for conn in held:
            pool.putconn(conn)
        stuck = in_thread(time_out, pool)
        try:
            assert STUCK.entered.wait(PATIENCE)
            assert wait_until(lambda: pool.stats().timeouts == 1)
            pool.resize(3, 4)
            assert_in_service(pool)
        finally:
            STUCK.go_on.set()
            stuck.result(PATIENCE)


def test_a_caller_waits_for_any_connection_a_returned_one_may_come_before_the_new_one(dsn: str) -> None:
    """50 callers on 5 connections, and connects that do not come in time: all are served by returned ones."""
    gate = Gate(free=5)
    with make(5, 50, dsn, connection_factory=gate, timeout=PATIENCE) as pool:

        def work() -> None:
            with pool.connection():
                time.sleep(0.002)

        for future in [in_thread(work) for _ in range(50)]:
            future.result(PATIENCE)
        assert pool.stats().created == 5
        assert gate.calls <= 5 + 3
        gate.open()
        assert wait_until(lambda: pool.stats().connecting == 0)
        assert pool.stats().created <= 5 + 3


def test_connections_above_minconn_are_kept_until_idle_too_long(dsn: str) -> None:
    """They are lent again, and closed after `max_idle` alone."""
    with make(1, 4, dsn, max_idle=60) as pool:
        pids = {*fill(pool, 4)}
        assert {*fill(pool, 4)} == pids
        assert pool.stats().created == 4
        let_lie(pool, 60)
        start_pass(pool)  # the maintenance looks now
        assert wait_until(lambda: pool.stats().discarded == {"idle": 3})
        assert pool.stats().size == 1


def test_a_connection_that_died_while_idle_is_found_before_the_caller_gets_it_without_a_round_trip(
    dsn: str, admin: connection
) -> None:
    """Eight killed, eight callers, no error; and to the living the server hears no question."""
    with make(8, 8, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 8)
        let_lie(pool)
        changed = "select max(state_change) from pg_stat_activity where pid = any(%s)"
        before = ask(admin, changed, pids)
        held = [pool.getconn() for _ in range(8)]
        for conn in held:
            pool.putconn(conn)
        assert ask(admin, changed, pids) == before
        time.sleep(0.06)  # the first 50 ms nobody looks
        kill(admin, pids)
        conns = [pool.getconn() for _ in range(8)]
        assert [ask(conn, "select 1") for conn in conns] == [1] * 8
        assert not {conn.info.backend_pid for conn in conns} & set(pids)
        for conn in conns:
            pool.putconn(conn)


def test_one_dead_connection_makes_the_pool_poll_every_idle_one(dsn: str, admin: connection) -> None:
    """The dead go together, without a pause between them, and the healthy stay."""
    recorder = Recorder()
    with make(8, 8, dsn, observer=recorder) as pool:
        pids = fill(pool, 8)
        let_lie(pool)
        kill(admin, pids[2:])
        began = time.monotonic()
        assert pid_of_a_checkout(pool)
        assert time.monotonic() - began < 5
        ((slots, reason, *_),) = recorder.calls("discarded")
        assert (len(slots), reason) == (6, "broken")
        assert recorder.calls("acquired")[-1][0].retries == 1
        assert wait_until(lambda: pool.stats().idle == 8)
        assert set(pids[:2]) <= set(fill(pool, 8))


class FailingRollback(extensions.connection):
    failure: BaseException = RuntimeError()

    def rollback(self) -> None:
        raise type(self).failure


@pytest.mark.parametrize("failure", [RuntimeError("r"), psycopg2.OperationalError("r"), KeyboardInterrupt("r")])
def test_the_slot_is_given_back_whatever_happens(
    dsn: str, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """A BaseException in the block, a rollback that raises, a checkout that is dropped: the one place is free again."""
    monkeypatch.setattr(FailingRollback, "failure", failure)
    with make(1, 1, dsn, timeout=PATIENCE, connection_factory=FailingRollback) as pool:
        for kind in (KeyboardInterrupt, SystemExit, GeneratorExit, ValueError):
            with pytest.raises((kind, type(failure))), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
                ask(conn, "select 1")
                raise kind
            assert pool.stats().used == 0
        conn = pool.getconn()
        ask(conn, "select 1")
        try:
            pool.putconn(conn)
        except KeyboardInterrupt:
            assert isinstance(failure, KeyboardInterrupt)
        assert pool.stats().used == 0
        conn = pool.getconn()
        del conn
        gc.collect()
        assert wait_until(lambda: pool.stats().discarded.get("reclaimed") == 1)
        assert pool.stats().used == 0
        with pool.connection() as conn:
            conn.autocommit = True
            assert ask(conn, "select 1") == 1
            conn.autocommit = False


@pytest.mark.parametrize("failure", [RuntimeError("r"), psycopg2.OperationalError("r")])
def test_the_callers_own_exception_comes_out_of_the_block_whatever_the_rollback_does(
    dsn: str, admin: connection, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """The very object, when the rollback raises, and when the backend is gone."""
    monkeypatch.setattr(FailingRollback, "failure", failure)
    with make(1, 1, dsn, timeout=PATIENCE, connection_factory=FailingRollback) as pool:
        for die in (False, True):
            mine = LookupError("mine")
            with pytest.raises(LookupError) as caught, pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
                ask(conn, "select 1")
                if die:
                    kill(admin, [conn.info.backend_pid])
                raise mine
            assert caught.value is mine
            assert pool.stats().used == 0


def test_a_reclaimed_or_leaked_checkout_is_reported_never_silent(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A leak is logged while it is still held; a dropped checkout when it is taken back. Both say where it was lent."""
    with caplog.at_level(logging.INFO, "otel_pgpool"), ConnectionPool(1, 1, dsn, long_hold=0.1) as pool:
        conn = pool.getconn()
        assert wait_until(lambda: "long_hold" in logged(caplog))
        assert pool.stats().used == 1
        del conn
        assert wait_until(lambda: "reclaimed" in logged(caplog))
    for event in ("long_hold", "reclaimed"):
        record = logged(caplog)[event]
        assert record.levelno == logging.WARNING
        assert __file__ in getattr(record, "otel_pgpool.checked_out_at")


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, logging.LogRecord]:
    return {getattr(record, "otel_pgpool.event", ""): record for record in caplog.records.copy()}


def test_a_commit_that_fails_raises_to_the_caller(dsn: str, admin: connection) -> None:
    """Refused by the server, and cut off from it."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        with pytest.raises(errors.UniqueViolation), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            ask(conn, "create temporary table once (n int unique deferrable initially deferred)")
            ask(conn, "insert into once values (1), (1)")
        with pytest.raises((psycopg2.OperationalError, psycopg2.InterfaceError)), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            ask(conn, "select 1")
            kill(admin, [conn.info.backend_pid])
        assert pool.stats().used == 0
        assert pid_of_a_checkout(pool)


def test_putconn_close_and_putconn_of_a_broken_connection_keep_the_counts_right(dsn: str, admin: connection) -> None:
    """Over and over: nothing drifts."""
    with make(1, 3, dsn, timeout=PATIENCE) as pool:
        for turn in range(12):
            conn = pool.getconn()
            if turn % 3 == 0:
                pool.putconn(conn, close=True)
            elif turn % 3 == 1:
                ask(conn, "select 1")
                kill(admin, [conn.info.backend_pid])
                pool.putconn(conn)
            else:
                conn.close()
                pool.putconn(conn)
        stats = pool.stats()
        assert stats.used == 0
        assert stats.discarded == {"returned_closed": 8, "broken": 4}
        assert wait_until(lambda: pool.stats().idle == 1)
        stats = pool.stats()
        assert stats.size == 1
        assert stats.created - sum(stats.discarded.values()) == stats.size
        assert len(set(fill(pool, 3))) == 3


def test_retries_stop_at_the_timeout_not_at_a_fixed_three_tries(own_server: PostgresServer) -> None:
    """Away for more than three attempts: who has the time is served, who has not is told when it is up."""
    recorder = Recorder()
    with make(0, 2, own_server.dsn, observer=recorder) as pool:
        own_server.stop()
        patient = in_thread(pid_of_a_checkout, pool, 60)
        assert wait_until(lambda: pool.stats().waiting == 1)  # so that it sees every attempt
        began = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=4)
        assert 4 <= time.monotonic() - began < PATIENCE
        assert caught.value.retries >= 1
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert wait_until(lambda: len(recorder.calls("connect_failed")) > 4)
        assert not patient.done()
        own_server.start()
        assert patient.result(PATIENCE)
        assert recorder.last.retries > 4


def test_a_forked_child_never_touches_its_parents_sockets(dsn: str, admin: connection) -> None:
    """The server hears nothing from the child on them, and the parent's transaction goes on."""
    with make(2, 3, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 2)
        held = pool.getconn()
        ask(held, "create temporary table of_the_parent ()")
        activity = "select array_agg((pid, state, query, state_change)::text) from pg_stat_activity where pid = any(%s)"
        before = ask(admin, activity, pids)

        def child() -> bool:
            mine = pid_of_a_checkout(pool)
            pool.putconn(held)
            pool.close(0)
            gc.collect()
            return mine in pids

        assert in_child(child) == "False"
        assert sorted(ask(admin, activity, pids)) == sorted(before)
        assert ask(held, "select to_regclass('of_the_parent')") == "of_the_parent"
        pool.putconn(held)
        assert sorted(fill(pool, 2)) == sorted(pids)


def test_a_demoted_primary_is_left_the_whole_generation_goes(own_server: PostgresServer) -> None:
    """The first write that is refused as read-only replaces every connection of the time before."""
    with make(3, 3, own_server.dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 3)
        operator = psycopg2.connect(own_server.dsn)
        operator.autocommit = True
        ask(operator, "alter system set default_transaction_read_only = on")
        ask(operator, "select pg_reload_conf()")
        operator.close()
        for conn in [pool.getconn() for _ in range(3)]:
            shown = "show transaction_read_only"
            assert wait_until(lambda conn=conn, shown=shown: conn.rollback() or ask(conn, shown) == "on")
            pool.putconn(conn)
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as conn:
            ask(conn, "create table written ()")
        assert pool.stats().discarded == {"read_only": 3}
        assert wait_until(lambda: pool.stats().idle == 3)
        assert not set(fill(pool, 3)) & set(pids)


@pytest.mark.parametrize("sqlstate", ["08006", "08P01", "57P01", "57P02", "57P03"])
def test_a_session_that_saw_08xxx_or_57p01_to_57p03_is_not_reused(dsn: str, sqlstate: str) -> None:
    """Though it still answers."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        pid = fill(pool, 1)[0]
        with pytest.raises(psycopg2.Error), pool.connection() as conn:
            ask(conn, f"do $$ begin raise exception 'over' using errcode = '{sqlstate}'; end $$")
        assert pool.stats().discarded == {"broken": 1}
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
            assert conn.info.transaction_status == IDLE
