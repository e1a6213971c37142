"""Ways to fork, and readers of totals."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import fork_in_c
from tests.support.totals import Readers

if TYPE_CHECKING:
    from tests.support.telemetry import Signals


@pytest.fixture(params=["python", "c"])
def fork(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let `os.fork` fork as Python does, and as servers written in C do: Python's own callbacks do not run there."""
    if request.param == "c":
        monkeypatch.setattr(os, "fork", fork_in_c)
    kind: str = request.param
    return kind


@pytest.fixture
def readers(signals: Signals) -> Readers:
    return Readers(signals)
