"""The targets of URLs whose password has an unescaped character, as each adapter reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.asyncpg.target import target_of_arguments as of_asyncpg
from otel_pgpool.instrumentation.adapters.psycopg2.target import target_of_arguments as of_psycopg2
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import driver_named

psycopg_target = pytest.importorskip("otel_pgpool.instrumentation.adapters.psycopg.target")
sqlalchemy = pytest.importorskip("sqlalchemy")
engine = pytest.importorskip("otel_pgpool.instrumentation.adapters.sqlalchemy.engine")

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.driver.target import Target

    Reader = Callable[[str], Target]

pytestmark = pytest.mark.usefixtures("no_variables")

RESERVED = [*":/?#[]@!$&'()*+,;=%"]
PARSED_BY_LIBPQ = [*":?#[]!$&'()*+,;="]
"""Characters at which libpq does not end a password that is followed by ``@``."""


def engine_on(driver: str) -> Reader:
    def read(url: str) -> Target:
        created = sqlalchemy.create_engine(url.replace("://", f"+{driver}://"))
        _args, parameters = created.dialect.create_connect_args(created.url)
        known = driver_named(driver).target((), parameters)
        assert SECRET.findall(f"{engine.engine_name(created)} {shown(engine.engine_target(created))}") == []
        return known

    return read


READERS: dict[str, Reader] = {
    "psycopg2": lambda url: of_psycopg2((url,), {}),
    "psycopg2, by keyword": lambda url: of_psycopg2((), {"dsn": url}),
    "psycopg_pool": lambda url: psycopg_target.target_of_arguments(url, None),
    "psycopg_pool, by keyword": lambda url: psycopg_target.target_of_arguments("", {"dbname": url}),
    "asyncpg": lambda url: of_asyncpg((url,), {}),
    **{f"engine on {name}": engine_on(name) for name in ("psycopg2", "psycopg", "pg8000", "asyncpg")},
}
SECRET = re.compile(r"\b4711\b|hunter2")


def shown(target: Target) -> str:
    """Return all that a target shows, and that the text of an error may quote."""
    return " ".join([target.name, target.address, str(target.port), target.namespace, *sorted(target.public)])


@pytest.mark.parametrize("rest", ["@db", "@db:5433", "@db/shop", "@db/shop?application_name=till"])
@pytest.mark.parametrize(
    "password", ["4711{}hunter2", "{}hunter2", "hunter2{}", "hunter2{}4711", "4711{0}4711{0}hunter2"]
)
@pytest.mark.parametrize("reader", READERS)
def test_no_part_of_a_password(reader: str, password: str, rest: str) -> None:
    """Whatever a driver takes for the host, the port or the database, no part of the password is shown."""
    for character in RESERVED:
        url = f"postgresql://ada:{password.format(character)}{rest}"
        try:
            target = READERS[reader](url)
        except (sqlalchemy.exc.ArgumentError, ValueError):  # SQLAlchemy creates no engine
            continue
        assert SECRET.findall(shown(target)) == [], url


@pytest.mark.parametrize("reader", ["psycopg2", "psycopg_pool"])
@pytest.mark.parametrize("character", PARSED_BY_LIBPQ)
def test_password_that_libpq_reads(reader: str, character: str) -> None:
    """A password that libpq reads in full does not make the target unknown."""
    assert READERS[reader](f"postgresql://ada:4711{character}hunter2@db/shop").name == "db:5432/shop"


@pytest.mark.parametrize("character", [*"/?#"])
def test_password_that_asyncpg_cuts(character: str) -> None:
    """With an ``@`` behind the authority of a URL, the target is unknown."""
    assert of_asyncpg((f"postgresql://ada:4711{character}hunter2@db/shop",), {}) is UNKNOWN
