"""Connections that die, freeze, age or lose their primary: the application is not to notice."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import errors

from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.driver.deadline import IO_DEADLINE, NoAnswer
from otel_pgpool.driver.session import is_readable
from tests.support.database import IDLE, ask, kill, lives, wait_until_readable
from tests.support.internals import core_of, start_pass
from tests.support.pools import Recorder, fill, let_lie, make, pid_of_a_checkout
from tests.support.processes import frozen
from tests.support.servers import ClonedServer
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.telemetry import Signals


# Death


@pytest.mark.parametrize("use", ["block", "getconn"])
def test_all_killed_and_no_error(dsn: str, admin: connection, use: str) -> None:
    """Eight connections killed while idle: eight callers, no error, and nothing of the dead is left."""
    recorder = Recorder()
    with make(8, 8, dsn, observer=recorder, timeout=PATIENCE) as pool:
        pids = fill(pool, 8)
        let_lie(pool)
        kill(admin, pids)
        for _ in range(8):
            if use == "block":
                assert pid_of_a_checkout(pool) not in pids
            else:
                conn = pool.getconn()
                assert ask(conn, "select 1") == 1
                pool.putconn(conn)
        assert pool.stats().discarded == {"broken": 8}
        assert recorder.calls("failed") == []
        assert recorder.calls("acquired")[8][0].retries == 1, "a dead connection discarded for it"


def test_all_killed_and_many_callers(dsn: str, admin: connection) -> None:
    """The same with callers at once."""
    with make(4, 4, dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 4)
        let_lie(pool)
        kill(admin, pids)
        callers = [in_thread(pid_of_a_checkout, pool) for _ in range(12)]
        assert not {future.result(PATIENCE) for future in callers} & set(pids)
        assert pool.stats().discarded == {"broken": 4}


def test_the_healthy_stay(dsn: str, admin: connection) -> None:
    """The dead go together, at the first dead one met; who lives stays."""
    recorder = Recorder()
    with make(6, 6, dsn, observer=recorder) as pool:
        pids = fill(pool, 6)
        dead, healthy = pids[:1] + pids[3:], pids[1:3]
        let_lie(pool)
        kill(admin, dead)
        pid_of_a_checkout(pool)
        reports = [(len(slots), reason) for slots, reason, *_ in recorder.calls("discarded")]
        assert reports == [(4, "broken")]
        assert wait_until(lambda: pool.stats().idle == 6)
        assert set(healthy) <= set(fill(pool, 6))


def test_dead_and_healthy_under_many_callers(dsn: str, admin: connection) -> None:
    """Callers that find dead connections at the same moment: no error, no place lost, and the healthy stay."""
    with make(12, 12, dsn, timeout=PATIENCE) as pool:
        for _ in range(4):
            pids = fill(pool, 12)
            let_lie(pool)
            kill(admin, pids[::2])
            callers = [in_thread(pid_of_a_checkout, pool) for _ in range(12)]
            assert not {caller.result(PATIENCE) for caller in callers} & set(pids[::2])
            assert wait_until(lambda: pool.stats().idle == 12)
            assert set(pids[1::2]) <= set(fill(pool, 12))
        assert pool.stats().discarded == {"broken": 24}


def test_pending_notice_is_no_death(dsn: str, admin: connection) -> None:
    """A NOTIFY makes the socket readable as death does: the connection is asked, and stays."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            ask(conn, "listen news")
        ask(admin, "notify news")
        assert wait_until(lambda: is_readable(conn))
        let_lie(pool)
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert [notice.channel for notice in conn.notifies] == ["news"]
        assert pool.stats().discarded == {}


def test_notified_survives_the_sweep_of_the_dead(dsn: str, admin: connection) -> None:
    """One dead and one notified: only the dead goes."""
    with make(2, 2, dsn) as pool:
        first, second = pool.getconn(), pool.getconn()
        listener, dead = first.info.backend_pid, second.info.backend_pid
        ask(first, "listen news")
        first.commit()
        pool.putconn(first)
        pool.putconn(second)
        ask(admin, "notify news")
        wait_until_readable(first)
        kill(admin, [dead])
        let_lie(pool)
        assert pid_of_a_checkout(pool) != dead
        assert pool.stats().discarded == {"broken": 1}
        assert listener in fill(pool, 2)


