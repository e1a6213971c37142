"""What came of the faults, as docs/reliability.md."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine
from otel_pgpool.demo.postgres import PostgresServer
from tests.chaos import load
from tests.chaos.catalogue import FAULTS
from tests.chaos.findings import findings
from tests.chaos.pools import POOLS
from tests.chaos.scene import MAXCONN, OUTAGE, RETURN, TIMEOUT, WORKERS
from tests.chaos.verdict import GRACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.scene import Fault, Outcome

Outcomes = dict[tuple[str, str], "Outcome | str"]
"""By fault and pool; a word where there is none."""
DOCUMENT = "docs/reliability.md"
ROOT = Path(__file__).parents[2]

HEAD = f"""\
Each fault happens to a real PostgreSQL while {WORKERS} workers insert and commit rows through a pool of {MAXCONN}
connections. Each worker waits up to {TIMEOUT:g} s for a connection. Afterwards, what the application was told is
compared with what the connections saw of their commits and with what the table holds. An error is in doubt if the
connection died before the commit was answered.

While a fault runs, otel_pgpool must keep these invariants:

- No connection has two holders.
- At most {MAXCONN} server processes have a client, those of a forked child not counted. The pool cannot end the
  processes of connections that it has abandoned because they were frozen or busy; the second figure of that column
  includes them.
- No caller waits for a connection for longer than {TIMEOUT + GRACE:g} s.
- No release takes longer than {RETURN + GRACE:g} s, its commit not counted.

Both limits are extended by any time during which the machine itself stalled. Time during which the process was
suspended does not count as waiting. Afterwards:

- The fault has really happened.
- Errors and recovery are within what the columns "allowed" say: the errors of connections that died, timeouts while
  no connection can be made, and {OUTAGE:g} s after that, since the prober pauses for up to 5 s.
- No connection is checked out and no caller waits, every connection can be checked out again, and none leads to an
  old primary.
- Each checkout has begun and ended one span; a span that a broken processor or sampler refuses counts as both.
- No thread and no file descriptor is left.

A connection counts as lost if it cannot be checked out within {TIMEOUT + GRACE:g} s after all work has stopped. A
pool with a longer reconnect delay may still recover it later."""


def in_short(outcome: Outcome | str) -> str:
    """One line."""
    if isinstance(outcome, str):
        return outcome
    good = f"good again after {moment(outcome.first_good)} s"
    return "; ".join([f"errors: {errors_of(outcome)}", good, *outcome.wrongs()])


def write(outcomes: Outcomes, away: float, figures: load.Figures) -> None:
    """Write the document."""
    text = [*head(outcomes), *lines(outcomes, away), "", *load.lines(figures), "", ELSEWHERE]
    (ROOT / DOCUMENT).write_text("\n".join(text))


def head(outcomes: Outcomes) -> Iterator[str]:
    """Say what came of it, what was done, and where."""
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
    """Our pool's table, then all pools beside each other."""
    yield "## What the application saw"
    yield ""
    yield f"Each outage lasts {away:g} s. Times are in seconds. Recovery is the time from the end of the fault until"
    yield "work succeeds again."
    yield ""
    yield (
        "| fault | how | errors | allowed | recovery | allowed | longest wait | longest release | "
        "most server processes / with abandoned ones | connections lost | threads / descriptors left |"
    )
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, fault in FAULTS.items():
        yield f"| {fault.title} | {fault.cause} | {ours(fault, outcomes[name, POOLS[0]])} |"
    yield ""
    yield "## Compared with other pools"
    yield ""
    yield "Each cell has the errors that the application saw / the recovery in seconds / the longest work in seconds,"
    yield "from request to release / the connections lost. If there is no error and the work took 10 s, a worker hung:"
    yield "the other pools bound neither a check of a connection nor a release. No pool bounds a statement in progress."
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

- the system's clock steps by an hour, back and forward: `tests/chaos/test_clock.py`;
- `fork` and `spawn` of multiprocessing, a child that ends like a program, and a grandchild:
  `tests/integration/test_fork.py`;
- the interpreter exits with connections checked out, waiting threads and unfinished generators; `close()` with waiters
  and holders: `tests/chaos/test_dropped.py`;
- an observable callback raises, and lost telemetry is reported: `tests/chaos/test_telemetry.py`;
- hostile option values, DSNs and names, and passwords in unusual places, with a search of everything that was
  emitted: `tests/hostile/test_hostile_input.py`.
"""


def ours(fault: Fault, outcome: Outcome | str) -> str:
    """Return the cells of a fault in the table of otel_pgpool."""
    if isinstance(outcome, str):
        return f"{outcome} | | | | | | | |"
    allowed = f"{fault.errors}, timeouts" if fault.shut_out else f"{fault.errors}"
    return (
        f"{errors_of(outcome)} | {allowed} | {moment(outcome.first_good)} | {fault.within:g} | "
        f"{outcome.longest_wait:.3f} | {outcome.longest_return:.3f} | "
        f"{outcome.most_backends} / {outcome.most_backends_at_all} | {outcome.lost} | "
        f"{outcome.threads} / {outcome.descriptors}"
    )


def errors_of(outcome: Outcome) -> str:
    """By SQLSTATE or name."""
    errors = ", ".join(f"{number} {name}" for name, number in sorted(outcome.errors.items())) or "none"
    return errors + (f" ({outcome.in_doubt} in doubt)" if outcome.in_doubt else "")


def moment(seconds: float | None) -> str:
    """Or never."""
    return "never" if seconds is None else f"{seconds:.3f}"


def cell(outcome: Outcome | str) -> str:
    """Errors, time, losses."""
    if isinstance(outcome, str):
        return outcome
    good = moment(outcome.first_good)
    text = f"{sum(outcome.errors.values())} / {good} / {outcome.longest_work:.1f} / {outcome.lost}"
    hung = f", {outcome.hung} workers hung" if outcome.hung else ""
    return text + hung + "".join(f", {note}" for note in outcome.notes)
