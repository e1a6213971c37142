"""Callbacks of the application that raise, and connects with wrong arguments: the server is not the cause."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolTimeout

from otel_pgpool.instrumentation import uninstrument_pool
from tests.support.database import kill, refused_port
from tests.support.instrumentation import tracker_of
from tests.support.psycopg_pools import RELEASE, opened, settled
from tests.support.telemetry import PATIENCE, until

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from tests.support.telemetry import Record, Signals

Pool = Any

pytestmark = pytest.mark.usefixtures("instrumentation")


def raises(*_args: Any) -> Any:
    raise ValueError("secret-word")


def fails_in_sql(conn: Any) -> None:
    conn.execute("select * from secret_word")


def leaves_a_transaction(conn: Any) -> None:
    conn.execute("select 1")


async def raises_later(*_args: Any) -> Any:
    raise ValueError("secret-word")


USED, MADE, HANDED_OUT = (
    "a new connection cannot be used",
    "no connection can be made",
    "a connection cannot be handed out",
)

RAISED = "the callback {} raised {}; correct the callback"

KNOWS_RESETS = hasattr(ConnectionPool, "_close_connection")  # by which the error of a reset is known

SINCE_3_3 = pytest.mark.skipif(RELEASE < (3, 3), reason="psycopg_pool calls functions for its arguments since 3.3")

CASES = [
    ({"configure": raises}, (USED, "configure", "ValueError")),
    ({"configure": fails_in_sql}, (USED, "configure", "42P01")),
    ({"configure": leaves_a_transaction}, (USED, "configure", "ProgrammingError")),
    pytest.param({"kwargs": raises}, (MADE, "kwargs", "ValueError"), marks=SINCE_3_3),
    pytest.param({"conninfo": raises}, (MADE, "conninfo", "ValueError"), marks=SINCE_3_3),
    ({"kwargs": {"no_such_option": "1"}}, (MADE, "connect", "ProgrammingError")),
]


def the_record(signals: Signals) -> Record:
    assert until(lambda: signals.logged("program_error"))
    (record,) = signals.logged("program_error")
    return record


def assert_no_outage(signals: Signals, pool: Pool) -> None:
    assert not signals.logged("outage_started")
    assert not signals.logged("connect_refused")
    assert tracker_of(pool).stats().status == "ok"
    assert "secret" not in signals.everything().replace("secret_word does not exist", "")


@pytest.mark.parametrize(("options", "cause"), CASES)
def test_connects_in_workers(signals: Signals, dsn: str, options: dict[str, Any], cause: tuple[str, str, str]) -> None:
    """One record names the pool, the callback and the error; there is neither an outage nor a refusal."""
    effect, callback, error = cause
    options = {"conninfo": dsn, "name": "shop", **options}
    with opened(ConnectionPool, options.pop("conninfo"), 1, min_size=0, **options) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(0.3)
        record = the_record(signals)
        text = record.record.getMessage()
        assert text.startswith(f"pool shop: {effect}: ")
        assert error in text
        assert "cannot be reached" not in text
        assert record.attributes["otel_pgpool.callback"] == callback
        assert record.attributes["error.type"] == error
        if error == "ValueError":
            assert text.endswith(RAISED.format(callback, error))
        (connect,) = signals.named("pool.connect")
        assert (connect.attributes or {})["error.type"] == error
        assert_no_outage(signals, pool)


@pytest.mark.parametrize(("options", "cause"), CASES)
def test_connects_in_callers(signals: Signals, dsn: str, options: dict[str, Any], cause: tuple[str, str, str]) -> None:
    """The caller gets the error; the record is the same."""
    effect, callback, _error = cause
    options = {"conninfo": dsn, **options}
    with opened(NullConnectionPool, options.pop("conninfo"), 1, **options) as pool:
        with pytest.raises((ValueError, psycopg.ProgrammingError)):
            pool.getconn()
        record = the_record(signals)
        assert record.record.getMessage().partition(": ")[2].startswith(f"{effect}: ")
        assert record.attributes["otel_pgpool.callback"] == callback
        assert_no_outage(signals, pool)


def test_each_callback_has_a_limit_of_its_own(signals: Signals, dsn: str) -> None:
    """A callback that raises again leaves no second record, and does not hide a refusal of the server."""
    kwargs: dict[str, Any] = {"application_name": "shop"}
    with opened(NullConnectionPool, dsn, 1, configure=raises, kwargs=kwargs) as pool:
        for _ in range(2):
            with pytest.raises(ValueError, match="secret-word"):
                pool.getconn()
        kwargs["dbname"] = "nowhere"
        with pytest.raises(psycopg.OperationalError):
            pool.getconn()
    assert len(signals.logged("program_error")) == 1
    assert len(signals.logged("connect_refused")) == 1


def test_an_outage_ends_when_configure_is_reached(signals: Signals, dsn: str) -> None:
    """A callback without a connection changes no outage; one with a connection shows that the server is up."""
    with refused_port() as port:
        kwargs = {"port": port}
        with opened(NullConnectionPool, dsn, 1, configure=raises, kwargs=kwargs) as pool:
            for change in ({}, {"no_such_option": "1"}):
                kwargs.update(change)
                with pytest.raises(psycopg.Error):
                    pool.getconn()
            assert tracker_of(pool).stats().status == "unreachable"
            assert not signals.logged("outage_ended")
            kwargs.clear()
            with pytest.raises(ValueError, match="secret-word"):
                pool.getconn()
            assert tracker_of(pool).stats().status == "ok"
            assert len(signals.logged("outage_ended")) == 1


def test_a_connection_that_is_lost_in_configure(signals: Signals, dsn: str, admin: connection) -> None:
    """It is the server that has failed, not the callback."""

    def configure(conn: Any) -> None:
        kill(admin, [conn.info.backend_pid])
        conn.execute("select 1")

    with opened(NullConnectionPool, dsn, 1, configure=configure) as pool:
        with pytest.raises(psycopg.OperationalError):
            pool.getconn()
        assert signals.logged("outage_started")
        assert not signals.logged("program_error")


def test_an_interrupted_configure(signals: Signals, dsn: str) -> None:
    """An interrupt is no error of the callback."""

    def interrupted(conn: Any) -> None:
        raise KeyboardInterrupt

    with opened(NullConnectionPool, dsn, 1, configure=interrupted) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        assert not signals.logged("program_error")
        assert_no_outage(signals, pool)


@pytest.mark.parametrize("refused", ["timeout", "closed"])
def test_another_pool_that_refuses_within_configure(dsn: str, refused: str) -> None:
    """A connect that fails because ``configure`` receives no connection of another pool is an error, no timeout."""
    with opened(ConnectionPool, dsn, 1, name="inner") as inner:
        held = inner.getconn()

        def configure(_conn: Any) -> None:
            inner.getconn(0.01)

        with opened(NullConnectionPool, dsn, 1, name="outer", configure=configure) as outer:
            if refused == "closed":
                inner.close()
            with pytest.raises(psycopg.OperationalError):
                outer.getconn()
            stats = tracker_of(outer).stats()
            assert (stats.timeouts, stats.errors) == (0, 1)
            assert tracker_of(inner).stats().timeouts == (refused == "timeout")
        inner.putconn(held)


def test_a_subclass_that_connects_by_itself(signals: Signals, dsn: str) -> None:
    """Without the frames of psycopg_pool the callback is unknown, and the error still no outage."""

    class Own(NullConnectionPool):  # type: ignore[type-arg]
        def _connect(self, *_args: Any, **_kwargs: Any) -> Any:
            raise LookupError("secret-word")

    with opened(Own, dsn, 1) as pool:
        with pytest.raises(LookupError):
            pool.getconn()
        assert not signals.logged("outage_started")


def test_a_check_that_raises(signals: Signals, dsn: str) -> None:
    """The pool keeps the connection, which is open, and tries again; the record belongs to the checkout's trace."""
    if RELEASE < (3, 3):
        pytest.skip("psycopg_pool before 3.3 repeats a failing check without end")
    with opened(ConnectionPool, dsn, 1, check=raises, name="shop") as pool:
        settled(pool)
        with pytest.raises(PoolTimeout):
            pool.getconn(0.05)
        record = the_record(signals)
        assert record.record.getMessage() == f"pool shop: {HANDED_OUT}: {RAISED.format('check', 'ValueError')}"
        span = signals.checkout()
        assert span.context is not None
        assert record.span_context.trace_id == span.context.trace_id
        assert not tracker_of(pool).discards
        assert_no_outage(signals, pool)


