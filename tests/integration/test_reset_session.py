"""Hostile leftovers of a borrower, `reset_session`, and what `configure` set: the next borrower finds what was lent."""

from __future__ import annotations

import gc
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import extensions
from psycopg2.extras import DictCursor, NamedTupleCursor

from otel_pgpool import PoolError, PoolTimeout, reset_session
from otel_pgpool.pool import handover
from otel_pgpool.telemetry import Telemetry
from tests.support.database import IDLE, ask
from tests.support.pools import make
from tests.support.servers import ClonedServer
from tests.support.telemetry import Signals
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection

INT4 = 23
AS_TEXT = extensions.new_type((INT4,), "AS_TEXT", lambda value, _cursor: value)
SUM = "select count(*) from "


@pytest.fixture
def role(admin: connection) -> Iterator[str]:
    """Create a role that cannot log in."""
    ask(admin, "create role tenant")
    yield "tenant"
    ask(admin, "drop role tenant")


def statement(text: str) -> Callable[[connection], object]:
    """Return a function that runs a statement in a transaction and commits."""

    def run(conn: connection) -> None:
        ask(conn, text)
        conn.commit()

    return run


def notify_itself(conn: connection) -> None:
    statement("listen orders")(conn)
    statement("notify orders, 'one'")(conn)
    conn.poll()


def leave_a_cursor(conn: connection) -> None:
    cur = conn.cursor("left", withhold=True)
    cur.execute("select generate_series(1, 9)")
    conn.commit()
    assert cur.fetchone() == (1,)


