"""The threads that all pools of this process share, instrumented ones included: their end."""

from __future__ import annotations

from otel_pgpool.pool import monitors, registry
from otel_pgpool.runtime.deadline import stop_watching


def end_shared_threads(seconds: float = monitors.STOP_WITHIN) -> None:
    """End the threads that all pools share, unless a pool of this process is open.

    Args:
        seconds: time to wait for each thread to end; a monitor may be waiting for its server.
    """
    if not registry.any_open():
        monitors.stop(seconds)
        stop_watching(seconds)
