"""The limits for records about failed exports."""

from __future__ import annotations

import logging

from otel_pgpool.otlp.logs import MAX_REMEMBERED, RateLimitFilter
from otel_pgpool.runtime.text import LONGEST_TEXT


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("sdk", logging.ERROR, __file__, 1, "export failed: %s", (text,), None)


def test_a_record_passes_once_a_minute() -> None:
    """Another record passes beside it."""
    limit = RateLimitFilter()
    assert [limit.filter(record(text)) for text in ("a", "a", "b")] == [True, False, True]


def test_records_that_are_all_different_do_not_accumulate() -> None:
    """Each passes, and the oldest are dropped."""
    limit = RateLimitFilter()
    assert all(limit.filter(record(f"answer {number}")) for number in range(3 * MAX_REMEMBERED))
    assert limit.filter(record("x" * 1_000_000))
    assert len(limit._next) <= MAX_REMEMBERED
    assert max(len(text) for key in limit._next for text in key) <= LONGEST_TEXT