def test_healthy_idle_is_lent_without_a_round_trip(dsn: str, admin: connection) -> None:
    """The look at an idle connection sends nothing: the server does not see it."""
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        before = ask(admin, "select state_change from pg_stat_activity where pid = %s", pid)
        for _ in range(3):
            let_lie(pool)
            with pool.connection():
                pass
        assert ask(admin, "select state_change from pg_stat_activity where pid = %s", pid) == before


def test_long_idle_is_asked(dsn: str, admin: connection) -> None:
    """After 30 s of silence the server is asked, which it sees."""
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, 31)
        with pool.connection() as conn:
            assert conn.info.transaction_status == IDLE
            assert not conn.autocommit
        assert ask(admin, "select query from pg_stat_activity where pid = %s", pid).lower() == "select 1"


# Frozen


def test_frozen_backend_is_bounded_by_the_callers_timeout(dsn: str) -> None:
    """A backend that does not answer after a long idleness costs the caller its own timeout, not more."""
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, 60)
        with frozen(pid):
            began = time.monotonic()
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(timeout=0.4)
            assert 0.3 < time.monotonic() - began < IO_DEADLINE
            assert caught.value.retries == 1
            assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
            assert pid_of_a_checkout(pool, PATIENCE) != pid
        assert pool.stats().discarded == {"broken": 1}


@pytest.mark.parametrize("check", ["auto", lambda conn: ask(conn, "select 1")], ids=["auto", "program"])
def test_a_check_that_was_cut_says_so(dsn: str, signals: Signals, check: Any) -> None:
    """The server has closed nothing, so neither the record of the lost connection nor the checkout says that."""
    with ConnectionPool(1, 1, dsn, check=check) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, 60)
        with frozen(pid), pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0)
        assert "no answer within 0." in str(caught.value)
        assert type(caught.value.__cause__) is NoAnswer
    [record] = signals.logged("connection_lost")
    assert record.attributes["error.type"] == "NoAnswer"
    assert "broken (no answer within 0." in record.record.getMessage()


