"""A real PostgreSQL with a hostile password."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hostile import RIGHT, place
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.hostile import Entered


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgresServer]:
    """Provide a server with a password that every quoting and encoding has to handle."""
    with ClonedServer(password=RIGHT) as server:
        yield server


@pytest.fixture
def entered(guarded: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entered:
    """Return the arguments of a connect to the guarded server, which contain a password in one of several ways."""
    return lambda way, password: {**place(guarded), **way(tmp_path, monkeypatch, password)}
