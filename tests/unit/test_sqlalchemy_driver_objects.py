"""What the objects of SQLAlchemy's drivers tell without a server: targets, texts of errors, refusals."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.sqlalchemy import drivers
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import (
    UNKNOWN_DRIVER,
    driver_named,
    driver_of_connection,
    driver_of_dialect,
)
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

asyncpg = pytest.importorskip("asyncpg")
psycopg = pytest.importorskip("psycopg")
exceptions = pytest.importorskip("pg8000.exceptions")

NAMES = ["psycopg2", "psycopg", "asyncpg", "pg8000"]
ARGUMENTS = {
    "psycopg2": {"dbname": "shop"},
    "psycopg": {"dbname": "shop"},
    "asyncpg": {"database": "shop"},
    "pg8000": {"database": "shop"},
    "another": {"database": "shop"},
}


class Secret:
    """A password or a host that is fetched when it is read."""

    def __str__(self) -> str:
        raise AssertionError("read")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_target(name: str) -> None:
    """The target of a connect is read from its arguments, and the password is not read."""
    kwargs = {"host": "db", "port": 5433, "user": "scott", "password": Secret(), **ARGUMENTS[name]}
    target = driver_named(name).target((), kwargs)
    assert (target.address, target.port, target.namespace, target.name) == ("db", 5433, "shop", "db:5433/shop")


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("host", [Secret(), "scott:tiger@db", "postgresql://scott:tiger@db"])
def test_target_that_may_hold_a_secret(name: str, host: Any) -> None:
    """A host that is an object of the program's, or holds a part of a password, is unknown."""
    target = driver_named(name).target((), {"host": host, **ARGUMENTS[name]})
    assert (target.address, target.name) == ("", "unknown")


def test_target_of_a_socket() -> None:
    """pg8000 gets the path of a socket, which holds the port."""
    target = driver_named("pg8000").target((), {"unix_sock": "/run/.s.PGSQL.5433", "user": "u", "database": "shop"})
    assert (target.address, target.port) == ("/run", 5433)


def test_targets_of_several_hosts() -> None:
    """Asyncpg gets lists."""
    target = driver_named("asyncpg").target((), {"host": ["a", "b"], "port": [1, 2], "database": "shop"})
    assert (target.address, target.port, target.name) == ("a,b", None, "a:1,b:2/shop")


def of_psycopg(state: str, message: str) -> BaseException:
    error: BaseException = psycopg.errors.lookup(state)(message)
    return error


def of_asyncpg(state: str, message: str) -> BaseException:
    fields = {"S": "FATAL", "C": state, "M": message, "F": "postinit.c", "R": "InitPostgres", "L": "1"}
    error: BaseException = asyncpg.PostgresError.new(fields)
    return error


def of_pg8000(state: str, message: str) -> BaseException:
    error: BaseException = exceptions.DatabaseError({"S": "FATAL", "C": state, "M": message, "F": "postinit.c"})
    return error


@pytest.mark.parametrize(("name", "make"), [("asyncpg", of_asyncpg), ("pg8000", of_pg8000), ("psycopg", of_psycopg)])
def test_errors_of_the_server(name: str, make: Callable[[str, str], BaseException]) -> None:
    """An error's type is its SQLSTATE, which also shows a refusal; its text is shown as far as it is known."""
    driver = driver_named(name)
    unknown = make("3D000", 'database "shop" does not exist')
    starting = make("57P03", "the database system is starting up")
    assert (driver.error_type(unknown), driver.error_type(starting)) == ("3D000", "57P03")
    assert (driver.is_refusal(unknown), driver.is_refusal(starting)) == (True, False)
    assert driver.is_error(unknown)
    assert not driver.is_error(ValueError("tiger"))
    assert "tiger" not in driver.error_text(make("P0001", "tiger"), UNKNOWN)
    if name != "psycopg":  # its errors get their text from libpq's result
        assert driver.error_text(unknown, UNKNOWN) == 'database "..." does not exist'


def test_errors_of_the_system() -> None:
    """The system's words are shown without the address."""
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('tiger', 5432)")
    failure = exceptions.InterfaceError("Can't create a connection to host tiger and port 5432")
    failure.__cause__ = refused
    for name, error in (("asyncpg", refused), ("pg8000", failure)):
        assert driver_named(name).error_text(error, UNKNOWN) == os.strerror(errno.ECONNREFUSED)
        assert not driver_named(name).is_refusal(error)
    assert driver_named("pg8000").error_text(exceptions.InterfaceError("tiger"), UNKNOWN) == ""
    assert driver_named("pg8000").error_text(exceptions.InterfaceError("network error"), UNKNOWN) != ""


def test_hostile_state() -> None:
    """A server may send anything as SQLSTATE."""
    error = exceptions.DatabaseError({"C": "tiger; drop", "M": "x"})
    assert driver_named("pg8000").error_type(error) == "DatabaseError"


@pytest.mark.parametrize("name", [*NAMES, "another"])
def test_objects_that_are_no_connections(name: str) -> None:
    """Nothing is known of an object that is no connection of the driver's, and nothing raises."""
    driver, thing = driver_named(name), object()
    assert (driver.backend_pid(thing), driver.is_closed(thing)) == (0, False)
    assert driver.transaction_status(thing) is TransactionStatus.UNKNOWN
    assert driver.server_address(thing) == (None, None)
    assert driver.own_connection(thing) is None
    assert driver_of_connection(thing) is None


def test_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may have a module of its own in a driver's place: then nothing is known of it."""
    monkeypatch.setattr(drivers, "_known", {})
    monkeypatch.setitem(drivers.CLASSES, "psycopg", "no_such_module:Driver")
    assert driver_named("psycopg") is UNKNOWN_DRIVER


def test_dialects() -> None:
    """Only dialects of PostgreSQL have a driver."""

    class Dialect:
        name = "postgresql"
        driver = "another"

    class Other(Dialect):
        name = "sqlite"

    assert driver_of_dialect(Dialect()) is UNKNOWN_DRIVER
    assert driver_of_dialect(Other()) is None
    assert driver_of_dialect(object()) is None


def test_psycopg2_is_imported_for_psycopg2_only() -> None:
    """No other module of the adapter imports psycopg2, or what needs psycopg2."""
    folder = Path(drivers.__file__).parents[1]
    needs = re.compile(r"import psycopg2|from (?:psycopg2|otel_pgpool\.driver\.(?:dsn|session|refusal|error_text))\b")
    assert [path.name for path in folder.rglob("*.py") if needs.search(path.read_text())] == ["psycopg2.py"]
