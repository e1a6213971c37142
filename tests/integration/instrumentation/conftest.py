"""Signals of its own for each test, and an instrumentation that is off again afterwards."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import AbstractConnectionPool

from otel_pgpool.telemetry import Telemetry
from tests.support.instrumentation import instrumented
from tests.support.sqlalchemy_engines import Engines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.telemetry import Signals


@pytest.fixture
def instrumentation(signals: Signals) -> Iterator[None]:
    """Instrument, with every span and no long hold."""
    with instrumented(signals, long_hold=None):
        yield


@pytest.fixture
def engines(dsn: str) -> Iterator[Engines]:
    """Provide a function that makes engines of SQLAlchemy, and dispose of them."""
    with Engines(dsn) as engines:
        yield engines


@pytest.fixture
def interrupted_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the first checkout, as Ctrl-C does, directly after its span has started."""
    original = Telemetry.started

    def interrupt(self: Telemetry, *args: Any) -> None:
        monkeypatch.setattr(Telemetry, "started", original)
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Telemetry, "started", interrupt)


@pytest.fixture(autouse=True, scope="module")
def on_a_small_heap(small_heap: None) -> None:
    """Let all these tests instrument on a small heap."""


@pytest.fixture(autouse=True)
def no_pool_left() -> Iterator[None]:
    """Close what a test leaves open: the next instrumentation would find the pool and take its name."""
    yield
    gc.collect()
    for pool in [found for found in gc.get_objects() if issubclass(type(found), AbstractConnectionPool)]:
        with suppress(psycopg2.Error):
            pool._closeall()
