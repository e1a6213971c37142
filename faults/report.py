"""What came of the faults, as docs/reliability.md."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine
from faults import load
from faults.catalogue import FAULTS
from faults.pools import POOLS
from faults.scene import MAXCONN, OUTAGE, RETURN, TIMEOUT, WORKERS
from faults.verdict import GRACE
from otel_pgpool.cli.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.scene import Fault, Outcome

Outcomes = dict[tuple[str, str], "Outcome | str"]
"""By fault and pool; a word where there is none."""
DOCUMENT = "docs/reliability.md"
ROOT = Path(__file__).parents[1]

HEAD = f"""\
Every fault happens to a real PostgreSQL while {WORKERS} workers insert and commit rows through a pool of {MAXCONN}
connections, each waiting up to {TIMEOUT:g} s for one. What the application was told is then compared with what the
connections saw of their commits and with what the table holds. An error is in doubt where the connection died before
the commit's answer.

All the time it is checked of our pool

- that no connection has two holders,
- that no more than {MAXCONN} server processes have a client, those of a forked child apart; the pool cannot end those
  that it has cut loose, as they were frozen or at work: the second figure of the column counts them too,
- that nobody waits for a connection for longer than {TIMEOUT + GRACE:g} s,
- that no return takes longer than {RETURN + GRACE:g} s, its commit apart.

To either time is added what the machine stood still; of a process that is suspended, waits are counted without the
suspension. Afterwards it is checked

- that the fault was met,
- that errors and first good work stay within what stands beside them as allowed: the errors of connections that died,
  timeouts where no connection can be made, and {OUTAGE:g} s after that, as the prober pauses for up to 5 s,
- that nothing is out or waiting, that every connection can be had again, and none is left on an old primary,
- that each checkout has begun and ended one span; one that a broken processor or sampler refuses counts as both,
- that no thread and no file descriptor is left.

A connection is lost that cannot be had within {TIMEOUT + GRACE:g} s when all work has ended; a pool that pauses for
longer between its attempts to connect may make it yet."""


def in_short(outcome: Outcome | str) -> str:
    """One line."""
    if isinstance(outcome, str):
        return outcome
    good = f"good again after {moment(outcome.first_good)} s"
    return "; ".join([f"errors: {errors_of(outcome)}", good, *outcome.wrongs()])


def write(outcomes: Outcomes, away: float, figures: load.Figures) -> None:
    """Write the document."""
    text = [*head(), *lines(outcomes, away), "", *load.lines(figures), "", ELSEWHERE]
    (ROOT / DOCUMENT).write_text("\n".join(text))


def head() -> Iterator[str]:
    """Return the beginning of the report: what was done, and on which machine."""
    yield "# Reliability"
    yield ""
    yield f"Written by `make faults` on {datetime.now(timezone.utc):%d %B %Y}."
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
    yield f"What goes away is away for {away:g} s. Times are in seconds; the first good work's is from the mending on."
    yield ""
    yield (
        "| fault | how | errors | allowed | first good work | allowed | longest wait | longest return | "
        "most backends / at all | connections lost | threads / descriptors left |"
    )
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, fault in FAULTS.items():
        yield f"| {fault.title} | {fault.cause} | {ours(fault, outcomes[name, POOLS[0]])} |"
    yield ""
    yield "## Beside other pools"
    yield ""
    yield "Errors in the application / seconds to the first good work / the longest work in seconds, from request to"
    yield "return / connections lost. Where there is no error and 10 s of work, a worker hung: the other pools bound"
    yield "neither a look at a connection nor a return. No pool bounds a statement under way."
    yield ""
    yield "The stock pool, which cannot wait, is asked again every millisecond; psycopg_pool looks at each connection"
    yield "before it lends it (`check`)."
    yield ""
    yield f"| fault | {' | '.join(POOLS)} |"
    yield f"| --- | {' | '.join('---' for _ in POOLS)} |"
    for name, fault in FAULTS.items():
        if fault.ours_alone:
            continue
        yield f"| {fault.title} | {' | '.join(cell(outcomes[name, pool]) for pool in POOLS)} |"


ELSEWHERE = """## Without figures

These are shown by tests alone, each of which is part of `make test`:

- the time of day, as Python tells it, stepping by an hour, back and on: `tests/faults/test_clock.py`;
- `fork` and `spawn` of multiprocessing, a child that ends like a program, and a grandchild:
  `tests/integration/test_fork.py`;
- the interpreter's exit with connections out, threads waiting and generators unfinished, and `close()` with waiters and
  holders: `tests/faults/test_dropped.py`;
- an observable callback that raises, and what is said of telemetry that is lost: `tests/faults/test_telemetry.py`;
- option values, DSNs and names that are hostile, and passwords in odd places, with a search of everything that was
  emitted: `tests/faults/test_hostile_input.py`.
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
