"""Measured costs of the telemetry of a fleet. Tests compare them with the pages that have the measurements."""

from __future__ import annotations

EXPORT_SECONDS = 60
"""Seconds between two exports of a process's metrics."""
SERIES = {"classic": 57, "native": 19}
"""Series of a process with one pool at work, ``target_info`` among them, by the kind of its histograms."""
MEMORY = {"classic": (60, 0.09), "native": (60, 0.0525)}
"""MB of a Prometheus without processes, and for each: the line to the 2,000 of docs/operations.md."""
GATEWAY_CHECKOUTS = 10_000
"""Checkouts a second that one core of a gateway judges and passes on: collector-config/README.md."""
AGENT_CHECKOUTS = 20_000
"""Checkouts a second that one core of a Collector strips and passes on: collector-config/README.md."""
SPANS_A_CHECKOUT = 2.1
"""Spans of a checkout: itself, one query, and for every tenth a wait."""
