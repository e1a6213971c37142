"""What `ConnectionPool.from_env` reads, and how it refuses what it cannot read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from otel_pgpool import ConnectionPool
from otel_pgpool.environment import ENVIRONMENT
from otel_pgpool.pool.from_env import POOL_VARIABLES, TARGET_VARIABLES, arguments_from
from tests.support.internals import config_of

URL = "postgresql://app:hunter2@db:5433/shop"
SIZES = {"minconn": 1, "maxconn": 10}


def test_the_url_and_the_defaults() -> None:
    """A URL is enough."""
    assert arguments_from({"DATABASE_URL": f" {URL} "}, {}) == {**SIZES, "dsn": URL}


@pytest.mark.parametrize(
    ("dsn", "read"),
    [
        ("host=db dbname=shop", "host=db dbname=shop"),
        ("postgres://db/shop", "postgres://db/shop"),
        ("postgresql+psycopg2://app:hunter2@db/shop", "postgresql://app:hunter2@db/shop"),
        ("postgres+psycopg://db/shop", "postgres://db/shop"),
        ("postgresql://db/shop?application_name=a+b://c", "postgresql://db/shop?application_name=a+b://c"),
    ],
)
def test_forms_of_the_url(dsn: str, read: str) -> None:
    """As libpq takes it; the driver of a URL of SQLAlchemy is left out."""
    assert arguments_from({"DATABASE_URL": dsn}, {})["dsn"] == read


@pytest.mark.parametrize("variable", TARGET_VARIABLES)
def test_variables_of_libpq(variable: str) -> None:
    """Without a URL, libpq reads its own."""
    assert arguments_from({variable: "x", "DATABASE_URL": ""}, {}) == SIZES


@pytest.mark.parametrize(
    "environ", [{}, {"DATABASE_URL": " "}, {"PGUSER": "app", "PGPASSWORD": "hunter2"}, {"PGHOST": ""}]
)
def test_no_database_is_named(environ: dict[str, str]) -> None:
    """An error, rather than a connection to whatever runs on the machine."""
    with pytest.raises(ValueError, match=r"^DATABASE_URL must be set to a URL .* or one of libpq's variables PGHOST,"):
        arguments_from(environ, {})


@pytest.mark.parametrize(
    "given",
    [
        {"dsn": "host=other"},
        {"connect_kwargs": {"dsn": "host=other"}},
        {"host": "other"},
        {"connect_kwargs": {"service": "other"}},
    ],
)
@pytest.mark.parametrize("environ", [{}, {"DATABASE_URL": ""}])
def test_the_program_names_the_database(given: dict[str, Any], environ: dict[str, str]) -> None:
    """Then the environment need not."""
    assert arguments_from(environ, given) == {**SIZES, **given}


def test_a_dsn_of_the_program_comes_first() -> None:
    """Even before a URL that cannot be read."""
    assert arguments_from({"DATABASE_URL": "nonsense"}, {"dsn": "host=other"})["dsn"] == "host=other"


@pytest.mark.parametrize(
    ("variable", "text", "option", "value"),
    [
        ("MINCONN", "0", "minconn", 0),
        ("MAXCONN", " 25 ", "maxconn", 25),
        ("NAME", " shop ", "name", "shop"),
        ("MAX_WAITING", "100", "max_waiting", 100),
        ("MAX_ATTEMPTS", "3", "max_attempts", 3),
        ("MAX_LIFETIME", "1800", "max_lifetime", 1800.0),
        ("MAX_LIFETIME", "inf", "max_lifetime", math.inf),
        ("MAX_IDLE", "0.5", "max_idle", 0.5),
        ("KEEPALIVE", "1e2", "keepalive", 100.0),
        ("RECONNECT_TIMEOUT", "0", "reconnect_timeout", 0.0),
    ],
)
def test_options(variable: str, text: str, option: str, value: object) -> None:
    """Each has its variable; an argument of the program overrides it, and empty means unset."""
    environ = {"DATABASE_URL": URL, f"OTEL_PGPOOL_{variable}": text}
    found = arguments_from(environ, {})
    assert (found[option], type(found[option])) == (value, type(value))
    assert arguments_from({**environ, f"OTEL_PGPOOL_{variable}": " "}, {}).get(option) == SIZES.get(option)
    assert arguments_from({**environ, f"OTEL_PGPOOL_{variable}": "nonsense"}, {option: 7})[option] == 7


@pytest.mark.parametrize(("other", "option"), [("min_size", "minconn"), ("max_size", "maxconn")])
def test_sizes_by_the_other_names(other: str, option: str) -> None:
    """The program may use either name."""
    environ = {"DATABASE_URL": URL, f"OTEL_PGPOOL_{option.upper()}": "nonsense"}
    found = arguments_from(environ, {other: 7})
    assert (found[other], option in found) == (7, False)


def test_each_variable_is_documented_and_exists() -> None:
    """Each is of an option of the constructor."""
    for each in POOL_VARIABLES:
        assert each.variable in ENVIRONMENT
        assert each.variable.option == each.names[0]
    names = {name for each in POOL_VARIABLES for name in each.names}
    assert names <= set(ConnectionPool.__init__.__annotations__)


@pytest.mark.parametrize(
    ("variable", "text", "accepted"),
    [
        *[("MINCONN", text, "a whole number of at least 0") for text in ("-1", "1.0", "two", "1_0", "inf")],
        *[("MAXCONN", text, "a whole number of at least 1 and at most 262143") for text in ("0", "9" * 30, "ten")],
        ("MAX_WAITING", "-5", "a whole number of at least 0"),
        ("MAX_ATTEMPTS", "0", "a whole number of at least 1"),
        ("MAX_LIFETIME", "0", "a number of seconds above 0 .inf allowed."),
        ("MAX_IDLE", "-1", "a number of seconds of at least 0 .inf allowed."),
        ("KEEPALIVE", "nan", "a number of seconds of at least 0 .inf allowed."),
        ("RECONNECT_TIMEOUT", "never", "a number of seconds of at least 0 .inf allowed."),
        ("NAME", "a" * 201, "a printable string of 1 to 200 characters"),
        ("MINCONN", "11", r"at most OTEL_PGPOOL_MAXCONN .10."),
    ],
)
def test_bad_options(variable: str, text: str, accepted: str) -> None:
    """The error names the variable, the value and what is accepted."""
    with pytest.raises(ValueError, match=f"^OTEL_PGPOOL_{variable} must be {accepted}, not ") as caught:
        arguments_from({"DATABASE_URL": URL, f"OTEL_PGPOOL_{variable}": text}, {})
    assert text[:20] in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "given", "message"),
    [
        ("MINCONN", "20", {"maxconn": 5}, r"OTEL_PGPOOL_MINCONN must be at most maxconn .5., not 20"),
        ("MINCONN", "20", {"max_size": 5}, r"OTEL_PGPOOL_MINCONN must be at most max_size .5., not 20"),
        ("MAXCONN", "3", {"minconn": 5}, r"minconn must be at most OTEL_PGPOOL_MAXCONN .3., not 5"),
        ("MAXCONN", "3", {"min_size": 5}, r"min_size must be at most OTEL_PGPOOL_MAXCONN .3., not 5"),
        ("MAXCONN", "3", {"min_size": "5"}, r"min_size must be a whole number of at least 0, not '5'"),
    ],
)
def test_a_size_of_each(variable: str, text: str, given: dict[str, Any], message: str) -> None:
    """If one size comes from the environment and the other one from the program, each has its name there."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        arguments_from({"DATABASE_URL": URL, f"OTEL_PGPOOL_{variable}": text}, given)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("OTEL_PGPOOL_MIN_SIZE", ": did you mean OTEL_PGPOOL_MINCONN?"),
        ("OTEL_PGPOOL_MAX_SIZE", ": did you mean OTEL_PGPOOL_MAXCONN?"),
        ("OTEL_PGPOOL_MAX_RETRIES", ": did you mean OTEL_PGPOOL_MAX_ATTEMPTS?"),
        ("OTEL_PGPOOL_TIMEOT", ": did you mean OTEL_PGPOOL_TIMEOUT?"),
        ("OTEL_PGPOOL_REENTRANT", ""),
    ],
)
def test_unknown_variables(
    variable: str, hint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names each, and what was meant if that is clear, but not the value; known ones are not named."""
    for name in (variable, "OTEL_PGPOOL_MAXCONN", "OTEL_PGPOOL_SPANS"):
        monkeypatch.setenv(name, "7" if "MAX" in name else "off")
    monkeypatch.setenv("DATABASE_URL", URL)
    ConnectionPool.from_env(open=False, observer=None).close()
    assert caplog.messages == [f"{variable} is no variable of otel_pgpool, and is ignored{hint}"]


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": "postgresql://app:hunter2@db:port/shop"},
        {"DATABASE_URL": "postgresql+psycopg2://app:hunter2%zz@db/shop"},
        {"DATABASE_URL": "postgresql+psycopg2://app:x@hunter2@db/shop"},
        {"DATABASE_URL": "mysql://app:hunter2@db/shop"},
        {"DATABASE_URL": "hunter2"},
        {"DATABASE_URL": "host=db passwrod=hunter2"},
        {"DATABASE_URL": URL, "OTEL_PGPOOL_NAME": URL},
        {"DATABASE_URL": URL, "OTEL_PGPOOL_MAXCONN": URL},
    ],
)
def test_no_password_is_shown(environ: dict[str, str]) -> None:
    """The error names the variable that is wrong, and not its value."""
    [*_, variable] = environ
    with pytest.raises(ValueError, match=f"^{variable}\\b") as caught:
        arguments_from(environ, {})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_bad_variable_of_libpq_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the URL that is wrong."""
    monkeypatch.setenv("PGPORT", "http")
    with pytest.raises(ValueError, match=r"^PGPORT must be"):
        arguments_from({"DATABASE_URL": "postgresql://db/shop"}, {})


@pytest.mark.parametrize("value", [["hunter2"], "hunter2", {"dsn": "hunter2"}])
def test_bad_connect_kwargs(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """The constructor's own error, which shows no value."""
    monkeypatch.setenv("DATABASE_URL", URL)
    with pytest.raises(ValueError, match=r"connect_kwargs must be|dsn cannot be read") as caught:
        ConnectionPool.from_env(open=False, connect_kwargs=value)
    assert "hunter2" not in str(caught.value)


def test_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is of the class that is asked, and reads the constructor's own variables as ever."""

    class ShopPool(ConnectionPool):
        pass

    told = {"DATABASE_URL": URL, "OTEL_PGPOOL_MAXCONN": "4", "OTEL_PGPOOL_TIMEOUT": "5", "OTEL_PGPOOL_LONG_HOLD": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    pool = ShopPool.from_env(open=False, observer=None, max_size=6, timeout=7)
    assert type(pool) is ShopPool
    assert (pool.name, pool.minconn, pool.maxconn, pool.long_hold) == ("db:5433/shop", 1, 6, 2.0)
    assert config_of(pool).timeout == 7.0
    pool.close()
    monkeypatch.setenv("OTEL_PGPOOL_TIMEOUT", "soon")
    with pytest.raises(ValueError, match=r"^OTEL_PGPOOL_TIMEOUT must be"):
        ShopPool.from_env(open=False)