LEFTOVERS: dict[str, tuple[Callable[[connection], object], str]] = {
    "role": (statement("set role tenant"), "select current_user"),
    "session authorization": (statement("set session authorization tenant"), "select session_user"),
    "tenant": (statement("select set_config('app.tenant', 'b', false)"), "select current_setting('app.tenant', true)"),
    "row security": (statement("set row_security = off"), "show row_security"),
    "search path": (statement("set search_path = archive"), "show search_path"),
    "statement timeout": (statement("set statement_timeout = '1h'"), "show statement_timeout"),
    "temporary table": (
        statement("create temporary table basket ()"),
        f"{SUM} pg_class where relname = 'basket' and pg_table_is_visible(oid)",
    ),
    "prepared statement": (statement("prepare find as select 1"), f"{SUM} pg_prepared_statements"),
    "held cursor of psycopg2": (leave_a_cursor, f"{SUM} pg_cursors where name = 'left'"),
    "held cursor": (statement("declare kept cursor with hold for select 1"), f"{SUM} pg_cursors where name = 'kept'"),
    "listen": (statement("listen orders"), f"{SUM} pg_listening_channels()"),
    "advisory lock": (
        statement("select pg_advisory_lock(7)"),
        f"{SUM} pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    ),
    "a transaction behind psycopg2's back": (
        lambda conn: ask(conn, "commit; begin; set role tenant"),
        "select current_user",
    ),
    "autocommit": (lambda conn: setattr(conn, "autocommit", True), "show transaction_isolation"),
    "levels in autocommit": (
        lambda conn: conn.set_session("SERIALIZABLE", readonly=True, deferrable=True, autocommit=True),
        "show transaction_isolation",
    ),
    "client encoding": (lambda conn: conn.set_client_encoding("LATIN1"), "show client_encoding"),
}


@pytest.mark.usefixtures("role")
@pytest.mark.parametrize("what", LEFTOVERS)
def test_the_server_side(dsn: str, what: str) -> None:
    """The same session, and nothing of what its last borrower left."""
    leave, question = LEFTOVERS[what]
    with make(1, 1, dsn, reset=reset_session) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
            before = ask(conn, question)
        with pool.connection() as conn:
            leave(conn)
        with pool.connection() as conn:
            assert (conn.info.backend_pid, conn.info.transaction_status) == (pid, IDLE)
            assert (ask(conn, question) or "") == (before or "")  # a setting that a session made up stays, empty
            assert (conn.autocommit, conn.isolation_level, conn.readonly, conn.deferrable) == (False, None, None, None)
        assert pool.stats().discarded == {}


@pytest.mark.usefixtures("role")
@pytest.mark.parametrize("what", ["role", "session authorization", "temporary table", "held cursor", "advisory lock"])
def test_leftovers_are_there_without_a_reset(dsn: str, what: str) -> None:
    """What the tests above have gone, as the reference says of a pool without `reset`."""
    leave, question = LEFTOVERS[what]
    with make(1, 1, dsn) as pool:
        with pool.connection() as conn:
            before = ask(conn, question)
        with pool.connection() as conn:
            leave(conn)
        with pool.connection() as conn:
            assert ask(conn, question) != before


def leave_things_on(conn: connection) -> tuple[Any, Any]:
    """Change all that psycopg2 keeps on a connection; its lists of notices and notifies."""
    conn.cursor_factory = DictCursor
    extensions.register_type(AS_TEXT, conn)
    conn.binary_types[INT4] = AS_TEXT
    ask(conn, "do $$ begin raise notice 'of the last borrower'; end $$")
    notify_itself(conn)
    assert conn.notices
    assert conn.notifies
    return conn.notices, conn.notifies


def test_what_psycopg2_keeps(dsn: str) -> None:
    """Cursor factory, typecasters, notices and notifies are psycopg2's own again, and the last borrower's lists his."""
    with make(1, 1, dsn, reset=reset_session) as pool:
        with pool.connection() as conn:
            notices, notifies = leave_things_on(conn)
        with pool.connection() as conn:
            assert conn.cursor_factory is None
            assert (conn.string_types, conn.binary_types, conn.notices, conn.notifies) == ({}, {}, [], [])
            assert ask(conn, "select 7::int4") == 7
            ask(conn, "do $$ begin raise notice 'of this one'; end $$")
            assert len(conn.notices) == 1
            assert (len(notices), len(notifies)) == (1, 1)


def test_a_deque_of_a_borrower_is_not_kept(dsn: str) -> None:
    """A list of notices that a borrower put there would tell him those of the next."""
    with make(1, 1, dsn, reset=reset_session) as pool:
        with pool.connection() as conn:
            conn.notices = mine = deque(maxlen=5)
        with pool.connection() as conn:
            ask(conn, "do $$ begin raise notice 'of this one'; end $$")
            assert not mine
            assert len(conn.notices) == 1


class Shop(extensions.connection):
    """A connection class that makes itself ready, without a statement."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notices = deque(maxlen=7)
        self.cursor_factory = NamedTupleCursor
        self.autocommit = True
        extensions.register_type(AS_TEXT, self)


def test_what_connecting_made_comes_back(dsn: str) -> None:
    """A connection class's own settings are none of a borrower's leftovers."""
    with make(1, 1, dsn, connection_factory=Shop, reset=reset_session) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert isinstance(conn.notices, deque)
                assert conn.notices.maxlen == 7
                assert conn.cursor_factory is NamedTupleCursor
                assert ask(conn, "select 7::int4") == "7"
                assert conn.autocommit
                ask(conn, "do $$ begin raise notice 'to be gone'; end $$")
                conn.cursor_factory = None
                conn.string_types.clear()
                conn.autocommit = False


def test_the_argument_cursor_factory_comes_back(dsn: str) -> None:
    """Psycopg2's own connections have it from the pool's arguments."""
    with make(1, 1, dsn, cursor_factory=NamedTupleCursor, reset=reset_session) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.cursor_factory is NamedTupleCursor
                conn.cursor_factory = DictCursor


def test_a_dropped_connection_of_a_class_that_refers_to_itself(dsn: str) -> None:
    """Remembering what connecting made keeps no connection alive: the garbage collector finds it."""

    class Narcissus(extensions.connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.cursor_factory = self.make_cursor

        def make_cursor(self, *args: Any, **kwargs: Any) -> extensions.cursor:
            return extensions.cursor(*args, **kwargs)

    with make(1, 1, dsn, connection_factory=Narcissus, reset=reset_session, timeout=5) as pool:
        pool.getconn()
        gc.collect()
        assert wait_until(lambda: pool.stats().used == 0)


def test_one_round_trip(dsn: str) -> None:
    """A connection that nothing was done to costs one statement, and not a transaction."""
    with make(1, 1, dsn, reset=reset_session) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        other = psycopg2.connect(dsn)
        assert ask(other, "select query from pg_stat_activity where pid = %s", pid) == "DISCARD ALL"
        other.close()


def test_roles_and_settings_of_the_login(dsn: str, admin: connection) -> None:
    """What the login's role, and the DSN's options, set at the start of a session is there again."""
    ask(admin, "create role tenant; create role clerk login password 'of-the-clerk'; grant tenant to clerk")
    ask(admin, "alter role clerk set role tenant; alter role clerk set datestyle = 'German'")
    try:
        place = extensions.make_dsn(dsn, user="clerk", password="of-the-clerk", options="-c app.tenant=a")
        with make(1, 1, place, reset=reset_session) as pool:
            for _ in range(2):
                with pool.connection() as conn, conn.cursor() as cur:
                    cur.execute("select current_user, current_setting('app.tenant'), date '2026-11-30'")
                    user, tenant, day = cur.fetchone() or ()
                    assert (user, tenant, str(day)) == ("tenant", "a", "2026-11-30")
                    cur.execute("reset role; set role none; set app.tenant = 'b'; set datestyle = 'SQL, DMY'")
    finally:
        ask(admin, "drop role clerk; drop role tenant")


def test_two_phase_transactions(caplog: pytest.LogCaptureFixture) -> None:
    """One that is open is rolled back; one that is prepared stays, and its connection goes with a record."""
    with (
        ClonedServer(settings={"max_prepared_transactions": 4}) as server,
        make(1, 1, server.dsn, reset=reset_session, timeout=PATIENCE, observer=Telemetry()) as pool,
    ):
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        conn = pool.getconn()
        conn.tpc_begin(conn.xid(1, "open", "shop"))
        ask(conn, "create table undone ()")
        pool.putconn(conn)
        conn = pool.getconn()
        assert conn.info.backend_pid == pid
        assert ask(conn, "select to_regclass('undone')") is None
        conn.rollback()
        conn.tpc_begin(conn.xid(1, "prepared", "shop"))
        ask(conn, "create table kept ()")
        conn.tpc_prepare()
        with pytest.raises(PoolError, match="two-phase transaction was left prepared"):
            reset_session(conn)
        pool.putconn(conn)
        with pool.connection() as conn:
            assert conn.info.backend_pid != pid
            assert [xid.gtrid for xid in conn.tpc_recover()] == ["prepared"]
            conn.commit()
        assert pool.stats().discarded == {"reset_failed": 1}
        assert "lost: reset_failed (a two-phase transaction was left prepared" in caplog.text


def test_outside_a_pool(dsn: str) -> None:
    """On a connection of any origin: as psycopg2 makes it without arguments, in the midst of a transaction too."""
    conn = psycopg2.connect(dsn, cursor_factory=DictCursor)
    leave_things_on(conn)
    ask(conn, "set search_path = archive")
    reset_session(conn)
    assert (conn.status, conn.cursor_factory, conn.notices) == (extensions.STATUS_READY, None, [])
    assert ask(conn, "show search_path") == '"$user", public'
    conn.close()
    with pytest.raises(psycopg2.InterfaceError):
        reset_session(conn)


SINK: list[str] = []


class Sharing(extensions.connection):
    """A connection class of a program's, all of whose connections have one list of notices."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notices = SINK


def test_a_list_of_notices_that_is_shared(dsn: str) -> None:
    """The list of a program's own class stays where it is."""
    with make(1, 1, dsn, connection_factory=Sharing) as pool, pool.connection() as conn:
        assert conn.notices is SINK


class Sealed(extensions.connection):
    """A connection class that takes no attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_otel"):
            raise TypeError(name)
        super().__setattr__(name, value)


def test_a_class_that_takes_no_attributes(dsn: str) -> None:
    """It is connected, and its session is reset."""
    with make(1, 1, dsn, connection_factory=Sealed, reset=reset_session) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert ask(conn, "select current_setting('app.tenant', true)") in {None, ""}
                ask(conn, "set app.tenant = 'b'")


def registering(dsn: str) -> connection:
    """Make a connection of psycopg2's own class with a typecaster that refers to it."""
    conn = psycopg2.connect(dsn)
    extensions.register_type(extensions.new_type((25,), "TEXT", lambda value, _cur: (conn.closed, value)), conn)
    return conn


def test_a_dropped_connection_with_a_typecaster_of_its_own(dsn: str) -> None:
    """It is reclaimed, whatever is registered on it, also where sessions are reset."""
    for reset in (None, reset_session):
        with make(1, 1, dsn, connection_factory=registering, reset=reset) as pool:
            conn = pool.getconn()
            conn.string_types.clear()
            del conn
            gc.collect()
            assert wait_until(lambda pool=pool: pool.stats().discarded.get("reclaimed") == 1)


SAID = "token s3cret was refused\nERROR pool shop: all is lost\x1b[2J"


@pytest.mark.parametrize("kind", [PoolError, psycopg2.OperationalError, psycopg2.InterfaceError, ValueError])
@pytest.mark.parametrize("option", ["configure", "reset", "check"])
def test_what_an_applications_function_says_is_not_told(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, option: str, kind: type[Exception]
) -> None:
    """Its error is told by the class alone, the pool's own class included, which anybody may raise."""
    caplog.set_level(logging.DEBUG, "otel_pgpool")
    monkeypatch.setattr(handover, "CHECK_BYPASS_WINDOW", 0.0)  # an idle connection is checked at once
    failing = False

    def function(_conn: connection) -> None:
        if failing:
            raise kind(SAID)

    with Signals() as signals, make(1, 1, dsn, observer=signals.telemetry(), **{option: function}) as pool:
        with pool.connection():
            failing = True
        if option == "configure":
            pool.drain()
        with suppress(PoolTimeout):
            pool.putconn(pool.getconn(timeout=0.2))
        told = f"{signals.everything()}\n{caplog.text}"
    assert kind.__name__ in told
    assert "s3cret" not in told
    assert "all is lost" not in told
