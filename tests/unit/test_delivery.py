"""What is said of failed exports, and how often."""

from __future__ import annotations

import logging

from otel_pgpool.otlp.delivery import MOST_KEPT, OnceAWhile
from otel_pgpool.runtime.text import LONGEST_TEXT


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("sdk", logging.ERROR, __file__, 1, "export failed: %s", (text,), None)


def test_a_record_passes_once_a_minute() -> None:
    """Another record passes beside it."""
    once = OnceAWhile()
    assert [once.filter(record(text)) for text in ("a", "a", "b")] == [True, False, True]


def test_records_that_are_all_different_do_not_accumulate() -> None:
    """Each passes, and the oldest are forgotten."""
    once = OnceAWhile()
    assert all(once.filter(record(f"answer {number}")) for number in range(3 * MOST_KEPT))
    assert once.filter(record("x" * 1_000_000))
    assert len(once._next) <= MOST_KEPT
    assert max(len(text) for said in once._next for text in said) <= LONGEST_TEXT
