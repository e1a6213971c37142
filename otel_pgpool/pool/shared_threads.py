"""The threads that all pools of this process share, instrumented ones included: their end."""

from __future__ import annotations

from otel_pgpool.pool import monitors, registry
from otel_pgpool.runtime.deadline import stop_watching


def end_shared_threads(seconds: float = monitors.STOP_WITHIN) -> None:
    """End the threads that no open pool of this process uses.

    Args:
        seconds: time to wait for the threads to end; a monitor may be waiting for its server.
    """
    monitors.stop_unused(seconds)
    if not registry.any_open():
        stop_watching(seconds)
