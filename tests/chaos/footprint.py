"""What this process takes up: threads, file descriptors, memory. On Linux, which tells it in /proc."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

STATUS, DESCRIPTORS = Path("/proc/self/status"), Path("/proc/self/fd")


@dataclass(frozen=True)
class Footprint:
    """At one moment."""

    threads: int
    """The system's count, not Python's alone."""
    descriptors: int
    resident: float
    """MB of memory."""

    @classmethod
    def now(cls) -> Footprint:
        """Take it."""
        status = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return cls(
            threads=int(status["Threads"]),
            descriptors=sum(1 for _ in DESCRIPTORS.iterdir()) - 1,  # one is for the listing
            resident=int(status["VmRSS"].split()[0]) / 1024,
        )


def at_rest(before: Footprint, patience: float = 3.0) -> Footprint:
    """Return the process's footprint once it equals the earlier one, or after ``patience`` seconds."""
    deadline = monotonic() + patience
    while True:
        after = Footprint.now()
        if (after.threads <= before.threads and after.descriptors <= before.descriptors) or monotonic() > deadline:
            return after
        time.sleep(0.01)


def give_back() -> None:
    """Let the allocator return to the system what nobody uses, where it can: many threads leave it full of holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
