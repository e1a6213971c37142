"""Options and variables reach the pool; `tests/unit/test_config.py` has every value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from otel_pgpool import BaseObserver, ConnectionPool
from tests.support.internals import config_of
from tests.support.pools import Gate, make
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("minconn", 2),
        ("maxconn", 0),
        ("timeout", "30"),
        ("max_lifetime", 0),
        ("check", "always"),
        ("name", "two\nlines"),
        ("observer", BaseObserver),  # a class, which has the methods too
    ],
)
def test_bad_option(option: str, value: object) -> None:
    """A ValueError names the option, the value and what is accepted; nothing is connected."""
    connects = Gate(free=9)
    options: dict[str, Any] = {"minconn": 1, "maxconn": 1, option: value}
    with pytest.raises(ValueError, match=f"^{option} must be ") as caught:
        make(dsn="postgresql://nowhere.invalid/x", connection_factory=connects, **options)
    assert repr(value) in str(caught.value)
    assert connects.calls == 0


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": math.inf, "max_waiting": 0, "max_retries": None, "check": None, "name": "günstig"},
        {"max_lifetime": None, "max_idle": None, "long_hold": None, "max_retries": 0},
        {"timeout": 0, "max_lifetime": math.inf, "long_hold": 0},
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


def test_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are read where no argument is given, when the pool is made."""
    monkeypatch.setenv("DB_CONNECTION_TIMEOUT", " 0.2 ")
    monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "0.05")
    with make(1, 1, dsn, open=False) as pool:
        monkeypatch.setenv("DB_CONNECTION_TIMEOUT", "60")
        monkeypatch.setenv("OTEL_PGPOOL_LONG_HOLD", "0")
        assert (config_of(pool).timeout, pool.long_hold) == (0.2, 0.05)
        conn = pool.getconn(timeout=60)
        assert wait_until(lambda: pool.stats().long_holds == 1)
        pool.putconn(conn)
    with make(0, 1, dsn) as pool:
        assert (config_of(pool).timeout, pool.long_hold) == (60, math.inf)
    with make(0, 1, dsn, timeout=0.1, long_hold=2) as pool:
        assert (config_of(pool).timeout, pool.long_hold) == (0.1, 2)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DB_CONNECTION_TIMEOUT", "30s"),
        ("OTEL_PGPOOL_LONG_HOLD", "off"),
        ("OTEL_PGPOOL_SPANS", "sometimes"),
        ("OTEL_PGPOOL_SLOW", "fast"),
        ("OTEL_PGPOOL_HISTOGRAMS", "wait"),
        ("OTEL_PGPOOL_CALLER", "yes"),
    ],
)
def test_bad_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A ValueError names the variable, its value and what is accepted."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable} must be ") as caught:
        ConnectionPool(0, 1, "postgresql://postgres@nowhere.invalid/x", open=False)
    assert value in str(caught.value)


def test_good_variables(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good variables of telemetry are accepted."""
    monkeypatch.setenv("OTEL_PGPOOL_SPANS", "SLOW")
    monkeypatch.setenv("OTEL_PGPOOL_SLOW", "0.5")
    monkeypatch.setenv("OTEL_PGPOOL_HISTOGRAMS", "wait_time, use_time")
    with ConnectionPool(1, 1, dsn) as pool, pool.connection():
        assert pool.stats().used == 1