def test_a_reset_that_was_cut_says_so(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the rollback of a release."""
    monkeypatch.setattr("otel_pgpool.driver.deadline.Deadline.__init__.__defaults__", (0.2,))
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        conn = pool.getconn()
        pid = ask(conn, "select pg_backend_pid()")
        with frozen(pid):
            pool.putconn(conn)
        assert type(recorder.calls("discarded")[0][2]) is NoAnswer


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_many_frozen_backends_are_bounded_too(dsn: str, timeout: float) -> None:
    """A whole server that does not answer costs the caller its timeout, not a share for each connection."""
    with make(12, 12, dsn) as pool:
        pids = fill(pool, 12)
        let_lie(pool, 60)
        with frozen(*pids):
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=timeout)
            assert time.monotonic() - began < IO_DEADLINE
            assert pool.stats().discarded == {"broken": 1}, "the others were not waited for"
        assert pid_of_a_checkout(pool, PATIENCE)


def test_many_that_were_told_something_and_froze(dsn: str, admin: connection) -> None:
    """Looking at each whose socket has something to read is over a moment after the caller's timeout."""

    def listen(conn: connection) -> None:
        ask(conn, "listen news")

    with make(100, 100, dsn, configure=listen) as pool:
        pids = fill(pool, 100)
        let_lie(pool)
        ask(admin, "notify news")
        for slot in list(core_of(pool).idle):
            wait_until_readable(slot.conn)
        with frozen(*pids):
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(timeout=0.3)
            assert caught.value.waited < 1.3, "20 ms for each of them would be 2 s"
        assert pid_of_a_checkout(pool, PATIENCE)


def test_frozen_while_they_are_configured(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that does not answer `configure` holds its place for as long as any I/O may take, and not for ever."""
    monkeypatch.setattr("otel_pgpool.driver.deadline.Deadline.__init__.__defaults__", (0.5,))
    first = iter([True])

    def configure(conn: connection) -> None:
        if next(first, False):
            froze.enter_context(frozen(conn.info.backend_pid))
        ask(conn, "set work_mem = '5MB'")

    with ExitStack() as froze, make(0, 1, dsn, configure=configure) as pool:
        assert pid_of_a_checkout(pool, PATIENCE)


def test_frozen_backend_is_left_for_a_new_one(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With time enough the caller gets another connection after the ping's time, which is 5 s outside of this test."""
    monkeypatch.setattr("otel_pgpool.pool.liveness.IO_DEADLINE", 0.5)
    with make(1, 2, dsn) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, 60)
        with frozen(pid):
            began = time.monotonic()
            assert pid_of_a_checkout(pool, PATIENCE) != pid
            assert 0.5 <= time.monotonic() - began < IO_DEADLINE


# check


def test_check_is_asked_of_idle_ones_only(dsn: str) -> None:
    """At each checkout of one idle over 50 ms; a hot one passes, and a transaction it leaves is ended."""
    asked: list[int] = []

    def check(conn: connection) -> None:
        asked.append(ask(conn, "select pg_backend_pid()"))

    with make(1, 1, dsn, check=check) as pool:
        pid = fill(pool, 1)[0]

        def is_lent_hot() -> bool:
            asked.clear()
            with pool.connection():
                pass
            with pool.connection():
                pass
            return len(asked) <= 1

        assert wait_until(is_lent_hot), "one used within the last 50 ms is not asked"
        asked.clear()
        let_lie(pool)
        with pool.connection() as conn:
            assert conn.info.transaction_status == IDLE
        assert asked == [pid]


def test_check_that_raises(dsn: str) -> None:
    """The connection goes as `check_failed`, and the caller gets another."""
    bad: set[int] = set()

    def check(conn: connection) -> None:
        if conn.info.backend_pid in bad:
            raise ValueError("bad")

    with make(2, 2, dsn, check=check, timeout=PATIENCE) as pool:
        bad.update(fill(pool, 2))
        let_lie(pool)
        assert pid_of_a_checkout(pool) not in bad
        assert wait_until(lambda: sum(pool.stats().discarded.values()) >= 1)
        assert set(pool.stats().discarded) <= {"check_failed", "broken"}
        assert pool.stats().discarded["check_failed"] >= 1


def test_check_none_lends_the_dead(dsn: str, admin: connection) -> None:
    """Switched off, a dead connection reaches the caller: nothing looks."""
    with make(1, 1, dsn, check=None) as pool:
        pid = fill(pool, 1)[0]
        let_lie(pool, 60)
        kill(admin, [pid])
        with pytest.raises(psycopg2.OperationalError), pool.connection() as conn:
            ask(conn, "select 1")
        assert pid_of_a_checkout(pool) != pid


def test_pool_check_discards_the_dead(dsn: str, admin: connection) -> None:
    """`check()` asks through each idle connection; the dead go, the rest stays, the minimum is refilled."""
    with make(4, 4, dsn) as pool:
        pids = fill(pool, 4)
        kill(admin, pids[:2])
        pool.check()
        assert sum(pool.stats().discarded.values()) == 2
        assert wait_until(lambda: pool.stats().idle == 4)
        assert set(pids[2:]) <= set(fill(pool, 4))


def test_pool_check_leaves_the_pool_in_service(dsn: str) -> None:
    """While `check()` asks a frozen backend, others are lent."""
    with make(2, 2, dsn) as pool:
        pids = fill(pool, 2)
        with frozen(pids[0]):
            checking = in_thread(pool.check)
            assert wait_until(lambda: pool.stats().idle < 2)
            assert pid_of_a_checkout(pool, 4) == pids[1]
            checking.result(PATIENCE)


# Age


def test_lifetime_on_return(dsn: str) -> None:
    """One that grew too old while it was lent is closed when it comes back."""
    with make(1, 1, dsn, max_lifetime=0.2) as pool:
        conn = pool.getconn()
        time.sleep(0.25)
        pool.putconn(conn)
        assert conn.closed
        assert pool.stats().discarded["expired"] >= 1


def test_lifetime_while_idle(dsn: str, admin: connection) -> None:
    """One that grows too old while idle is replaced without a checkout."""
    pids: list[int] = []
    with make(1, 1, dsn, max_lifetime=0.4, configure=lambda conn: pids.append(conn.info.backend_pid)) as pool:
        assert wait_until(lambda: pool.stats().discarded.get("expired", 0) >= 1)
        assert wait_until(lambda: not lives(admin, pids[0]))
        assert wait_until(lambda: pool.stats().created >= 2)


def test_lifetime_at_checkout(dsn: str) -> None:
    """One past its lifetime is not lent, even if nobody has come to retire it; that is no failed attempt."""
    recorder = Recorder()
    with make(2, 2, dsn, observer=recorder) as pool:
        pids = fill(pool, 2)
        let_lie(pool)
        for slot in core_of(pool).idle:
            slot.expires = slot.review_at = time.monotonic() - 1
        assert pid_of_a_checkout(pool) not in pids
        assert recorder.calls("acquired")[-1][0].retries == 0
        assert wait_until(lambda: pool.stats().discarded["expired"] == 2)  # the maintenance may have been faster


def test_lifetime_is_jittered(dsn: str) -> None:
    """Connections of one age do not go together: each lifetime is up to 10 % shorter, never longer."""
    with make(8, 8, dsn, max_lifetime=1000) as pool:
        left = [slot.expires - time.monotonic() for slot in core_of(pool).idle]
        assert all(890 < seconds <= 1000 for seconds in left)
        assert max(left) - min(left) > 1


def test_idle_retirement(dsn: str) -> None:
    """Above the minimum, idle connections are handed out again until `max_idle`, and closed then; the minimum stays."""
    with make(1, 4, dsn, max_idle=60) as pool:
        kept = {*fill(pool, 4)}
        assert {*fill(pool, 4)} == kept
        assert pool.stats().created == 4
        let_lie(pool, 60)
        start_pass(pool)
        assert wait_until(lambda: pool.stats().discarded == {"idle": 3})
        start_pass(pool)
        assert pid_of_a_checkout(pool) in kept
        assert (pool.stats().size, pool.stats().discarded) == (1, {"idle": 3})


# Failover


def demote(server: PostgresServer, pool: ConnectionPool) -> None:
    """As after a switchover: sessions live on, and writes fail with 25006."""
    conn = psycopg2.connect(server.dsn)
    conn.autocommit = True
    ask(conn, "alter system set default_transaction_read_only = on")
    ask(conn, "select pg_reload_conf()")
    conn.close()
    sessions = [pool.getconn() for _ in range(pool.stats().idle)]
    for session in sessions:
        assert wait_until(lambda session=session: _is_read_only(session))
        pool.putconn(session)


def write(conn: connection) -> None:
    ask(conn, "create temporary table if not exists scratch (n int)")
    ask(conn, "create table written (n int)")


def test_demoted_primary_is_left(own_server: PostgresServer, signals: Signals) -> None:
    """The first 25006 replaces every connection: the idle at once, the lent when they come back."""
    with make(3, 4, own_server.dsn, observer=signals.telemetry(), name="shop") as pool:
        pids = set(fill(pool, 3))
        demote(own_server, pool)
        held = pool.getconn()
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as conn:
            write(conn)
        assert pool.stats().discarded == {"read_only": 2}
        pool.putconn(held)
        assert held.closed
        assert pool.stats().discarded["read_only"] == 3
        assert wait_until(lambda: pool.stats().idle >= 3)
        assert not set(fill(pool, 3)) & pids


def _is_read_only(conn: connection) -> bool:
    conn.rollback()
    return ask(conn, "show transaction_read_only") == "on"


READ_ONLY: dict[str, Callable[[connection], object]] = {
    "attribute": lambda conn: conn.set_session(readonly=True),
    "attribute in autocommit": lambda conn: conn.set_session(readonly=True, autocommit=True),
    "transaction": lambda conn: ask(conn, "set transaction read only"),
    "session": lambda conn: (ask(conn, READ_ONLY_SESSION), conn.commit()),
    "session in autocommit": lambda conn: in_autocommit(conn, READ_ONLY_SESSION),
    "setting in autocommit": lambda conn: in_autocommit(conn, "set default_transaction_read_only = on"),
    "begin": lambda conn: in_autocommit(conn, "begin read only"),
}
READ_ONLY_SESSION = "set session characteristics as transaction read only"


def in_autocommit(conn: connection, sql: str) -> None:
    conn.autocommit = True
    ask(conn, sql)


@pytest.mark.parametrize("how", READ_ONLY)
def test_read_only_as_asked_is_no_failover(dsn: str, how: str) -> None:
    """A borrower that asked for read-only itself gets its error, and no other connection goes."""
    with make(2, 2, dsn) as pool:
        fill(pool, 2)
        with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            READ_ONLY[how](conn)
            write(conn)
        assert "read_only" not in pool.stats().discarded
        assert pool.stats().idle == 2


def test_read_only_counts_in_blocks_alone(own_server: PostgresServer) -> None:
    """With getconn the pool does not see the error, and does nothing."""
    with make(1, 1, own_server.dsn) as pool:
        demote(own_server, pool)
        conn = pool.getconn()
        with pytest.raises(errors.ReadOnlySqlTransaction):
            write(conn)
        pool.putconn(conn)
        assert pool.stats().discarded == {}


def test_real_standby(tmp_path: Path) -> None:
    """On a standby a write is 25006 without any setting: each such block leaves the generation."""
    with ClonedServer(settings={"wal_level": "replica", "max_wal_senders": 2}) as server:
        server.stop()
        signal_file = Path(server.socket_dir, "data", "standby.signal")
        signal_file.touch()
        owner = signal_file.parent.stat()
        os.chown(signal_file, owner.st_uid, owner.st_gid)
        server.start()
        with make(2, 2, server.dsn) as pool:
            pids = set(fill(pool, 2))
            with pytest.raises(errors.ReadOnlySqlTransaction), pool.connection() as conn:
                ask(conn, "create table written ()")
            assert pool.stats().discarded == {"read_only": 2}
            assert wait_until(lambda: pool.stats().idle == 2)
            assert not set(fill(pool, 2)) & pids


# Sessions that are over


@pytest.mark.parametrize("sqlstate", ["08000", "08003", "08006", "08P01", "57P01", "57P02", "57P03"])
def test_ended_session_is_not_reused(dsn: str, sqlstate: str) -> None:
    """The server said that the connection is at its end, though it still answers."""
    with make(2, 2, dsn) as pool:
        pids = set(fill(pool, 2))
        with pytest.raises(psycopg2.Error) as caught, pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            pid = conn.info.backend_pid
            ask(conn, f"do $$ begin raise exception 'over' using errcode = '{sqlstate}'; end $$")
        assert caught.value.pgcode == sqlstate
        assert pool.stats().discarded == {"broken": 1}
        assert wait_until(lambda: pool.stats().idle == 2)
        assert pid not in fill(pool, 2)
        assert pids & set(fill(pool, 2)), "the others stay"


@pytest.mark.parametrize("sqlstate", ["40001", "57014", "53300", "23505"])
def test_other_errors_keep_the_connection(dsn: str, sqlstate: str) -> None:
    """Errors of the work say nothing about the connection."""
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        with pytest.raises(psycopg2.Error), pool.connection() as conn:
            ask(conn, f"do $$ begin raise exception 'work' using errcode = '{sqlstate}'; end $$")
        assert pool.stats().discarded == {}
        assert fill(pool, 1) == [pid]


def test_restarted_server(own_server: PostgresServer) -> None:
    """After a restart the next callers see no error."""
    with make(3, 3, own_server.dsn, timeout=PATIENCE) as pool:
        pids = fill(pool, 3)
        own_server.restart()
        let_lie(pool)
        callers: list[Any] = [in_thread(pid_of_a_checkout, pool) for _ in range(6)]
        assert all(future.result(PATIENCE) for future in callers)
        assert pool.stats().discarded == {"broken": len(pids)}
