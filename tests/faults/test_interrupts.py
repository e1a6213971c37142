"""Ctrl-C at every line of the ways in and out of the pool, once: nothing is lost."""

from __future__ import annotations

from faults import interrupts


def test_an_interrupt_anywhere_loses_nothing(dsn: str) -> None:
    """Whatever line it comes at, all connections can be had again, and nothing is out or waiting."""
    struck = interrupts.play(1, dsn)
    assert struck.violations == []
    assert struck.lines_struck > 150
