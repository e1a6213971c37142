"""``with pool.connection()``: commit on a clean exit, rollback on an exception, given back in every case."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
import pytest
from psycopg2 import errors

from otel_pgpool import PoolError, PoolTimeout
from tests.support.database import IDLE, ask, kill
from tests.support.internals import core_of
from tests.support.pools import Recorder, fill, let_lie, make
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool


@pytest.fixture
def table(admin: connection) -> Iterator[str]:
    """Create a table with one unique number, which is checked at the commit."""
    ask(admin, "create table numbers (n int unique deferrable initially deferred)")
    yield "numbers"
    ask(admin, "drop table numbers")


def numbers(admin: connection) -> list[int]:
    with admin.cursor() as cur:
        cur.execute("select n from numbers order by n")
        return [n for (n,) in cur.fetchall()]


def assert_whole(pool: ConnectionPool) -> None:
    """Nothing is out, and the next borrower finds a connection without a transaction."""
    assert pool.stats().used == 0
    with pool.connection(PATIENCE) as conn:
        assert conn.info.transaction_status == IDLE
        assert ask(conn, "select 1") == 1


def test_clean_exit_commits(dsn: str, admin: connection, table: str) -> None:
    """What the block did is there for others, and the connection is lent again."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            ask(conn, "insert into numbers values (1)")
            assert numbers(admin) == []
        assert numbers(admin) == [1]
        assert recorder.outcomes == ["committed"]
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, psycopg2.DataError])
def test_exception_rolls_back(dsn: str, admin: connection, table: str, kind: type[BaseException]) -> None:
    """The caller's exception comes out, the very object, and nothing of the block remains."""
    recorder = Recorder()
    mine = kind("mine")
    with make(1, 1, dsn, observer=recorder) as pool:
        pid = fill(pool, 1)[0]
        with pytest.raises(kind) as caught, pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            ask(conn, "insert into numbers values (1)")
            raise mine
        assert caught.value is mine
        assert numbers(admin) == []
        assert recorder.outcomes[-1] == "rolled_back"
        assert recorder.last.error_type is None
        assert_whole(pool)
        assert fill(pool, 1) == [pid]


@pytest.mark.parametrize("dropped", [False, True])
def test_generator_left_in_the_middle(dsn: str, admin: connection, table: str, dropped: bool) -> None:
    """A generator that is closed, or dropped, in the middle of its block releases its connection and rolls back."""

    def rows() -> Iterator[int]:
        with pool.connection() as conn:
            ask(conn, "insert into numbers values (1)")
            yield 1

    with make(1, 1, dsn) as pool:
        generator = rows()
        assert next(generator) == 1
        assert pool.stats().used == 1
        if not dropped:
            generator.close()
        del generator
        assert wait_until(lambda: pool.stats().used == 0)
        assert numbers(admin) == []
        assert_whole(pool)


@pytest.mark.parametrize("leave", ["return", "break", "continue"])
def test_leaving_without_an_exception_commits(dsn: str, admin: connection, table: str, leave: str) -> None:
    """`return`, `break` and `continue` are clean exits."""

    def work() -> None:
        for _ in range(1):
            with pool.connection() as conn:
                ask(conn, "insert into numbers values (1)")
                if leave == "return":
                    return
                if leave == "break":
                    break
                continue

    with make(1, 1, dsn) as pool:
        work()
        assert numbers(admin) == [1]
        assert_whole(pool)


def test_failing_commit_raises(dsn: str, admin: connection, table: str) -> None:
    """A constraint that is checked at the commit: the block raises, and the connection goes on."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        pid = fill(pool, 1)[0]
        with pytest.raises(errors.UniqueViolation), pool.connection() as conn:
            ask(conn, "insert into numbers values (1), (1)")
        assert numbers(admin) == []
        assert recorder.outcomes[-1] == "rolled_back"
        assert recorder.last.error_type == "23505"
        assert_whole(pool)
        assert fill(pool, 1) == [pid]


def test_killed_before_the_commit_raises(dsn: str, admin: connection, table: str) -> None:
    """A connection that dies before its commit: the block raises, and its place is free again."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        with pytest.raises((psycopg2.OperationalError, psycopg2.InterfaceError)), pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
            ask(conn, "insert into numbers values (1)")
            kill(admin, [conn.info.backend_pid])
        assert numbers(admin) == []
        assert recorder.outcomes == ["discarded"]
        assert recorder.last.error_type is not None
        assert pool.stats().discarded == {"broken": 1}
        assert_whole(pool)


