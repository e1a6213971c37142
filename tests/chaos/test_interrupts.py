"""An interrupt at every line of a checkout and its release, once: nothing is lost."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import interrupts


@pytest.mark.timeout(180)
@pytest.mark.parametrize("names", ["off", "trace"])
def test_an_interrupt_anywhere_loses_nothing(dsn: str, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each interrupt, connections, spans, the context and descriptors are as before.

    No idle session keeps the name of a checkout's trace, if checkouts name their sessions.

    Afterwards, the former tracer is active again, and the thread handles no error.
    """
    monkeypatch.setenv("OTEL_PGPOOL_APPLICATION_NAME", names)
    tracer = sys.gettrace()
    interrupted = interrupts.play(1, dsn)
    assert interrupted.violations == []
    assert interrupted.lines_interrupted > 400
    assert sys.gettrace() is tracer
    assert sys.exc_info() == (None, None, None)
