"""The drivers of PostgreSQL on which SQLAlchemy's engines are observed; each is imported when an engine uses it."""

from __future__ import annotations

import sys
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE = "postgresql"
"""Name of the dialects that are observed."""

CLASSES = {
    "psycopg2": "psycopg2:Psycopg2EngineDriver",
    "psycopg": "psycopg:PsycopgEngineDriver",
    "asyncpg": "asyncpg:AsyncpgEngineDriver",
    "pg8000": "pg8000:Pg8000EngineDriver",
}
"""The class for each driver, by the name of the driver's module, which is also a dialect's name for the driver."""

UNKNOWN_DRIVER = EngineDriver()

_known: dict[str, EngineDriver] = {}


def driver_named(name: object) -> EngineDriver:
    """Return the driver of that name; `UNKNOWN_DRIVER` if there is none, or if it cannot be imported."""
    driver = _known.get(str(name))
    if driver is None:
        driver = UNKNOWN_DRIVER
        if name in CLASSES:
            with ignore_errors:  # the driver is not installed, and the application has a module in its place
                driver = resolve_name(f"{__name__}.{CLASSES[str(name)]}")()
                _known[str(name)] = driver
    return driver


def driver_of_dialect(dialect: Any) -> EngineDriver | None:
    """Return the driver of a dialect; None if the dialect is another database's."""
    if getattr(dialect, "name", None) != DATABASE:
        return None
    return driver_named(getattr(dialect, "driver", None))


def driver_of_connection(conn: Any) -> EngineDriver | None:
    """Return the driver of a connection; None if it is not a connection to PostgreSQL."""
    return next((driver for driver in _loaded() if driver.own_connection(conn) is not None), None)


def _loaded() -> Iterator[EngineDriver]:
    return (driver_named(name) for name in CLASSES if name in sys.modules)
