"""What the view of a running demo shows: log lines as they suit it."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from otel_pgpool.demo.live import View


def shown(*records: tuple[str, str]) -> list[str]:
    """Return the lines that a view prints of records, given by logger and message, without their time."""
    console = Console(file=io.StringIO(), width=100)
    view = View(console, 15)
    for logger, message in records:
        view.emit(logging.makeLogRecord({"name": logger, "msg": message, "levelname": "WARNING"}))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.removeprefix("  0.0 s  warning: ") for line in text.splitlines()]


@pytest.mark.parametrize(
    ("logger", "message", "expected"),
    [
        (
            "otel_pgpool",
            "connection held for 1.000 s (pid 1) by thread 'w' (active), checked out at /srv/a-b/web.py:12 Shop.report",
            "connection held for 1.000 s (pid 1) by thread 'w' (active), checked out at web.py:12 Shop.report",
        ),
        (
            "otel_pgpool",
            "checked out at /srv/shop/web.py:1 f, in the database: active, of pid 2 (checked out at /srv/pay.py:2 g)",
            "checked out at web.py:1 f, in the database: active, of pid 2 (checked out at pay.py:2 g)",
        ),
        ("otel_pgpool", "no connection within 0.45 s\n  held 1 s by thread 'w'", "no connection within 0.45 s"),
        ("otel_pgpool", "settings at /etc/postgresql/ are odd", "settings at /etc/postgresql/ are odd"),
        ("opentelemetry.exporter.otlp.proto.grpc.exporter", "aborting retry", "OTLP: aborting retry"),
        ("opentelemetry.exporter.otlp.json.file.trace_exporter", "Failed to write", "Failed to write"),
    ],
)
def test_a_record_is_a_short_line(logger: str, message: str, expected: str) -> None:
    """Its first line, without the folders of a place in the program; exporters say which they are."""
    assert shown((logger, message)) == [expected]


def test_the_same_record_again_is_not_shown() -> None:
    """Until there is another one."""
    again, other = ("otel_pgpool", "again"), ("otel_pgpool", "other")
    assert shown(again, again, other, again) == ["again", "other", "again"]
