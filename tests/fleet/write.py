"""``python -m tests.fleet write``: write docs/fleet.md from the measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fleet.figures import MEASURED, load
from tests.fleet.telemetry_section import section

if TYPE_CHECKING:
    from tests.fleet.figures import Figures

DOCUMENT = Path(__file__).parents[2] / "docs" / "fleet.md"
HEAD = Path(__file__).with_name("head.md")
COLUMNS = (
    "Scenario",
    "Served",
    "Failed",
    "Wait p50, ms",
    "Wait p99, ms",
    "All served again after, s",
    "Logins at PgBouncer, most in 1 s",
    "Connects at PostgreSQL, most in 1 s",
    "Connections at PostgreSQL, most",
    "Fairness",
    "MiB of a process",
    "Threads of a process",
)


def document() -> str:
    """Return the document."""
    return f"{HEAD.read_text()}\n{_real()}\n{section()}"


def _real() -> str:
    about = json.loads((MEASURED / "real.json").read_text())["about"]
    figures = load("real")
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(_row, figures)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""\
## Real processes

`{about["command"]}` measured these figures with {figures[0].processes} processes, {about["PgBouncer"]} and
{about["CPUs"]} CPUs for all of it; seed {figures[0].seed}. `make fleet` measures them again.

{table}

- The connections at PostgreSQL are counted in `pg_stat_activity` every 50 ms. The run fails if they pass the budget
  of 40.
- Fairness is Jain's index of the checkouts served for each process, 1 if each was served the same number. The one
  process that leaks or floods is left out, from the waits too.
- Memory is the median proportional set size of a process. The processes are forked from one that has imported the
  package.
"""


def _row(each: Figures) -> tuple[str, ...]:
    failed = ", ".join(f"{count:,} `{name}`" for name, count in each.failed.items()) or "0"
    recovery = "" if each.recovery is None else f"{each.recovery:.1f}"
    return (
        each.scenario,
        f"{each.served:,}",
        failed,
        f"{each.wait_p50 * 1e3:.1f}",
        f"{each.wait_p99 * 1e3:.0f}",
        recovery,
        f"{each.logins_peak:,}",
        f"{each.server_connects_peak:,}",
        str(each.server_connections),
        f"{each.fairness:.3f}",
        "" if each.memory is None else f"{each.memory:.1f}",
        str(each.threads or ""),
    )


def main(_arguments: list[str]) -> int:
    """Write the document."""
    DOCUMENT.write_text(document())
    return 0
