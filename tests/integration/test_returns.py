"""A connection comes back in whatever state: the next borrower never sees it, and the counts stay right."""

from __future__ import annotations

import gc
import io
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import extensions
from psycopg2.extras import DictCursor

from otel_pgpool import PoolError, reset_session
from otel_pgpool.telemetry import Telemetry
from tests.support.database import IDLE, ask, kill, lives
from tests.support.pools import Recorder, fill, make, pid_of_a_checkout
from tests.support.processes import frozen
from tests.support.servers import ClonedServer
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool

ACTIVE = extensions.TRANSACTION_STATUS_ACTIVE


class Stop(Exception):  # noqa: N818 - no error, a way out of a block
    pass


def give_back(pool: ConnectionPool, dirty: Callable[[connection], object], how: str) -> int:
    """Borrow, make dirty, return; the backend that it was."""
    if how == "putconn":
        conn = pool.getconn()
        dirty(conn)
        pid = conn.get_backend_pid() if not conn.closed else 0
        pool.putconn(conn)
        return pid
    try:
        with pool.connection() as conn:
            dirty(conn)
            pid = conn.get_backend_pid() if not conn.closed else 0
            if how == "exception":
                raise Stop  # noqa: TRY301 - the block itself is the subject
    except Stop:
        pass
    return pid


def in_error(conn: connection) -> None:
    with pytest.raises(psycopg2.Error):
        ask(conn, "select 1/0")


def raw_commit(conn: connection) -> None:
    ask(conn, "select 1")
    ask(conn, "commit")


def raw_begin(conn: connection) -> None:
    ask(conn, "select 1")
    ask(conn, "commit")
    ask(conn, "begin")


def raw_rollback_of_an_error(conn: connection) -> None:
    in_error(conn)
    ask(conn, "rollback")


def begin_in_autocommit(conn: connection) -> None:
    conn.autocommit = True
    ask(conn, "begin")


def error_in_autocommit(conn: connection) -> None:
    begin_in_autocommit(conn)
    in_error(conn)


def named_cursor_left_open(conn: connection) -> None:
    cur = conn.cursor("rows")
    cur.execute("select generate_series(1, 100000)")
    cur.fetchone()


def large_object_left_open(conn: connection) -> None:
    conn.lobject(0, "w").write(b"abc")


USABLE: dict[str, Callable[[connection], object]] = {
    "idle": lambda conn: None,
    "transaction": lambda conn: ask(conn, "select 1"),
    "begin": lambda conn: ask(conn, "begin"),
    "cursor": lambda conn: conn.cursor(),
    "savepoint": lambda conn: ask(conn, "savepoint here"),
    "error": in_error,
    "commit": raw_commit,
    "begin_after_commit": raw_begin,
    "rollback": raw_rollback_of_an_error,
    "autocommit_begin": begin_in_autocommit,
    "autocommit_error": error_in_autocommit,
    "named_cursor": named_cursor_left_open,
    "large_object": large_object_left_open,
}


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
@pytest.mark.parametrize("dirty", USABLE.values(), ids=USABLE)
def test_state_that_can_be_tidied(dsn: str, dirty: Callable[[connection], object], how: str) -> None:
    """Idle, in a transaction, in a failed one, ended or begun behind psycopg2's back: kept, and lent clean."""
    with make(1, 1, dsn, timeout=5) as pool:
        pid = give_back(pool, dirty, how)
        assert pool.stats().used == 0
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert conn.info.transaction_status == IDLE
            assert conn.status == extensions.STATUS_READY
            assert not conn.autocommit
            assert ask(conn, "select 1") == 1
        assert pool.stats().discarded == {}


def query_of_another_thread(conn: connection) -> None:
    ask(conn, "begin")  # psycopg2's own would look active for a moment, before the query does
    query = in_thread(ask, conn, "select pg_sleep(60)")
    assert wait_until(lambda: conn.info.transaction_status == ACTIVE)
    queries.append(query)


def copy_without_a_file(conn: connection) -> None:
    with pytest.raises(psycopg2.ProgrammingError):
        ask(conn, "copy (select 1) to stdout")


