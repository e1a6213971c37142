"""The results of the faults, as docs/reliability.md."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine
from otel_pgpool.demo.postgres import PostgresServer
from tests.chaos import load
from tests.chaos.catalogue import FAULTS
from tests.chaos.pools import POOLS
from tests.chaos.runner import GRACE, MAXCONN, OUTAGE, RELEASE, TIMEOUT, WORKERS, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.chaos.runner import Fault


Outcomes = dict[tuple[str, str], "Outcome | str"]
"""Outcomes by fault and pool; a text if there is none."""
DOCUMENT = "docs/reliability.md"
ROOT = Path(__file__).parents[2]
OURS = POOLS[0]

HEAD = f"""\
Each fault happens to a real PostgreSQL while {WORKERS} workers insert and commit rows through a pool of {MAXCONN}
connections. Each worker waits up to {TIMEOUT:g} s for a connection. Afterwards, the results that the application got
are compared with the results of the commits on the connections, and with the rows in the table. An error is in doubt
if the connection died before the commit was answered.

While a fault runs, otel_pgpool must keep these invariants:

- No connection has two holders.
- At most {MAXCONN} backends have a client, without those of a forked child. The pool cannot end the backends that it
  has abandoned because they were frozen or busy; the second figure of that column includes them.
- No caller waits for a connection for longer than {TIMEOUT + GRACE:g} s.
- No release takes longer than {RELEASE + GRACE:g} s, without its commit.

Both limits are extended by the time for which the machine itself stalled. The time for which the process was
suspended does not count as waiting. The following has to be true afterwards:

- The fault has really happened.
- Errors and recovery do not exceed the columns "allowed": one error for each connection that died, timeouts while no
  connection can be made, and {OUTAGE:g} s after that, because the retry thread pauses for up to 5 s.
- No connection is checked out and no caller waits, every connection can be checked out again, and none leads to an
  old primary.
- Each checkout has begun and ended one span; a span that a broken processor or sampler prevents counts as both.
- Neither a thread nor a file descriptor is left.

A connection counts as lost if it cannot be checked out within {TIMEOUT + GRACE:g} s after all work has stopped. A
pool with a longer reconnect delay may still recover it later."""


def in_short(outcome: Outcome | str) -> str:
    """Return an outcome in one line."""
    if isinstance(outcome, str):
        return outcome
    good = f"work succeeded again after {in_seconds(outcome.first_good)} s"
    return "; ".join([f"errors: {errors_of(outcome)}", good, *outcome.failures()])


def write(outcomes: Outcomes, away: float, figures: load.Figures) -> None:
    """Write the document."""
    text = [*head(outcomes), *lines(outcomes, away), "", *load.lines(figures), "", ELSEWHERE]
    (ROOT / DOCUMENT).write_text("\n".join(text))


def head(outcomes: Outcomes) -> Iterator[str]:
    """Return the findings, the method and the machine."""
    yield "# Reliability"
    yield ""
    yield f"Written by `make faults` on {datetime.now(timezone.utc):%d %B %Y}."
    yield ""
    yield "## Findings"
    yield ""
    yield from findings(outcomes)
    yield ""
    yield "## How it was measured"
    yield ""
    with PostgresServer() as server:
        yield from (f"- {what}: {which}" for what, which in machine.describe(server.dsn).items())
    yield ""
    yield HEAD
    yield ""


def lines(outcomes: Outcomes, away: float) -> Iterator[str]:
    """Return the table of our pool, then the table of all pools."""
    yield "## What the application saw"
    yield ""
    yield f"Each outage lasts {away:g} s. Times are in seconds. Recovery is the time from the end of the fault until"
    yield "work succeeds again."
    yield ""
    yield (
        "| fault | how | errors | allowed | recovery | allowed | longest wait | longest release | "
        "most backends / including abandoned ones | connections lost | threads / descriptors left |"
    )
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, fault in FAULTS.items():
        yield f"| {fault.title} | {fault.cause} | {own_cells(fault, outcomes[name, POOLS[0]])} |"
    yield ""
    yield "## Compared with other pools"
    yield ""
    yield "Each cell has the number of errors that the application saw / the recovery in seconds / the longest work in"
    yield "seconds, from request to release / the connections lost. If there is no error and the work took 10 s, a"
    yield "worker hung: the other pools limit neither a check of a connection nor a release. No pool limits a"
    yield "statement."
    yield ""
    yield "The pool of psycopg2 cannot wait, so its callers try again every millisecond. psycopg_pool checks each"
    yield "connection before it hands it out (`check`)."
    yield ""
    yield f"| fault | {' | '.join(POOLS)} |"
    yield f"| --- | {' | '.join('---' for _ in POOLS)} |"
    for name, fault in FAULTS.items():
        if fault.ours_alone:
            continue
        yield f"| {fault.title} | {' | '.join(cell(outcomes[name, pool]) for pool in POOLS)} |"


ELSEWHERE = """## Without figures

