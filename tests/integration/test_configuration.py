"""Options and variables: argument, then environment, then default; a bad one is refused by name and value."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from otel_pgpool import ConnectionPool, PoolTimeout
from tests.support.internals import config_of
from tests.support.pools import Gate, make
from tests.support.waiting import PATIENCE, wait_until

NAN = float("nan")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", "30"),
        ("timeout", -0.1),
        ("timeout", NAN),
        ("timeout", True),
        ("timeout", [1]),
        ("max_waiting", -1),
        ("max_waiting", 1.5),
        ("max_waiting", "1"),
        ("max_waiting", None),
        ("max_retries", -1),
        ("max_retries", 2.0),
        ("max_retries", True),
        ("max_lifetime", 0),
        ("max_lifetime", -3600),
        ("max_lifetime", "1h"),
        ("max_idle", 0),
        ("max_idle", NAN),
        ("long_hold", -1),
        ("long_hold", "1"),
        ("long_hold", NAN),
        ("check", "always"),
        ("check", True),
        ("configure", "set"),
        ("reset", 1),
        ("name", ""),
        ("name", 5),
        ("name", "two\nlines"),
        ("name", "x" * 201),
    ],
)
def test_bad_option(option: str, value: object) -> None:
    """A ValueError names the option, the value and what is accepted; nothing is connected."""
    connects = Gate(free=9)
    with pytest.raises(ValueError, match=f"^{option} must be ") as caught:
        make(1, 1, "postgresql://nowhere.invalid/x", connection_factory=connects, **{option: value})
    assert repr(value)[:40] in str(caught.value)
    assert connects.calls == 0


@pytest.mark.parametrize(
    ("minconn", "maxconn", "named"),
    [
        (2, 1, "minconn"),
        (-1, 1, "minconn"),
        ("1", 1, "minconn"),
        (1.0, 1, "minconn"),
        (NAN, 1, "minconn"),
        (None, 1, "minconn"),
        (True, 1, "minconn"),
        (0, 0, "maxconn"),
        (0, -1, "maxconn"),
        (0, "x", "maxconn"),
        (0, math.inf, "maxconn"),
        (0, None, "maxconn"),
    ],
)
def test_bad_limits(minconn: object, maxconn: object, named: str) -> None:
    """`minconn` and `maxconn` are whole numbers, the one not above the other, which is at least 1."""
    with pytest.raises(ValueError, match=f"^{named} must be "):
        make(minconn, maxconn, "postgresql://nowhere.invalid/x")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": math.inf},
        {"max_lifetime": None},
        {"max_lifetime": math.inf},
        {"max_idle": None},
        {"long_hold": 0},
        {"long_hold": None},
        {"check": None},
        {"max_retries": 0},
        {"max_retries": None},
        {"max_waiting": 0},
        {"name": "günstig"},
    ],
)
def test_good_option(dsn: str, options: dict[str, Any]) -> None:
    """The edges of what is accepted work."""
    with make(1, 1, dsn, **options) as pool, pool.connection():
        assert pool.stats().used == 1


def test_options_are_keyword_only(dsn: str) -> None:
    """What stands third is psycopg2's: an option there is no option."""
    with pytest.raises((TypeError, ValueError)):
        make(1, 1, dsn, None, None, 30)


def test_timeout_from_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DB_CONNECTION_TIMEOUT` is read where no argument is given, when the pool is made."""
    monkeypatch.setenv("DB_CONNECTION_TIMEOUT", " 0.2 ")
    with make(1, 1, dsn, open=False) as pool:
        monkeypatch.setenv("DB_CONNECTION_TIMEOUT", "60")
        assert_times_out_after(pool, 0.2)
    with make(1, 1, dsn, open=False, timeout=0.1) as pool:
        assert_times_out_after(pool, 0.1)


def assert_times_out_after(pool: ConnectionPool, seconds: float) -> None:
    pool.wait(PATIENCE)  # its own timeout bounds the opening too
    held = pool.getconn()
    began = time.monotonic()
    with pytest.raises(PoolTimeout):
        pool.getconn()
    assert seconds <= time.monotonic() - began < PATIENCE
    pool.putconn(held)


def test_long_hold_from_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_PGPOOL_LONG_HOLD`, 0 to switch it off, an argument before it."""
    monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "0.05")
    with make(1, 1, dsn) as pool:
        assert pool.long_hold == 0.05
        conn = pool.getconn()
        assert wait_until(lambda: pool.stats().long_holds == 1)
        pool.putconn(conn)
    with make(0, 1, dsn, long_hold=2) as pool:
        assert pool.long_hold == 2
    with make(0, 1, dsn, long_hold=None) as pool:
        assert pool.long_hold == math.inf
    monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "0")
    with make(0, 1, dsn) as pool:
        assert pool.long_hold == math.inf


def test_defaults(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable and an empty one both mean the default."""
    monkeypatch.delenv("DB_CONNECTION_TIMEOUT", raising=False)
    monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "")
    with make(0, 1, dsn) as pool:
        assert config_of(pool).timeout == 30
        assert pool.long_hold == 1
        assert config_of(pool).max_lifetime == 3600
        assert config_of(pool).max_idle == 600
        assert config_of(pool).max_waiting == 0
        assert config_of(pool).max_retries is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DB_CONNECTION_TIMEOUT", "soon"),
        ("DB_CONNECTION_TIMEOUT", "-1"),
        ("DB_CONNECTION_TIMEOUT", "nan"),
        ("DB_CONNECTION_TIMEOUT", "30s"),
        ("OTEL_PGPOOL_LONG_HOLD", "-0.5"),
        ("OTEL_PGPOOL_LONG_HOLD", "nan"),
        ("OTEL_PGPOOL_LONG_HOLD", "off"),
        ("OTEL_PGPOOL_SPANS", "sometimes"),
        ("OTEL_PGPOOL_SLOW", "fast"),
        ("OTEL_PGPOOL_SLOW", "-1"),
        ("OTEL_PGPOOL_HISTOGRAMS", "wait"),
    ],
)
def test_bad_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A ValueError names the variable, its value and what is accepted."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable} must be ") as caught:
        ConnectionPool(0, 1, "postgresql://postgres@nowhere.invalid/x", open=False)
    assert value.strip("-") in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DB_CONNECTION_TIMEOUT", "0"),
        ("DB_CONNECTION_TIMEOUT", "inf"),
        ("DB_CONNECTION_TIMEOUT", "1e2"),
        ("OTEL_PGPOOL_SPANS", "off"),
        ("OTEL_PGPOOL_SPANS", "SLOW"),
        ("OTEL_PGPOOL_SPANS", "parent"),
        ("OTEL_PGPOOL_SLOW", "0.5"),
        ("OTEL_PGPOOL_HISTOGRAMS", "none"),
        ("OTEL_PGPOOL_HISTOGRAMS", "wait_time, use_time"),
    ],
)
def test_good_variable(dsn: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A good one is taken."""
    monkeypatch.setenv(variable, value)
    with ConnectionPool(1, 1, dsn) as pool, pool.connection():
        assert pool.stats().used == 1