def copy_in_without_a_file(conn: connection) -> None:
    ask(conn, "create temporary table copied (n int)")
    with pytest.raises(psycopg2.ProgrammingError):
        ask(conn, "copy copied from stdin")


queries: list[Any] = []


@pytest.fixture
def ended_queries() -> Iterator[None]:
    """Expect the error of a query that ran in another thread when its connection was returned."""
    queries.clear()
    yield
    for query in queries:
        with pytest.raises(psycopg2.Error):
            query.result(PATIENCE)


@pytest.mark.parametrize("how", ["putconn", "exception"])
@pytest.mark.parametrize("busy", [query_of_another_thread, copy_without_a_file, copy_in_without_a_file])
def test_busy_connection_is_cut_loose(
    dsn: str, admin: connection, ended_queries: None, busy: Callable[[connection], None], how: str
) -> None:
    """In the middle of a query or of a COPY nothing can be rolled back: it is discarded, at once."""
    recorder = Recorder()
    with make(1, 1, dsn, timeout=5, observer=recorder) as pool:
        began = time.monotonic()
        pid = give_back(pool, busy, how)
        assert time.monotonic() - began < 5
        assert recorder.outcomes == ["discarded"]
        assert pool.stats().discarded == {"broken": 1}
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
            assert ask(conn, "select 1") == 1


@pytest.mark.parametrize("how", ["putconn", "exception"])
def test_copy_held_up_by_its_file(dsn: str, how: str) -> None:
    """A COPY of another thread that waits for its own file is cut loose, too."""
    reading, go_on = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            reading.set()
            assert go_on.wait(PATIENCE)
            return super().read(size)

    def copy(conn: connection) -> None:
        ask(conn, "create temporary table copied (n int)")
        cur = conn.cursor()
        copies.append(in_thread(cur.copy_expert, "copy copied from stdin", Slow("1\n")))
        assert reading.wait(PATIENCE)

    copies: list[Any] = []
    with make(1, 1, dsn, timeout=5) as pool:
        returned = in_thread(give_back, pool, copy, how)
        assert reading.wait(PATIENCE)
        try:
            returned.result(8)
        finally:
            go_on.set()
        with pytest.raises(psycopg2.Error):
            copies[0].result(PATIENCE)
        assert pool.stats().used == 0
        assert pool.stats().discarded == {"broken": 1}
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


@pytest.mark.parametrize("how", ["putconn", "exception"])
@pytest.mark.parametrize("known", [False, True])
def test_dead_connection(dsn: str, admin: connection, how: str, known: bool) -> None:
    """Killed while lent, whether psycopg2 has noticed or not: discarded as broken, without an error."""

    def dies(conn: connection) -> None:
        ask(conn, "select 1")
        kill(admin, [conn.info.backend_pid])
        if known:
            with pytest.raises(psycopg2.Error):
                ask(conn, "select 1")

    with make(1, 1, dsn, timeout=5) as pool:
        give_back(pool, dies, how)
        assert pool.stats().discarded == {"broken": 1}
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
def test_closed_connection(dsn: str, how: str) -> None:
    """Closed by the program: replaced."""
    with make(1, 1, dsn, timeout=5) as pool:
        give_back(pool, lambda conn: conn.close(), how)
        assert pool.stats().discarded == {"returned_closed": 1}
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


def test_putconn_close_is_counted(dsn: str, admin: connection) -> None:
    """`putconn(close=True)` ends the backend, and says why the connection went."""
    recorder = Recorder()
    with make(1, 1, dsn, observer=recorder) as pool:
        conn = pool.getconn()
        pid = conn.info.backend_pid
        ask(conn, "select 1")
        pool.putconn(conn, close=True)
        assert wait_until(lambda: not lives(admin, pid))
        assert pool.stats().discarded == {"returned_closed": 1}
        assert recorder.outcomes == ["discarded"]


