"""What the tests of SQLAlchemy's drivers share: the drivers, their URLs, and a look behind each one's connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import scramp.core
import sqlalchemy

from tests.support.sqlalchemy_engines import select
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Iterable

IS_1_4 = sqlalchemy.__version__.startswith("1.4")
NEEDS_2 = pytest.mark.skipif(IS_1_4, reason="SQLAlchemy 1.4 has no dialect for psycopg 3")
SYNCHRONOUS = ["psycopg2", pytest.param("psycopg", marks=NEEDS_2), "pg8000"]
ASYNCHRONOUS = ["asyncpg", pytest.param("psycopg", marks=NEEDS_2)]

REFUSED = {
    "psycopg2": "OperationalError",
    "psycopg": "OperationalError",
    "pg8000": "3D000",
    "asyncpg": "3D000",
}
"""What each driver's error of an unknown database is called; libpq tells no SQLSTATE of a failed connect."""


def allow_quick_passwords(patch: pytest.MonkeyPatch) -> None:
    """Let pg8000 accept the test servers' password, which is hashed once, so that connects are quick."""
    if hasattr(scramp.core.IterationCount, "MIN_ITERATION_COUNT"):
        patch.setattr(scramp.core.IterationCount, "MIN_ITERATION_COUNT", 1)
    else:  # the releases for Python 3.10
        read = scramp.core._set_server_first
        patch.setattr(scramp.core, "_set_server_first", lambda message, nonce, _least: read(message, nonce, 1))


def driver_url(dsn: str, driver: str, **changes: str | int | None) -> str:
    return url_of(dsn, scheme=f"postgresql+{driver}", **changes)


def pid_of(conn: Any) -> int:
    """Return the backend of a connection of SQLAlchemy, as the server says."""
    pid = int(select(conn, "select pg_backend_pid()"))
    conn.rollback() if hasattr(conn, "rollback") else None
    return pid


def outcomes(spans: Iterable[Any]) -> list[str]:
    return [span.attributes["otel_pgpool.outcome"] for span in spans]