def test_a_check_that_finds_a_dead_connection(signals: Signals, dsn: str, admin: connection) -> None:
    """That is the purpose of the callback, and no error of it."""
    with opened(ConnectionPool, dsn, 1, check=lambda conn: conn.execute("select 1").close()) as pool:
        settled(pool)
        kill(admin, [pool._pool[0].info.backend_pid])
        with pool.connection():
            pass
        (lost,) = signals.logged("connection_lost")
        assert lost.attributes["error.type"] == "57P01"
        assert not signals.logged("program_error")


@pytest.mark.parametrize("null", [False, True])
def test_a_reset_that_raises(signals: Signals, dsn: str, null: bool) -> None:
    """The connection is discarded as ``reset_failed``, and the record has the type of the error."""
    cls: type[Pool] = NullConnectionPool if null else ConnectionPool
    with opened(cls, dsn, 1, reset=raises) as pool:
        conn = pool.getconn()
        pool._waiting.append(client := _Waiting())  # without a waiter, a pool without idle connections resets none
        pool.putconn(conn)
        del client
        assert until(lambda: tracker_of(pool).discards)
        if null and not KNOWS_RESETS:
            assert tracker_of(pool).discards == {"idle": 1}
            return
        assert tracker_of(pool).discards == {"reset_failed": 1}
        (lost,) = signals.logged("connection_lost")
        assert lost.attributes.get("error.type") == ("ValueError" if KNOWS_RESETS else None)
        assert not tracker_of(pool).adapter._calls._failed_resets  # type: ignore[attr-defined]
        assert not signals.logged("program_error")