@pytest.mark.parametrize("how", ["putconn", "exception"])
def test_prepared_two_phase_transaction(how: str) -> None:
    """A transaction prepared for two-phase commit stays prepared: the pool neither ends it nor lends its session."""
    with ClonedServer(settings={"max_prepared_transactions": 4}) as server:

        def prepare(conn: connection) -> None:
            conn.tpc_begin(conn.xid(1, "order", "shop"))
            ask(conn, "select 1")
            conn.tpc_prepare()

        def begin(conn: connection) -> None:
            conn.tpc_begin(conn.xid(1, "open", "shop"))
            ask(conn, "select 1")

        with make(1, 1, server.dsn, timeout=5) as pool:
            for dirty in (prepare, begin):
                give_back(pool, dirty, how)
                assert pool.stats().used == 0
                with pool.connection() as conn:
                    assert conn.status == extensions.STATUS_READY
                    assert ask(conn, "select count(*) from pg_prepared_xacts") == 1


# Settings


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("autocommit", True),
        ("isolation_level", extensions.ISOLATION_LEVEL_SERIALIZABLE),
        ("readonly", True),
        ("deferrable", True),
    ],
)
def test_settings_are_restored(dsn: str, how: str, setting: str, value: object) -> None:
    """What a borrower set on the connection is as psycopg2 made it for the next."""
    with make(1, 1, dsn, timeout=5) as pool:
        with pool.connection() as conn:
            before = getattr(conn, setting)
            assert before != value

        def change(conn: connection) -> None:
            setattr(conn, setting, value)
            ask(conn, "select 1")

        pid = give_back(pool, change, how)
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert getattr(conn, setting) == before
            ask(conn, "create temporary table writable ()")


def test_all_settings_at_once(dsn: str) -> None:
    """Changed together, and in autocommit, where psycopg2 keeps them on the server."""

    def change(conn: connection) -> None:
        conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True, autocommit=True)
        ask(conn, "select 1")

    with make(1, 1, dsn) as pool:
        pid = give_back(pool, change, "block")
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert (conn.isolation_level, conn.readonly, conn.deferrable, conn.autocommit) == (None, None, None, False)
            assert ask(conn, "show transaction_isolation") == "read committed"
            assert ask(conn, "show transaction_read_only") == "off"
            assert ask(conn, "show default_transaction_read_only") == "off"


def test_settings_go_back_to_what_configure_left(dsn: str) -> None:
    """`configure` decides what a connection is like when it is lent."""

    def configure(conn: connection) -> None:
        conn.set_session(isolation_level="REPEATABLE READ", autocommit=True)

    def change(conn: connection) -> None:
        conn.autocommit = False
        conn.isolation_level = None
        ask(conn, "select 1")

    with make(1, 1, dsn, configure=configure) as pool:
        pid = give_back(pool, change, "block")
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert conn.autocommit
            assert conn.isolation_level == extensions.ISOLATION_LEVEL_REPEATABLE_READ
            assert ask(conn, "show transaction_isolation") == "repeatable read"


def test_configured_connection_is_kept(dsn: str) -> None:
    """Settings that are as `configure` left them cost no statement and no connection."""
    with make(1, 1, dsn, configure=lambda conn: conn.set_session(autocommit=True)) as pool:
        pids = {give_back(pool, lambda conn: ask(conn, "select 1"), how) for how in ("putconn", "block", "exception")}
        assert len(pids) == 1


# configure


def test_configure_sees_each_new_connection_once(dsn: str) -> None:
    """Once for each, before it is lent."""
    seen: list[int] = []
    with make(2, 3, dsn, configure=lambda conn: seen.append(conn.info.backend_pid)) as pool:
        assert len(seen) == 2
        assert sorted(fill(pool, 3)) == sorted(seen)
        fill(pool, 3)
        assert len(seen) == 3


def test_configure_leaves_a_transaction(dsn: str) -> None:
    """A connection is lent without the transaction that `configure` left: it is committed."""
    for dirty in (lambda conn: ask(conn, "select 1"), raw_commit, raw_begin):
        with make(1, 1, dsn, configure=dirty) as pool:
            pids = set()
            for _ in range(2):
                with pool.connection() as conn:
                    assert conn.info.transaction_status == IDLE
                    pids.add(conn.info.backend_pid)
            assert len(pids) == 1, f"{dirty}: a connection is kept as it was configured"
            assert pool.stats().discarded == {}


