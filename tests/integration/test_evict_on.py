"""Errors of the program that cost the connection its place: `evict_on`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2 import errors

from tests.support.database import ask
from tests.support.pools import Recorder, make, pid_of_a_checkout
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool


class ShopError(Exception):
    """An error of the program's own."""


def end_with(pool: ConnectionPool, statement: str) -> bool:
    """Let a block end with the error of a statement; return whether its connection was discarded."""
    with pytest.raises(psycopg2.Error), pool.connection() as conn:
        ask(conn, statement)
    assert conn.closed == ("evict_on" in pool.stats().discarded)
    return bool(conn.closed)


DIVISION, SYNTAX, RAISED = "select 1/0", "selec", "do $$ begin raise 'no' using errcode = 'XX001'; end $$"
VIOLATION = "create temp table t (n int unique initially deferred); insert into t values (1), (1); select 1"


@pytest.mark.parametrize(
    ("evict_on", "statement", "goes"),
    [
        (["22012"], DIVISION, True),
        (["22012"], SYNTAX, False),
        (("42", "XX"), SYNTAX, True),
        ({"42", "XX"}, RAISED, True),
        (iter(["22"]), DIVISION, True),
        ([], DIVISION, False),
        (None, DIVISION, False),
        (lambda error: error.pgcode == "22012", DIVISION, True),
        (lambda error: error.pgcode == "22012", SYNTAX, False),
        (lambda error: isinstance(error, errors.DivisionByZero) or None, SYNTAX, False),
    ],
)
def test_errors_of_the_server(dsn: str, evict_on: Any, statement: str, goes: bool) -> None:
    """By code, by class, or as a callable says; the others are rolled back, and their connection stays."""
    with make(1, 1, dsn, evict_on=evict_on) as pool:
        pid = pid_of_a_checkout(pool)
        assert end_with(pool, statement) is goes
        assert (pid_of_a_checkout(pool) != pid) is goes
        assert pool.stats().discarded == ({"evict_on": 1} if goes else {})


def test_an_error_raised_from_another(dsn: str) -> None:
    """The SQLSTATE of a cause counts, not that of a context, which may be of another connection."""
    with make(1, 1, dsn, evict_on=["22012"]) as pool:
        cause = errors.DivisionByZero()
        with pytest.raises(ShopError), pool.connection() as conn:
            raise ShopError from cause
        assert not conn.closed, "no server has sent it"
        with pytest.raises(ShopError), pool.connection() as conn:
            translate(conn)
        assert conn.closed
        with make(1, 1, dsn) as other, pytest.raises(errors.DivisionByZero) as division, other.connection() as conn:
            ask(conn, DIVISION)
        try:
            raise division.value
        except errors.DivisionByZero:
            assert not end_with_shop_error(pool)
        circle = ShopError()
        circle.__cause__ = ShopError()
        circle.__cause__.__cause__ = circle
        with pytest.raises(ShopError), pool.connection() as conn:
            raise circle
        assert not conn.closed


def test_an_error_of_another_connection(dsn: str) -> None:
    """It costs its own connection the place, not the one of the block around; nor does an error raised from it."""
    with make(1, 1, dsn, evict_on=["22012"]) as pool, make(1, 1, dsn, evict_on=["22012"]) as other:
        with pytest.raises(errors.DivisionByZero), pool.connection() as conn, other.connection() as inner:
            ask(inner, DIVISION)
        assert inner.closed
        assert not conn.closed
        with pytest.raises(ShopError), pool.connection() as conn, other.connection() as inner:
            translate(inner)
        assert inner.closed
        assert not conn.closed
        assert pool.stats().discarded == {}


def translate(conn: connection) -> None:
    try:
        ask(conn, DIVISION)
    except errors.DivisionByZero as error:
        raise ShopError from error


def end_with_shop_error(pool: ConnectionPool) -> bool:
    with pytest.raises(ShopError), pool.connection() as conn:
        raise ShopError
    return bool(conn.closed)