def test_killed_after_a_read_and_known_dead_raises(dsn: str, admin: connection, table: str) -> None:
    """Where psycopg2 knows already that the connection is closed, a clean exit must not pass for a commit."""
    with make(1, 1, dsn) as pool:
        with pytest.raises(psycopg2.Error), pool.connection() as conn:  # noqa: PT012 - the error is the block's own end
            ask(conn, "insert into numbers values (1)")
            kill(admin, [conn.info.backend_pid])
            with pytest.raises(psycopg2.Error):
                ask(conn, "select 1")
            assert conn.closed
        assert numbers(admin) == []
        assert_whole(pool)


class FailingRollback(psycopg2.extensions.connection):
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


@pytest.mark.parametrize("failure", [None, RuntimeError("r"), psycopg2.OperationalError("r")])
def test_callers_exception_wins_over_a_failing_rollback(
    dsn: str, admin: connection, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """The program sees its own exception, the very object, when the rollback raises and when the backend is gone."""
    monkeypatch.setattr(FailingRollback, "failure", failure)
    with make(1, 1, dsn, timeout=PATIENCE, connection_factory=failure and FailingRollback) as pool:
        for die in (False, True):
            mine = LookupError("mine")
            with pytest.raises(LookupError) as caught, pool.connection() as conn:  # noqa: PT012 - the block itself is the subject
                ask(conn, "select 1")
                if die:
                    kill(admin, [conn.info.backend_pid])
                raise mine
            assert caught.value is mine
            assert pool.stats().used == 0


class OddError(Exception):
    """Of a program that has status codes of its own."""

    pgcode = 404


def test_callers_exception_may_be_of_any_kind(dsn: str) -> None:
    """What looks like an SQLSTATE and is none does no harm."""
    with make(1, 1, dsn) as pool:
        pid = fill(pool, 1)[0]
        with pytest.raises(OddError), pool.connection() as conn:  # noqa: PT012 - a block needs a body
            ask(conn, "select 1")
            raise OddError
        assert fill(pool, 1) == [pid]


def test_clean_exit_of_a_failed_transaction(dsn: str, admin: connection, table: str) -> None:
    """As with psycopg2's own commit, it does not raise; it is told as what it is, a rollback."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        with pool.connection() as conn:
            ask(conn, "insert into numbers values (1)")
            with pytest.raises(errors.DivisionByZero):
                ask(conn, "select 1/0")
        assert numbers(admin) == []
        assert recorder.outcomes == ["rolled_back"]
        assert_whole(pool)


@pytest.mark.parametrize("raises", [False, True])
def test_autocommit_is_left_alone(dsn: str, admin: connection, table: str, raises: bool) -> None:
    """Each statement of an autocommit connection stands, whatever the block's end."""
    with make(1, 1, dsn) as pool:
        try:
            with pool.connection() as conn:
                conn.autocommit = True
                ask(conn, "insert into numbers values (1)")
                if raises:
                    raise ValueError  # noqa: TRY301 - the block itself is the subject
        except ValueError:
            assert raises
        assert numbers(admin) == [1]
        assert_whole(pool)


def test_autocommit_with_a_transaction_of_its_own(dsn: str, admin: connection, table: str) -> None:
    """BEGIN by hand: the pool does not commit it, and does not lend it on either."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        with pool.connection() as conn:
            conn.autocommit = True
            ask(conn, "begin")
            ask(conn, "insert into numbers values (1)")
            ask(conn, "commit")
            ask(conn, "begin")
            ask(conn, "insert into numbers values (2)")
        assert numbers(admin) == [1]
        assert recorder.outcomes == ["rolled_back"], "an open transaction was rolled back"
        assert_whole(pool)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_user_ends_the_transaction(dsn: str, admin: connection, table: str, end: str) -> None:
    """A program may commit or roll back inside the block."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            ask(conn, "insert into numbers values (1)")
            getattr(conn, end)()
            ask(conn, "insert into numbers values (2)")
        assert numbers(admin) == ([1, 2] if end == "commit" else [2])
        assert_whole(pool)


def test_connections_own_block_inside(dsn: str, admin: connection, table: str) -> None:
    """psycopg2's ``with conn`` inside the pool's block is a transaction of its own."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            with conn:
                ask(conn, "insert into numbers values (1)")
            assert numbers(admin) == [1]
            with pytest.raises(ValueError, match="undo"), conn:  # noqa: PT012 - the block itself is the subject
                ask(conn, "insert into numbers values (2)")
                raise ValueError("undo")
        assert numbers(admin) == [1]
        assert_whole(pool)


def test_nested_blocks_have_two_connections(dsn: str, admin: connection, table: str) -> None:
    """A second block inside the first gives a second connection, with a transaction of its own."""
    with make(1, 2, dsn) as pool:
        with pytest.raises(ValueError, match="outer"), pool.connection() as outer:  # noqa: PT012 - the block itself is the subject
            ask(outer, "insert into numbers values (1)")
            with pool.connection() as inner:
                assert inner is not outer
                ask(inner, "insert into numbers values (2)")
            raise ValueError("outer")
        assert numbers(admin) == [2]
        assert_whole(pool)


def test_used_twice_at_once(dsn: str, admin: connection, table: str) -> None:
    """One object entered inside itself is a clear error, and the outer block is unharmed."""
    with make(1, 2, dsn) as pool:
        block = pool.connection()
        with block as conn:
            ask(conn, "insert into numbers values (1)")
            with pytest.raises(PoolError, match=r"in use.*pool\.connection\(\) again"), block:
                pytest.fail("entered twice")
            assert pool.stats().used == 1
        assert numbers(admin) == [1]
        assert_whole(pool)


def test_used_twice_at_once_by_threads_that_wait(dsn: str) -> None:
    """The same while the first user still waits for its connection: no connection is lost to the second."""
    with make(1, 1, dsn) as pool:
        held = pool.getconn()
        block = pool.connection(timeout=2 * PATIENCE)

        def use() -> None:
            with block as conn:
                ask(conn, "select 1")

        first = in_thread(use)
        assert wait_until(lambda: pool.stats().waiting == 1)
        second = in_thread(use)
        try:
            with pytest.raises(PoolError, match="in use"):
                second.result(PATIENCE)
        finally:
            pool.putconn(held)
        first.result(PATIENCE)
        assert_whole(pool)


def test_used_again(dsn: str) -> None:
    """The object may be used again once its block has ended, or could not begin."""
    with make(1, 1, dsn) as pool:
        block = pool.connection(timeout=0)
        for _ in range(2):
            with block as conn:
                assert ask(conn, "select 1") == 1
        held = pool.getconn()
        with pytest.raises(PoolTimeout), block:
            pytest.fail("none was free")
        pool.putconn(held)
        with block as conn:
            assert ask(conn, "select 1") == 1
        assert_whole(pool)


def test_left_without_being_entered(dsn: str) -> None:
    """Leaving what was never entered is a clear error."""
    with make(1, 1, dsn) as pool, pytest.raises(PoolError, match="not in use"):
        pool.connection().__exit__(None, None, None)


@pytest.mark.parametrize("close", [False, True])
def test_released_by_hand_inside_the_block(dsn: str, admin: connection, table: str, close: bool) -> None:
    """`putconn` refuses and says what to do, also to another thread; the block keeps its connection and commits."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            ask(conn, "insert into numbers values (1)")
            with pytest.raises(PoolError, match=r"connection\(\)` block.* leave out putconn\(\).*conn\.close"):
                pool.putconn(conn, close=close)
            with pytest.raises(PoolError, match="at its end"):
                in_thread(pool.putconn, conn).result(PATIENCE)
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0)
            ask(conn, "insert into numbers values (2)")
        assert numbers(admin) == [1, 2]
        assert_whole(pool)


