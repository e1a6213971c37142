"""The instrumentation's knowledge of an engine without a server: its pool's name, levels and target."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from otel_pgpool.driver.target import target_of_parameters
from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import engine_name, read_levels
from otel_pgpool.instrumentation.adapters.sqlalchemy.wrappers import SKIPPED_MODULES
from otel_pgpool.pool.call_site import call_sites, describe, places

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql+psycopg2://scott:tiger@db:5433/shop", "postgresql+psycopg2://scott@db:5433/shop"),
        ("postgresql+psycopg2://scott:ti%40ger@db/shop", "postgresql+psycopg2://scott@db/shop"),
        ("postgresql+psycopg2://db/shop?password=tiger&user=scott", "postgresql+psycopg2://db/shop?user=scott"),
        ("postgresql+psycopg2://db/shop?passfile=tiger&options=tiger", "postgresql+psycopg2://db/shop"),
        (
            "postgresql+psycopg2://scott:tiger@/shop?host=one:5432&host=two:5433",
            "postgresql+psycopg2://scott@/shop?host=one%3A5432&host=two%3A5433",
        ),
        (
            "postgresql+psycopg2://scott@/shop?host=/run/postgresql",
            "postgresql+psycopg2://scott@/shop?host=%2Frun%2Fpostgresql",
        ),
        ("postgresql+psycopg2://", "postgresql+psycopg2://"),
    ],
)
def test_name_of_an_engine(url: str, name: str) -> None:
    """The URL without its password, and of its query only what tells where it leads."""
    assert engine_name(create_engine(url)) == name


def test_name_that_the_program_gave() -> None:
    """The pool's logging name comes first."""
    assert engine_name(create_engine("postgresql+psycopg2://db/shop", pool_logging_name="orders")) == "orders"


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({"poolclass": QueuePool, "pool_size": 3, "max_overflow": 4}, Levels(0, 7, 0, 0, 3)),
        ({"poolclass": QueuePool, "pool_size": 3, "max_overflow": 0}, Levels(0, 3, 0, 0, 3)),
        ({"poolclass": QueuePool, "pool_size": 3, "max_overflow": -1}, Levels(0, 0, 0, 0, 3)),
        ({"poolclass": QueuePool, "pool_size": 0, "max_overflow": -1}, Levels(0, 0, 0, 0, None)),
    ],
)
def test_levels_of_a_pool_at_rest(options: dict[str, Any], levels: Levels) -> None:
    """What nobody has used holds nothing; its limit counts the overflow."""
    assert read_levels(create_engine("postgresql+psycopg2://db/shop", **options).pool) == levels


@pytest.mark.parametrize(("poolclass", "maximum"), [(NullPool, 0), (StaticPool, 1)])
def test_levels_of_a_pool_without_figures(poolclass: type, maximum: int) -> None:
    """A pool that counts nothing itself is read from its tracker."""

    class Counted:
        held, light = ("one",), {1: ("two",)}

    pool = create_engine("postgresql+psycopg2://db/shop", poolclass=poolclass).pool
    vars(pool)["_otel_pgpool"] = Counted()
    assert read_levels(pool) == Levels(0, maximum, maximum or 2, 0, maximum)


@contextmanager
def around() -> Iterator[list[str]]:
    yield [describe(place) for place in places(call_sites(sys._getframe(1), SKIPPED_MODULES))]


def test_places_beyond_a_context_manager() -> None:
    """Neither ``contextlib`` nor SQLAlchemy stands between the program's line and us."""
    with around() as places:
        pass
    assert places[0].endswith(" test_places_beyond_a_context_manager")
    assert len(places) == 4


def test_where_a_connection_leads() -> None:
    """What a connection has shown says where it leads."""
    target = target_of_parameters({"host": "db", "port": "5433", "dbname": "shop", "user": "scott"})
    assert (target.address, target.port, target.namespace) == ("db", 5433, "shop")


@pytest.mark.parametrize("seen", [{"host": "a@b"}, {"port": "blue"}, {"dbname": "a/b@c"}])
def test_where_nothing_leads(seen: dict[str, str]) -> None:
    """What may show a part of a password leads nowhere that is known."""
    target = target_of_parameters(seen)
    assert (target.address, target.port, target.namespace) == ("", None, "")
