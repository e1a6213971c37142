"""Signals of its own for each test, and an instrumentation that has ended afterwards."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest

from tests.support.instrumentation import instrumented
from tests.support.telemetry import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals


@pytest.fixture
def hook(signals: Signals) -> Iterator[None]:
    """Instrument, with every span and no long hold."""
    with instrumented(signals, long_hold=None):
        yield


@pytest.fixture(autouse=True, scope="module")
def on_a_small_heap(small_heap: None) -> None:
    """Let all these tests instrument on a small heap."""


@pytest.fixture(autouse=True)
def no_pool_left() -> Iterator[None]:
    """Collect what a test leaves: the next instrumentation would find it. The pools' own warnings are expected."""
    logger = logging.getLogger("psycopg.pool")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)
    gc.collect()
