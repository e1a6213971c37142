"""An interrupt at every line of a checkout and its release, once: nothing is lost."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import interrupts


@pytest.mark.timeout(180)
def test_an_interrupt_anywhere_loses_nothing(dsn: str) -> None:
    """After each interrupt, connections, spans, the context and descriptors are as before.

    Afterwards, the former tracer is active again, and the thread handles no error.
    """
    tracer = sys.gettrace()
    interrupted = interrupts.play(1, dsn)
    assert interrupted.violations == []
    assert interrupted.lines_interrupted > 400
    assert sys.gettrace() is tracer
    assert sys.exc_info() == (None, None, None)