def test_any_error(dsn: str) -> None:
    """A callable decides about every error with which a block ends, and gets that very error."""
    seen: list[BaseException] = []
    raised = [ShopError(), KeyboardInterrupt(), GeneratorExit()]

    def note(error: BaseException) -> bool:
        seen.append(error)
        return isinstance(error, KeyboardInterrupt)

    with make(1, 1, dsn, evict_on=note) as pool:
        for error in raised:
            with pytest.raises(type(error)), pool.connection() as conn:
                raise error
            assert conn.closed == isinstance(error, KeyboardInterrupt)
    assert seen == raised


def test_a_failed_commit(dsn: str) -> None:
    """Its error is one with which the block ends."""
    with make(1, 1, dsn, evict_on=["23505"]) as pool:
        with pytest.raises(errors.UniqueViolation), pool.connection() as conn:
            ask(conn, VIOLATION)
        assert conn.closed
        assert pool.stats().discarded == {"evict_on": 1}


def test_no_error_of_the_block(dsn: str) -> None:
    """A clean block, an error that was handled inside, and `putconn` are not judged."""
    with make(1, 1, dsn, evict_on=lambda _error: True) as pool:
        pid = pid_of_a_checkout(pool)
        with pool.connection() as conn:
            with pytest.raises(errors.DivisionByZero):
                ask(conn, DIVISION)
            conn.rollback()
        conn = pool.getconn()
        with pytest.raises(errors.DivisionByZero):
            ask(conn, DIVISION)
        pool.putconn(conn)
        assert pid_of_a_checkout(pool) == pid


def test_a_dead_session_is_broken(dsn: str) -> None:
    """Whatever the rule says, the reason of its discard is that it was lost; the rule is not asked."""
    with make(1, 1, dsn, evict_on=lambda _error: pytest.fail("asked")) as pool:
        with pytest.raises(psycopg2.OperationalError), pool.connection() as conn:
            ask(conn, "select pg_terminate_backend(pg_backend_pid())")
        assert pool.stats().discarded == {"broken": 1}


def test_a_rule_that_raises(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """The connection stays, the block's own error is raised, and one record says where the rule failed."""
    with make(1, 1, dsn, evict_on=lambda error: error.pgcode == "22012") as pool:
        pid = pid_of_a_checkout(pool)
        with caplog.at_level(logging.WARNING, "otel_pgpool"):
            for _ in range(3):
                assert not end_with_shop_error(pool)
        assert pid_of_a_checkout(pool) == pid
    (record,) = caplog.records
    assert record.getMessage().startswith("evict_on raised an error; the connection is kept: AttributeError; ")


def test_what_is_reported(dsn: str) -> None:
    """The checkout's outcome, and the reason with the error's type but without its text."""
    with Signals() as signals, signals.pool(1, 1, dsn, evict_on=["22"]) as pool:
        assert end_with(pool, "select 1/0 as secret")
        assert (signals.checkout().attributes or {})["otel_pgpool.outcome"] == "discarded"
        (record,) = [
            each for each in signals.logged("discarded") if each.attributes["otel_pgpool.reason"] == "evict_on"
        ]
        assert record.attributes["error.type"] == "22012"
        assert "secret" not in signals.everything()
        assert signals.values("otel_pgpool.connections.discarded") == {("evict_on",): 1}


def test_the_observer_gets_the_error(dsn: str) -> None:
    """As the one that revealed the reason, with the checkout."""
    recorder = Recorder()
    with make(1, 1, dsn, evict_on=["22"], observer=recorder) as pool:
        assert end_with(pool, DIVISION)
    (slots, reason, error, checkout) = recorder.calls("discarded")[0]
    assert (len(slots), reason, type(error), checkout.outcome) == (1, "evict_on", errors.DivisionByZero, "discarded")


@pytest.mark.parametrize(
    "value", ["57014", 57014, [57014], ["5701"], ["57O14 "], ["xx"], [None], b"57014", errors.QueryCanceled, True]
)
def test_invalid_rules(dsn: str, value: Any) -> None:
    """The error names the option and what is accepted; a class of errors would be taken for a function."""
    with pytest.raises(ValueError, match=r"^evict_on must be a callable, a list of SQLSTATEs"):
        make(0, 1, dsn, evict_on=value)