def test_a_reset_of_a_pool_that_is_not_observed(dsn: str, admin: connection) -> None:
    """The connection that the pool closes is collected, and the error with it."""
    with opened(ConnectionPool, dsn, 1) as pool:
        uninstrument_pool(pool)
        conn = pool.getconn()
        conn.execute("select 1")
        kill(admin, [conn.info.backend_pid])
        pool.putconn(conn)
        assert conn.closed
        conn = weakref.ref(conn)
        gc.collect()
        assert conn() is None


def test_a_reset_after_a_failed_check(dsn: str, admin: connection) -> None:
    """A connection whose check failed in a transaction, and whose rollback fails too, is collected."""
    checked: list[Any] = []

    def check(conn: Any) -> None:
        if not checked:
            checked.append(weakref.ref(conn))
            conn.execute("select 1")
            kill(admin, [conn.info.backend_pid])
            raise ValueError

    with opened(ConnectionPool, dsn, 1, check=check) as pool:
        settled(pool)
        pool.putconn(pool.getconn())
        assert tracker_of(pool).discards == {"check_failed": 1}
        gc.collect()
        assert checked[0]() is None


class _Waiting:
    """A place in the queue whose caller does not wait any more."""

    def set(self, _conn: Any) -> bool:
        return False

    def fail(self, _error: Exception) -> bool:
        return False


def test_a_release_while_an_error_is_handled(signals: Signals, dsn: str) -> None:
    """The error that the application handles is not the reason why the pool closes a connection."""
    with opened(ConnectionPool, dsn, 1) as pool:
        conn = pool.getconn()
        conn.pgconn.send_query(b"select pg_sleep(10)")
        with suppress(ValueError):
            try:
                raises()
            finally:
                pool.putconn(conn)
        (lost,) = signals.logged("connection_lost")
        assert lost.attributes["otel_pgpool.reason"] == "broken"
        assert "error.type" not in lost.attributes


@pytest.mark.parametrize("option", ["configure", "kwargs", "check", "reset"])
def test_with_asyncio(signals: Signals, dsn: str, option: str) -> None:
    """The records are the same."""
    if RELEASE < (3, 3) and option in ("kwargs", "check"):
        pytest.skip("psycopg_pool before 3.3 calls no function for arguments, and repeats a failing check without end")

    async def test() -> None:
        options: dict[str, Any] = {option: raises_later, "min_size": 0, "max_size": 1, "open": False}
        async with AsyncConnectionPool(dsn, name="shop", **options) as pool:
            if option == "reset":
                async with pool.connection(PATIENCE):
                    pass
                while not tracker_of(pool).discards:  # noqa: ASYNC110 - no event of asyncio stands for it
                    await asyncio.sleep(0.001)
                (lost,) = signals.logged("connection_lost")
                assert lost.attributes["otel_pgpool.reason"] == "reset_failed"
                assert lost.attributes.get("error.type") == ("ValueError" if KNOWS_RESETS else None)
                return
            with pytest.raises(PoolTimeout):
                await pool.getconn(0.5)
            effect = {"configure": USED, "kwargs": MADE, "check": HANDED_OUT}[option]
            text = the_record(signals).record.getMessage()
            assert text == f"pool shop: {effect}: {RAISED.format(option, 'ValueError')}"
            assert_no_outage(signals, pool)

    asyncio.run(test())
