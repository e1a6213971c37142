"""What one run of a scenario measured, and the files that keep it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MEASURED = Path(__file__).with_name("measured")
REAL, SIMULATED = "real", "simulated"


@dataclass(frozen=True)
class Figures:
    """The figures of one run. Times are in seconds."""

    scenario: str
    source: str
    """`REAL` or `SIMULATED`."""
    processes: int
    seed: int
    served: int
    """Checkouts that got a connection and did their work."""
    failed: dict[str, int]
    """Checkouts that did not, by the name of the error."""
    wait_p50: float
    wait_p99: float
    recovery: float | None
    """From the end of the disturbance until every process has served again; None if there was no outage."""
    logins_peak: int
    """The most connects that processes made at PgBouncer within one second, after the start of the load."""
    server_connects_peak: int
    """The most connects at PostgreSQL within one second, after the start of the load."""
    server_connections: int
    """The most connections at PostgreSQL at one moment."""
    fairness: float
    """Jain's index of the checkouts served for each process: 1 if each was served the same number.

    The one process that leaks or floods is left out.
    """
    memory: float | None = None
    """MiB of one process (proportional set size), the median. Only for real processes."""
    threads: int | None = None
    """Threads of one process at the end, the median. Only for real processes."""


def peak(moments: Iterable[float], begin: float, end: float = math.inf) -> int:
    """Return the most of some moments, between two others, that lie within one second."""
    inside = sorted(moment for moment in moments if begin <= moment <= end)
    most = first = 0
    for last, moment in enumerate(inside):
        while inside[first] <= moment - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def fairness(served: Collection[int]) -> float:
    """Return Jain's index of the checkouts served for each process: 1 if each was served the same number."""
    return sum(served) ** 2 / (len(served) * sum(count * count for count in served))


def save(part: str, figures: list[Figures], **about: object) -> Path:
    """Write the figures of a part, with what is to be known about the run; return the file."""
    path = MEASURED / f"{part}.json"
    path.write_text(json.dumps({"about": about, "figures": [asdict(each) for each in figures]}, indent=2) + "\n")
    return path


def load(part: str) -> list[Figures]:
    """Return the figures of a part."""
    return [Figures(**each) for each in json.loads((MEASURED / f"{part}.json").read_text())["figures"]]
