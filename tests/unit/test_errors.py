"""What the pool raises: its kinds, and the diagnosis in a timeout."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import asyncpg
import psycopg2
import psycopg2.pool
import pytest

import otel_pgpool
from otel_pgpool import ConnectionFailed, Holder, PoolClosed, PoolError, PoolStats, PoolTimeout, TooManyRequests
from otel_pgpool.driver.session import ended_session
from otel_pgpool.errors import error_type
from otel_pgpool.pool.checkout import begin
from otel_pgpool.pool.figures import diagnose

STATS = PoolStats(
    name="shop",
    status="critical",
    minconn=1,
    maxconn=4,
    size=4,
    used=3,
    idle=0,
    connecting=1,
    waiting=2,
    utilization=0.75,
    oldest_hold=7.5,
)


def holder(number: int) -> Holder:
    return Holder(
        connection_id=number, pid=4000 + number, thread=f"worker-{number}", held=8.0 - number, where="a.py:1 f"
    )


def diagnosis(*, own_holds: int = 0) -> PoolTimeout:
    waiter = begin(0.0, ())
    holds: list[Any] = [
        SimpleNamespace(
            holder=lambda _now, number=number: holder(number),
            thread=waiter.thread if number <= own_holds else None,
            task=None,
        )
        for number in range(1, 8)
    ]
    return diagnose("no connection within 30 s", STATS, holds, since=0.0, now=30.0012, retries=2, waiter=waiter)


@pytest.mark.parametrize("kind", [PoolError, PoolTimeout, PoolClosed, TooManyRequests])
def test_existing_except_clauses_hold(kind: type[PoolError]) -> None:
    """Each is what the stock pool raises, hence a ``psycopg2.Error``, and is named as it is imported."""
    assert issubclass(kind, PoolError)
    assert issubclass(kind, psycopg2.pool.PoolError)
    assert issubclass(kind, psycopg2.Error)
    assert kind.__module__ == "otel_pgpool"
    assert getattr(otel_pgpool, kind.__name__) is kind


def test_the_message_of_a_timeout_is_a_diagnosis() -> None:
    """Reason, levels, the wait and the retries, then the five longest holders, a line each, and how many more."""
    first, *lines = str(diagnosis()).split("\n")
    assert first == (
        "no connection within 30 s (pool 'shop': 3 of 4 in use, 0 idle, 1 connecting, "
        "2 waiting; waited 30.001 s, 2 failed attempts)"
    )
    assert lines == [*(f"  held {holder(number)}" for number in range(1, 6)), "  and 2 more holders"]
    assert lines[0] == "  held 7.000 s by thread 'worker-1' at a.py:1 f (pid 4001)"


def test_one_failed_attempt() -> None:
    """It is one, not several."""
    error = diagnose("no connection", STATS, [], since=0.0, now=1.0, retries=1)
    assert str(error).endswith("waited 1.000 s, 1 failed attempt)")


def test_a_nested_checkout_is_named() -> None:
    """When the waiting thread itself holds connections, the message says so."""
    assert "this thread already holds" not in str(diagnosis())
    assert "this thread already holds 3 of them, and releases none while it waits" in str(diagnosis(own_holds=3))


def test_a_timeout_has_the_levels_as_attributes() -> None:
    """Each level of the stats, the wait, the retries and the longest holders."""
    error = diagnosis()
    assert (error.waited, error.retries) == (30.0012, 2)
    assert error.holders == tuple(holder(number) for number in range(1, 6))
    assert {name: getattr(error, name) for name in PoolStats.LEVELS} == {
        "minconn": 1,
        "maxconn": 4,
        "size": 4,
        "used": 3,
        "idle": 0,
        "connecting": 1,
        "waiting": 2,
        "utilization": 0.75,
        "oldest_hold": 7.5,
    }


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301
def test_a_timeout_survives_pickling_and_copying(again: object) -> None:
    """Message and attributes reach another process whole."""
    error = diagnosis()
    copied = again(error)  # type: ignore[operator]
    assert type(copied) is PoolTimeout
    assert str(copied) == str(error)
    assert copied.holders == error.holders
    assert (copied.waited, copied.retries, copied.used) == (error.waited, error.retries, error.used)


@pytest.mark.parametrize("kind", [PoolError, PoolClosed, TooManyRequests, ConnectionFailed])
def test_the_other_errors_survive_pickling(kind: type[PoolError]) -> None:
    """Kind and message."""
    copied = pickle.loads(pickle.dumps(kind("connection pool is closed")))  # noqa: S301
    assert type(copied) is kind
    assert str(copied) == "connection pool is closed"


def test_error_of_another_driver() -> None:
    """An error of asyncpg in a block says nothing about the block's connection, whatever its SQLSTATE."""
    assert error_type(asyncpg.exceptions.AdminShutdownError()) == "57P01"
    assert not ended_session(asyncpg.exceptions.AdminShutdownError())
