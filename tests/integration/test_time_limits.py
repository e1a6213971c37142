"""A time limit, an ``Exception`` out of a signal handler as Celery raises it, is the program's, wherever it comes."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.database import ask
from tests.support.pools import let_lie, make
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool


class SoftTimeLimitExceeded(Exception):  # noqa: N818 - it is called so
    """As Celery's."""


def exceed(_number: int, _frame: object) -> None:
    raise SoftTimeLimitExceeded


def reach_it(*_args: object) -> None:
    signal.raise_signal(signal.SIGUSR1)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, exceed)
    yield
    signal.signal(signal.SIGUSR1, before)


def assert_whole(pool: ConnectionPool) -> None:
    """All of the pool can be had again."""
    assert (pool.stats().used, pool.stats().waiting) == (0, 0)
    conns = [pool.getconn(timeout=5) for _ in range(pool.maxconn)]
    assert [ask(conn, "select 42") for conn in conns] == [42] * pool.maxconn
    for conn in conns:
        conn.rollback()
        pool.putconn(conn)


@pytest.mark.parametrize("way", ["block", "putconn"])
def test_during_a_return(dsn: str, way: str) -> None:
    """It comes while a returned connection is reset: the program sees it, and the connection, half reset, is closed."""
    limited = False

    def reset(_conn: connection) -> None:
        if limited:
            reach_it()

    with make(1, 1, dsn, reset=reset) as pool:
        limited = True
        if way == "block":
            with pytest.raises(SoftTimeLimitExceeded), pool.connection() as conn:
                ask(conn, "select 1")
        else:
            conn = pool.getconn()
            with pytest.raises(SoftTimeLimitExceeded):
                pool.putconn(conn)
        limited = False
        assert pool.stats().discarded == {"reset_failed": 1}
        assert_whole(pool)


def test_while_a_connection_is_looked_at(dsn: str) -> None:
    """It comes while the pool asks whether an idle connection lives: the program gets it, and no connection."""
    limited = False

    def check(_conn: connection) -> None:
        if limited:
            reach_it()

    with make(1, 1, dsn, check=check) as pool:
        let_lie(pool)
        limited = True
        with pytest.raises(SoftTimeLimitExceeded):
            pool.getconn()
        limited = False
        assert_whole(pool)


class Slow(logging.Handler):
    """During which the limit is reached."""

    emit = reach_it


def test_while_a_record_is_written(dsn: str) -> None:
    """It comes inside a handler of the log that is told of a timeout."""
    handler = Slow()
    with Signals() as signals, signals.pool(1, 1, dsn) as pool:
        conn = pool.getconn()
        logging.getLogger("otel_pgpool").addHandler(handler)
        try:
            with pytest.raises(SoftTimeLimitExceeded):
                pool.getconn(timeout=0)
        finally:
            logging.getLogger("otel_pgpool").removeHandler(handler)
        pool.putconn(conn)
        assert_whole(pool)
        assert signals.live() == []