def test_closed_inside_the_block(dsn: str) -> None:
    """What the refusal of `putconn` recommends: the block discards the connection, and does not raise."""
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            conn.close()
        assert pool.stats().discarded == {"returned_closed": 1}
        assert_whole(pool)


def test_timeout_of_the_block(dsn: str) -> None:
    """The block's own timeout stands instead of the pool's."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        began = time.monotonic()
        with pytest.raises(PoolTimeout), pool.connection(timeout=0.1):
            pytest.fail("none was free")
        assert 0.1 <= time.monotonic() - began < PATIENCE
        pool.putconn(held)


@pytest.mark.parametrize("timeout", [-1, "5", float("nan"), True])
def test_bad_timeout(dsn: str, timeout: object) -> None:
    """A bad timeout is refused where it is written, before anything is lent."""
    with make(0, 1, dsn) as pool:
        with pytest.raises(ValueError, match="timeout must be a number of seconds"):
            pool.connection(timeout)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout must be a number of seconds"):
            pool.getconn(timeout=timeout)  # type: ignore[arg-type]
        assert pool.stats().used == 0


def test_clean_exit_waits_for_another_threads_query(dsn: str, admin: connection) -> None:
    """psycopg2 lets one statement at a time through: the commit comes after the query that runs."""

    def let_it_end() -> None:
        time.sleep(0.3)  # so long the commit waits
        ask(admin, "select pg_advisory_unlock(1)")

    with make(1, 1, dsn) as pool:
        ask(admin, "select pg_advisory_lock(1)")
        with pool.connection() as conn:
            ask(conn, "select 1")
            query = in_thread(ask, conn, "select pg_advisory_lock_shared(1)")
            assert wait_until(lambda: conn.info.transaction_status == 1)
            ending = in_thread(let_it_end)
        assert query.result(PATIENCE) == ""
        ending.result(PATIENCE)
        assert_whole(pool)


def test_many_threads(dsn: str, admin: connection, table: str) -> None:
    """Every clean block of many threads is committed, every failed one is not, and nothing is lost."""

    def work(start: int) -> None:
        for n in range(start, start + 20):
            try:
                with pool.connection() as conn:
                    ask(conn, "insert into numbers values (%s)", n)
                    if n % 2:
                        raise ValueError  # noqa: TRY301 - the block itself is the subject
            except ValueError:
                assert n % 2

    with make(1, 3, dsn) as pool:
        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 160, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert numbers(admin) == list(range(0, 160, 2))
        stats = pool.stats()
        assert (stats.used, stats.waiting) == (0, 0)
        assert sum(stats.checkouts.values()) == 160
        assert stats.size <= 3


def test_a_context_is_free_after_an_interrupt_at_its_start(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it hits, the context can be entered again."""
    with make(1, 1, dsn) as pool:
        context = pool.connection()
        with monkeypatch.context() as patch:
            patch.setattr("otel_pgpool.pool.context.monotonic", interrupt)
            with pytest.raises(KeyboardInterrupt), context:
                pass
        with context as conn:
            assert ask(conn, "select 1") == 1