def test_what_configure_sets_holds(dsn: str) -> None:
    """`configure` need not commit: its transaction is committed for it, and a later rollback undoes nothing of it."""
    with make(1, 1, dsn, configure=lambda conn: ask(conn, "set search_path to archive")) as pool:
        with suppress(ZeroDivisionError), pool.connection() as conn:
            assert ask(conn, "show search_path") == "archive"
            raise ZeroDivisionError
        with pool.connection() as conn:
            assert ask(conn, "show search_path") == "archive"


def test_configure_that_leaves_an_error(dsn: str) -> None:
    """Its work is lost, a ``SET ROLE`` perhaps: the connection is not lent, and the error says why."""
    for dirty in (in_error, error_in_autocommit):
        with pytest.raises(PoolError, match="configure left a transaction in error"):
            make(1, 1, dsn, configure=dirty)


def test_configure_that_raises(dsn: str, admin: connection) -> None:
    """The constructor raises what `configure` raised, and leaves no connection behind."""

    def configure(conn: connection) -> None:
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        make(1, 1, dsn, configure=configure, application_name="unconfigured")
    assert wait_until(
        lambda: not ask(admin, "select count(*) from pg_stat_activity where application_name = 'unconfigured'")
    )


# reset


def die(admin: connection, conn: connection) -> None:
    kill(admin, [conn.info.backend_pid])
    with pytest.raises(psycopg2.Error):
        ask(conn, "select 1")


def test_reset_sees_each_returned_connection(dsn: str, admin: connection) -> None:
    """After the commit or rollback, however it comes back, unless it cannot stay."""
    seen: list[int] = []

    def reset(conn: connection) -> None:
        seen.append(conn.info.transaction_status)

    with make(1, 1, dsn, reset=reset, timeout=5) as pool:
        for how in ("putconn", "block", "exception"):
            give_back(pool, lambda conn: ask(conn, "select 1"), how)
        assert seen == [IDLE] * 3
        give_back(pool, lambda conn: conn.close(), "putconn")
        give_back(pool, lambda conn: die(admin, conn), "exception")
        assert len(seen) == 3


def test_reset_clears_the_session(dsn: str) -> None:
    """What the server keeps for the session is `reset`'s business."""
    with make(1, 1, dsn, reset=discard_all) as pool:
        pid = give_back(pool, lambda conn: ask(conn, "set application_name = 'mine'"), "block")
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert not conn.autocommit
            assert ask(conn, "show application_name") != "mine"


def test_reset_leaves_a_transaction(dsn: str) -> None:
    """It is committed; the connection stays."""
    for dirty in (lambda conn: ask(conn, "select 1"), raw_begin, begin_in_autocommit):
        with make(1, 1, dsn, reset=dirty) as pool:
            pid = give_back(pool, lambda conn: None, "block")
            with pool.connection() as conn:
                assert conn.info.backend_pid == pid
                assert conn.info.transaction_status == IDLE


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
@pytest.mark.parametrize("begin", [lambda conn: None, raw_begin, begin_in_autocommit])
def test_what_reset_does_holds(dsn: str, how: str, begin: Callable[[connection], None]) -> None:
    """A ``RESET`` in `reset` is committed, however its transaction was begun: the next borrower finds nothing left."""

    def reset(conn: connection) -> None:
        begin(conn)
        ask(conn, "reset search_path")

    def change(conn: connection) -> None:
        ask(conn, "set search_path to archive")
        conn.commit()

    with make(1, 1, dsn, reset=reset) as pool:
        pid = give_back(pool, change, how)
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert ask(conn, "show search_path") == '"$user", public'


