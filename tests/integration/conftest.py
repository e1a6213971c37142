"""A real PostgreSQL: one shared by the session, and one of its own for a test that stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
import pytest

from otel_pgpool.demo.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """Shared by all tests: never stop it."""
    with PostgresServer(settings={"max_connections": 200}) as server:
        yield server


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    return server.dsn


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """For one test alone, which may stop, restart or kill it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def admin(dsn: str) -> Iterator[connection]:
    """Provide a connection outside the pool, in autocommit: for pg_terminate_backend and pg_stat_activity."""
    conn = psycopg2.connect(dsn, application_name="admin")
    conn.autocommit = True
    yield conn
    conn.close()