def interrupt() -> float:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["try_acquire_idle", "begin_check"])
def test_an_interrupt_while_the_maintenance_is_parked(dsn: str, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A slot that has no owner afterwards is collected, although no checkout follows that would wake the thread."""
    with make(1, 1, dsn) as pool:
        core = core_of(pool)
        fill(pool, 1)
        assert wait_until(lambda: core.parked)

        kept: list[Any] = []  # as a traceback may keep the connection, whose finalizer would wake the thread

        def orphan(*_args: Any, **_kwargs: Any) -> Any:
            slot = core.idle.pop()
            kept.append(slot.conn)
            slot.conn = None
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(core), step, orphan)
            with pytest.raises(KeyboardInterrupt):
                {"begin_check": pool.check, "try_acquire_idle": pool.getconn}[step]()
        assert wait_until(lambda: pool.stats().discarded == {"reclaimed": 1})


class Falsy(psycopg2.extensions.connection):
    """A connection class of an application, which has a length."""

    def __len__(self) -> int:
        return 0


def test_a_connection_without_a_length(dsn: str) -> None:
    """A connection that counts as false is a connection, also after a check and after a wait."""
    with make(1, 1, dsn, connection_factory=Falsy, timeout=PATIENCE) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            waiting = in_thread(lambda: ask_in_a_block(pool))
            assert wait_until(lambda: pool.stats().waiting == 1)
        assert waiting.result(PATIENCE) == pid
        let_lie(pool)
        assert ask_in_a_block(pool) == pid


def ask_in_a_block(pool: ConnectionPool) -> int:
    with pool.connection() as conn:
        return int(ask(conn, "select pg_backend_pid()"))
