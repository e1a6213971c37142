"""The findings that docs/reliability.md begins with: what matters most of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.catalogue import FAULTS
from tests.chaos.pools import POOLS
from tests.chaos.scene import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OURS = POOLS[0]


def errors(outcome: Outcome) -> str:
    """Count the errors that the application saw."""
    return f"{sum(outcome.errors.values()):,}"


def recovery(outcome: Outcome) -> str:
    """Say when the first work succeeded after the end of the fault."""
    return "never" if outcome.first_good is None else f"{outcome.first_good:.3f} s"


def longest_work(outcome: Outcome) -> str:
    """Say how long the longest piece of work took."""
    return f"{outcome.longest_work:.1f} s"


def child(outcome: Outcome) -> str:
    """Say what came of the forked child's work."""
    return ", ".join(note.removeprefix("the child ") for note in outcome.notes) or "succeeded"


COMPARED: tuple[tuple[str, str, str, Callable[[Outcome], str]], ...] = (
    ("idle-killed", "PostgreSQL ends every idle connection", "errors", errors),
    ("stopped-fast", "PostgreSQL restarts, and callers try again", "errors", errors),
    ("demotion", "the primary becomes read-only while its sessions live", "time until work succeeds", recovery),
    ("return-frozen", "two of four server processes freeze", "longest piece of work", longest_work),
    ("forked-holding", "the program forks while connections are in use", "the child's work", child),
)
"""Fault, what happens, what is compared, how to read it from an outcome."""
TELEMETRY = ("collector-", "exporter-", "processor-", "start-", "sampler-", "queue-")
"""What the names of the faults of telemetry begin with."""


def findings(outcomes: Mapping[tuple[str, str], Outcome | str]) -> Iterator[str]:
    """Write what matters most as sentences and one small table."""
    ours = {name: outcomes[name, OURS] for name in FAULTS}
    kept = sum(recovered(outcome) for outcome in ours.values())
    yield f"- After {kept} of {len(FAULTS)} faults, otel_pgpool worked again, had every connection, and had left"
    yield "  neither a thread nor a file descriptor."
    of_telemetry = [outcome for name, outcome in ours.items() if name.startswith(TELEMETRY)]
    seen = sum(sum(outcome.errors.values()) for outcome in of_telemetry if isinstance(outcome, Outcome))
    yield f"- Telemetry failed in {len(of_telemetry)} ways. The application saw {seen} errors."
    for name, outcome in ours.items():
        yield from (f"- Violated: {FAULTS[name].title}: {wrong}." for wrong in violations(outcome))
    yield ""
    yield f"| what happens | compared | {' | '.join(POOLS)} |"
    yield f"| --- | --- | {' | '.join('---' for _ in POOLS)} |"
    for name, what, compared, read in COMPARED:
        cells = (say(outcomes[name, pool], read) for pool in POOLS)
        yield f"| {what} | {compared} | {' | '.join(cells)} |"


def recovered(outcome: Outcome | str) -> bool:
    """Whether the pool works again and nothing is left behind."""
    if isinstance(outcome, str) or outcome.first_good is None:
        return False
    return not (outcome.lost or outcome.hung or outcome.threads or outcome.descriptors)


def violations(outcome: Outcome | str) -> list[str]:
    """List the invariants that were not kept."""
    return [] if isinstance(outcome, str) else outcome.violations


def say(outcome: Outcome | str, read: Callable[[Outcome], str]) -> str:
    """Read an outcome, if there is one."""
    return f"({outcome})" if isinstance(outcome, str) else read(outcome)
