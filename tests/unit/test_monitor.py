"""What the live view shows: log lines as they suit it, and waits only where they are known."""

from __future__ import annotations

import logging

import pytest

from otel_pgpool.demo.live import Monitor


@pytest.mark.parametrize(
    ("logger", "message", "shown"),
    [
        (
            "otel_pgpool",
            "connection held for 1.000 s by thread 'w' (active), checked out at /srv/my-shop/web.py:12 Shop.report",
            "connection held for 1.000 s by thread 'w' (active), checked out at web.py:12 Shop.report",
        ),
        ("otel_pgpool", "no connection within 0.45 s\n  held 1 s by thread 'w'", "no connection within 0.45 s"),
        ("otel_pgpool", "settings at /etc/postgresql/ are odd", "settings at /etc/postgresql/ are odd"),
        ("opentelemetry.exporter.otlp.proto.grpc.exporter", "aborting retry", "OTLP: aborting retry"),
        ("opentelemetry.exporter.otlp.json.file.trace_exporter", "Failed to write", "Failed to write"),
    ],
)
def test_a_record_is_a_short_line(logger: str, message: str, shown: str) -> None:
    """Its first line, without the folders of a place in the program; exporters say which they are."""
    monitor = Monitor(15)
    monitor.emit(logging.makeLogRecord({"name": logger, "msg": message, "levelno": logging.WARNING}))
    assert [str(line) for line in monitor.lines] == [shown]


def test_the_same_record_again_is_counted() -> None:
    """Rather than pushing the others out."""
    monitor = Monitor(15)
    for _ in range(3):
        monitor.emit(logging.makeLogRecord({"name": "otel_pgpool", "msg": "again", "levelno": logging.INFO}))
    assert [str(line) for line in monitor.lines] == ["again (3 times)"]


def test_waits_are_unknown_without_spans() -> None:
    """Rather than none."""
    assert str(Monitor(15).waits) == "p50 -  p99 -"