These are checked by tests only, all of them in `make test`:

- the system's clock is set back and forward by an hour: `tests/chaos/test_clock.py`;
- `fork` and `spawn` of multiprocessing, a child that ends like a program, and a grandchild:
  `tests/integration/test_fork.py`;
- the interpreter exits with connections checked out, waiting threads and unfinished generators; `close()` with waiters
  and holders: `tests/chaos/test_dropped.py`;
- an observable callback raises, and lost telemetry is reported: `tests/chaos/test_telemetry.py`;
- hostile values of options, DSNs and names, and passwords in unusual places; all telemetry is searched for the
  passwords: `tests/hostile/test_hostile_input.py`.
"""


def own_cells(fault: Fault, outcome: Outcome | str) -> str:
    """Return the cells of a fault in the table of otel_pgpool."""
    if isinstance(outcome, str):
        return f"{outcome} | | | | | | | |"
    allowed = f"{fault.errors}, timeouts" if fault.shut_out else f"{fault.errors}"
    return (
        f"{errors_of(outcome)} | {allowed} | {in_seconds(outcome.first_good)} | {fault.within:g} | "
        f"{outcome.longest_wait:.3f} | {outcome.longest_release:.3f} | "
        f"{outcome.most_backends} / {outcome.most_backends_at_all} | {outcome.lost} | "
        f"{outcome.threads} / {outcome.descriptors}"
    )


def errors_of(outcome: Outcome) -> str:
    """Return the errors by SQLSTATE or name."""
    errors = ", ".join(f"{number} {name}" for name, number in sorted(outcome.errors.items())) or "none"
    return errors + (f" ({outcome.in_doubt} in doubt)" if outcome.in_doubt else "")


def in_seconds(seconds: float | None) -> str:
    """Return seconds as text, or never."""
    return "never" if seconds is None else f"{seconds:.3f}"


def cell(outcome: Outcome | str) -> str:
    """Return the cell of an outcome: errors, times, losses."""
    if isinstance(outcome, str):
        return outcome
    good = in_seconds(outcome.first_good)
    text = f"{sum(outcome.errors.values())} / {good} / {outcome.longest_work:.1f} / {outcome.lost}"
    hung = f", {outcome.hung} workers hung" if outcome.hung else ""
    return text + hung + "".join(f", {note}" for note in outcome.notes)


def errors(outcome: Outcome) -> str:
    """Count the errors that the application saw."""
    return f"{sum(outcome.errors.values()):,}"


def recovery(outcome: Outcome) -> str:
    """Return when work first succeeded after the end of the fault."""
    return "never" if outcome.first_good is None else f"{outcome.first_good:.3f} s"


def longest_work(outcome: Outcome) -> str:
    """Return how long the longest piece of work took."""
    return f"{outcome.longest_work:.1f} s"


def child_work(outcome: Outcome) -> str:
    """Return the result of the forked child's work."""
    return ", ".join(note.removeprefix("the child ") for note in outcome.notes) or "succeeded"


COMPARED: tuple[tuple[str, str, str, Callable[[Outcome], str]], ...] = (
    ("idle-killed", "every idle backend is killed", "errors", errors),
    ("stopped-fast", "PostgreSQL restarts, and callers try again", "errors", errors),
    ("demotion", "the primary becomes read-only while its sessions continue", "time until work succeeds", recovery),
    ("return-frozen", "two of four backends freeze", "longest piece of work", longest_work),
    ("forked-holding", "the program forks while connections are in use", "the child's work", child_work),
)
"""Fault, what happens, what is compared, how to read it from an outcome."""
TELEMETRY = ("collector-", "exporter-", "processor-", "start-", "sampler-", "queue-")
"""The first parts of the names of the faults of telemetry."""


def findings(outcomes: Mapping[tuple[str, str], Outcome | str]) -> Iterator[str]:
    """Return the most important results as sentences and one small table."""
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
        cells = (read_or_word(outcomes[name, pool], read) for pool in POOLS)
        yield f"| {what} | {compared} | {' | '.join(cells)} |"


def recovered(outcome: Outcome | str) -> bool:
    """Return whether the pool works again and nothing is left."""
    if isinstance(outcome, str) or outcome.first_good is None:
        return False
    return not (outcome.lost or outcome.hung or outcome.threads or outcome.descriptors)


def violations(outcome: Outcome | str) -> list[str]:
    """List the invariants that were not kept."""
    return [] if isinstance(outcome, str) else outcome.violations


def read_or_word(outcome: Outcome | str, read: Callable[[Outcome], str]) -> str:
    """Return a figure of an outcome, or the text in its place."""
    return f"({outcome})" if isinstance(outcome, str) else read(outcome)
