"""Texts by which the pool and the SDK report that telemetry is lost."""

from __future__ import annotations

LOST = "telemetry is lost"
EXPORT_FAILED, QUEUE_FULL = "Exception while exporting", "Queue full, dropping"
CALLBACK_FAILED = "Callback failed for instrument"
PERIOD = 20
"""Seconds of the system's clock in which the SDK's batch processors do not report the same twice in a row."""
