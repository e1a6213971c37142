"""Ctrl-C at every line of the ways in and out of the pool, once: nothing is lost."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import interrupts


@pytest.mark.timeout(180)
def test_an_interrupt_anywhere_loses_nothing(dsn: str) -> None:
    """Whatever line it comes at, connections, spans, the context and descriptors are as before.

    A tracer goes on, and the thread handles no error any more.
    """
    tracer = sys.gettrace()
    interrupted = interrupts.play(1, dsn)
    assert interrupted.violations == []
    assert interrupted.lines_interrupted > 400
    assert sys.gettrace() is tracer
    assert sys.exc_info() == (None, None, None)
