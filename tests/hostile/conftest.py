"""A real PostgreSQL for the tests that need no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otel_pgpool.demo.postgres import PostgresServer
from tests.support.hostile import RIGHT, place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hostile import Entered


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """Shared by the tests of a file."""
    with PostgresServer() as server:
        yield server.dsn


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgresServer]:
    """Provide a server with a password that every quoting and encoding has to handle."""
    with PostgresServer(password=RIGHT) as server:
        yield server


@pytest.fixture
def entered(guarded: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entered:
    """Return the arguments of a connect to the guarded server, which contain a password in one of several ways."""
    return lambda way, password: {**place(guarded), **way(tmp_path, monkeypatch, password)}
