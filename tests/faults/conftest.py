"""A real PostgreSQL for the tests that need no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otel_pgpool.cli.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """Shared by the tests of a file."""
    with PostgresServer() as server:
        yield server.dsn