def test_reset_that_leaves_an_error(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its work cannot be committed: the connection goes, and a record says why."""
    for dirty in (in_error, error_in_autocommit):
        caplog.clear()
        with make(1, 1, dsn, reset=dirty, timeout=PATIENCE, observer=Telemetry()) as pool:
            pid = give_back(pool, lambda conn: None, "block")
            with pool.connection() as conn:
                assert conn.info.backend_pid != pid
            assert pool.stats().discarded["reset_failed"] >= 1
        assert "lost: reset_failed (reset left a transaction in error, so its work cannot be committed)" in caplog.text


# configure and reset


def discard_all(conn: connection) -> None:
    conn.autocommit = True
    ask(conn, "discard all")


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
@pytest.mark.parametrize("undo", [discard_all, lambda conn: ask(conn, "reset all; reset role"), reset_session])
def test_what_configure_set_outlives_a_reset(dsn: str, how: str, undo: Callable[[connection], None]) -> None:
    """Role, tenant and settings that a reset undoes are there for each borrower, on one and the same session."""

    def configure(conn: connection) -> None:
        ask(conn, "set role pg_monitor; set app.tenant = 'a'; set search_path = archive")
        conn.cursor_factory = DictCursor

    with make(1, 1, dsn, configure=configure, reset=undo) as pool:
        pids = set()
        for _ in range(3):
            with pool.connection() as conn:
                assert ask(conn, "select current_user || current_setting('app.tenant')") == "pg_monitora"
                assert ask(conn, "show search_path") == "archive"
                assert conn.cursor_factory is DictCursor
            pids.add(give_back(pool, lambda conn: ask(conn, "reset role; set app.tenant = 'b'"), how))
        assert len(pids) == 1
        assert pool.stats().discarded == {}


def test_configure_runs_after_each_reset(dsn: str) -> None:
    """On the connection as it was when `configure` first saw it, and outside any transaction."""
    seen: list[tuple[str, int, bool, int | None]] = []

    def note(what: str, conn: connection) -> None:
        seen.append((what, conn.info.transaction_status, conn.autocommit, conn.isolation_level))

    def configure(conn: connection) -> None:
        note("configure", conn)
        conn.set_session(isolation_level="REPEATABLE READ", autocommit=True)

    def reset(conn: connection) -> None:
        note("reset", conn)
        ask(conn, "discard all")

    first = ("configure", IDLE, False, None)
    with make(1, 1, dsn, configure=configure, reset=reset) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert ask(conn, "show transaction_isolation") == "repeatable read"
        lent = ("reset", IDLE, True, extensions.ISOLATION_LEVEL_REPEATABLE_READ)
        assert seen == [first, lent, first, lent, first]


def test_what_configure_sets_last_is_what_a_return_restores(dsn: str) -> None:
    """A `configure` that decides anew, as after a failover, is not overruled by what it first said."""
    readonly = [False, True, True]

    def configure(conn: connection) -> None:
        conn.readonly = readonly.pop(0)

    with make(1, 1, dsn, configure=configure, reset=reset_session) as pool:
        give_back(pool, lambda conn: ask(conn, "select 1"), "block")
        with pool.connection() as conn:
            assert conn.readonly
            conn.readonly = False
            pid = conn.info.backend_pid
        with pool.connection() as conn:
            assert (conn.readonly, conn.info.backend_pid) == (True, pid)
            readonly.append(True)


def test_settings_of_a_connection_class_outlive_a_reset(dsn: str) -> None:
    """Levels that psycopg2 keeps on the server, in autocommit, are set anew where the reset discarded them."""

    class Serial(extensions.connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.set_session("SERIALIZABLE", autocommit=True)

    with make(1, 1, dsn, connection_factory=Serial, reset=lambda conn: ask(conn, "discard all")) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert ask(conn, "show transaction_isolation") == "serializable"


@pytest.mark.parametrize(
    "fail", [in_error, error_in_autocommit, lambda conn: ask(conn, "select 1/0"), lambda conn: conn.close()]
)
def test_configure_that_fails_after_a_reset(dsn: str, fail: Callable[[connection], object]) -> None:
    """The connection is not lent again; another one is made, and the caller hears nothing."""
    outcomes: list[Callable[[connection], object]] = [lambda conn: None, fail]

    def configure(conn: connection) -> None:
        if outcomes:
            outcomes.pop(0)(conn)
        ask(conn, "set role pg_monitor")

    with make(1, 1, dsn, configure=configure, reset=reset_session, timeout=PATIENCE) as pool:
        pid = give_back(pool, lambda conn: None, "block")
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
            assert ask(conn, "select current_user") == "pg_monitor"
        assert sum(pool.stats().discarded.values()) == 1
        assert set(pool.stats().discarded) <= {"reset_failed", "broken"}


def test_configure_that_hangs_after_a_reset(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the time that it has when a connection is made; then the connection goes."""
    monkeypatch.setattr("otel_pgpool.driver.deadline.Deadline.__init__.__defaults__", (0.2,))
    waits = [0, 60]

    def configure(conn: connection) -> None:
        ask(conn, "select pg_sleep(%s)", waits.pop(0) if waits else 0)

    with make(1, 1, dsn, configure=configure, reset=reset_session, timeout=PATIENCE) as pool:
        pid = give_back(pool, lambda conn: None, "block")
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
        assert sum(pool.stats().discarded.values()) == 1


# a reset that fails


@pytest.mark.parametrize("how", ["putconn", "block", "exception"])
def test_reset_that_raises(dsn: str, admin: connection, how: str) -> None:
    """The connection goes; the caller, whose work is done, hears nothing; the commit stands."""
    recorder = Recorder()

    def reset(conn: connection) -> None:
        raise ValueError("no")

    with make(1, 1, dsn, reset=reset, timeout=5, observer=recorder) as pool:
        give_back(pool, lambda conn: ask(conn, "create table if not exists reset_kept ()"), how)
        assert pool.stats().used == 0
        assert pool.stats().discarded == {"reset_failed": 1}
        assert recorder.outcomes == ["committed" if how == "block" else "discarded"]
    assert (ask(admin, "select to_regclass('reset_kept')") is not None) == (how == "block")
    ask(admin, "drop table if exists reset_kept")


def test_reset_that_meets_a_dead_connection(dsn: str) -> None:
    """A block's work that is committed was done, though its connection dies afterwards."""
    recorder = Recorder()

    def reset(conn: connection) -> None:
        ask(conn, "select pg_terminate_backend(pg_backend_pid())")

    with make(1, 1, dsn, reset=reset, timeout=5, observer=recorder) as pool:
        give_back(pool, lambda conn: ask(conn, "create temporary table work ()"), "block")
        (checkout,) = recorder.calls("released")[0]
        assert (checkout.outcome, checkout.error_type) == ("committed", None)
        assert pool.stats().discarded == {"broken": 1}


def test_reset_that_closes(dsn: str) -> None:
    """A `reset` that closes the connection does no harm."""
    with make(1, 1, dsn, reset=lambda conn: conn.close(), timeout=5) as pool:
        for _ in range(3):
            give_back(pool, lambda conn: ask(conn, "select 1"), "block")
        assert pool.stats().used == 0


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_reset_that_is_interrupted(dsn: str, kind: type[BaseException]) -> None:
    """Ctrl-C during `reset` comes out, and the place is free again."""
    interrupt = [True]

    def reset(conn: connection) -> None:
        if interrupt.pop() if interrupt else False:
            raise kind

    with make(1, 1, dsn, reset=reset, timeout=5) as pool:
        with pytest.raises(kind):
            give_back(pool, lambda conn: None, "putconn")
        assert pool.stats().used == 0
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1


def test_frozen_backend_holds_up_nobody_for_long(dsn: str) -> None:
    """Rollback, reset, check and close of a backend that does not answer: 5 s each, and the place is free again."""
    with make(4, 4, dsn, timeout=PATIENCE, reset=lambda conn: ask(conn, "select 1")) as pool:
        conns = [pool.getconn() for _ in range(3)]
        for conn in conns[:2]:
            ask(conn, "select 1")
        idle = pool.getconn()
        pids = [conn.info.backend_pid for conn in (*conns, idle)]
        pool.putconn(idle)
        with frozen(*pids):
            began = time.monotonic()
            ends = [in_thread(pool.putconn, conn) for conn in conns[:2]]  # a rollback each
            ends += [in_thread(pool.putconn, conns[2])]  # a reset
            ends += [in_thread(pool.check)]
            for end in ends:
                end.result(PATIENCE)
            assert 4.5 < time.monotonic() - began < 10
            stats = pool.stats()
            assert stats.used == 0
            assert sum(stats.discarded.values()) == 4
            assert pool.getconn().info.backend_pid not in pids
            del conn, conns, idle


# Nobody gives it back


def test_dropped_connection_is_reclaimed(dsn: str, admin: connection) -> None:
    """`getconn` without `putconn`: when the object goes, so does the backend, and the place is free."""
    recorder = Recorder()
    with make(1, 1, dsn, timeout=PATIENCE, observer=recorder) as pool:
        conn = pool.getconn()
        pid = ask(conn, "select pg_backend_pid()")
        del conn
        assert pid_of_a_checkout(pool) != pid
        assert wait_until(lambda: not lives(admin, pid))
        assert pool.stats().discarded == {"reclaimed": 1}
        assert wait_until(lambda: recorder.calls("reclaimed"))
        assert [checkout.outcome for (checkout,) in recorder.calls("reclaimed")] == ["reclaimed"]


class Session:
    def __init__(self, conn: connection) -> None:
        self.conn = conn
        self.me = self


@pytest.mark.parametrize(
    "drop",
    [lambda pool: Session(pool.getconn()), lambda pool: ExitStack().enter_context(pool.connection())],
    ids=["in a cycle", "in an exit stack"],
)
def test_dropped_for_the_garbage_collector(dsn: str, drop: Callable[[ConnectionPool], object]) -> None:
    """A connection that only the garbage collector finds is reclaimed."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        drop(pool)
        gc.collect()
        assert wait_until(lambda: pool.stats().discarded == {"reclaimed": 1})
        pid_of_a_checkout(pool)


def test_dropped_while_others_wait(dsn: str) -> None:
    """Who waits is served by a new connection as soon as one is reclaimed."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        conn = pool.getconn()
        waiting = [in_thread(pid_of_a_checkout, pool) for _ in range(3)]
        assert wait_until(lambda: pool.stats().waiting == 3)
        del conn
        assert all(future.result(PATIENCE) for future in waiting)


def test_generators_that_the_collector_closes(dsn: str) -> None:
    """Blocks that end inside the garbage collector, at whatever moment of the pool's own work, stop nobody."""

    class Rows:
        def __init__(self, pool: ConnectionPool) -> None:
            self.me = self
            self.rows = self.read(pool)
            next(self.rows)

        def read(self, pool: ConnectionPool) -> Iterator[int]:
            with pool.connection() as conn:
                ask(conn, "select 1")
                yield 1

    with make(2, 2, dsn, timeout=PATIENCE, long_hold=0.001) as pool:

        def abandon() -> None:
            for _ in range(10):
                Rows(pool)

        before = gc.get_threshold()
        gc.freeze()  # what other tests have loaded: to go over it again and again took half a minute
        gc.set_threshold(5)
        try:
            workers = [in_thread(abandon) for _ in range(4)]
            assert wait_until(lambda: gc.collect() >= 0 and all(worker.done() for worker in workers), 2 * PATIENCE)
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()
        for worker in workers:
            worker.result(0)
        gc.collect()
        assert wait_until(lambda: pool.stats().used == 0)
        assert pid_of_a_checkout(pool)


def test_cursor_keeps_its_connection(dsn: str) -> None:
    """A cursor refers to its connection: as long as one lives, nothing is reclaimed."""
    with make(1, 1, dsn) as pool:
        cur = pool.getconn().cursor()
        gc.collect()
        cur.execute("select 1")
        assert cur.fetchone() == (1,)
        assert pool.stats().used == 1
        pool.putconn(cur.connection)
        assert pool.stats().discarded == {}


def test_many_dropped_at_once(dsn: str) -> None:
    """As many as there are, over and over: none is lost for good."""
    with make(0, 4, dsn, timeout=PATIENCE) as pool:
        for _ in range(3):
            conns = [pool.getconn() for _ in range(4)]
            del conns
        assert wait_until(lambda: pool.stats().discarded == {"reclaimed": 12})
        assert pool.stats().used == 0


def test_stale_putconn_after_discard(dsn: str) -> None:
    """A connection that was closed on return is a stranger afterwards."""
    with make(1, 1, dsn) as pool:
        conn = pool.getconn()
        pool.putconn(conn, close=True)
        with pytest.raises(PoolError):
            pool.putconn(conn)
        assert wait_until(lambda: pool.stats().idle == 1)
        assert pool.stats().size == 1
