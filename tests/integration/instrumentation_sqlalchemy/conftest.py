"""Signals of its own for each test, and engines that are disposed of afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.instrumentation import instrumented
from tests.support.sqlalchemy_engines import Engines
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals


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


@pytest.fixture(autouse=True, scope="module")
def on_a_small_heap(small_heap: None) -> None:
    """Let all these tests instrument on a small heap."""
