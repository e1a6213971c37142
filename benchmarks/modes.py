"""``python -m benchmarks.modes``: measure what span modes and histograms cost, for each kind of pool.

A run of all pools writes the table of docs/operations.md; a run of the named pools only prints it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.__main__ import server, show_progress
from benchmarks.contest import Outcome, play
from benchmarks.span_modes import BARE, ROWS, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = Path(__file__).parents[1] / "docs/operations.md"
BEGIN, END = "<!-- modes -->\n", "<!-- end of modes -->\n"
POOLS = [row.name for row in ROWS]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Iterate over the lines of the table."""
    yield "| spans | histograms | " + " | ".join(f"`{outcome.row.name}`" for outcome in outcomes) + " |"
    yield "| --- | --- |" + " ---: |" * len(outcomes)
    yield "| not observed | | " + " | ".join(f"{median(outcome, BARE):.1f} us" for outcome in outcomes) + " |"
    for setting in SETTINGS:
        mode, choice = setting.split(", ")
        yield f"| `{mode}` | {choice} | " + " | ".join(cell(outcome, setting) for outcome in outcomes) + " |"


def cell(outcome: Outcome, setting: str) -> str:
    """Return the ratio against the bare pool, and the additional time."""
    more = median(outcome, setting) - median(outcome, BARE)
    ratios = [each[setting]["us"] / each[BARE]["us"] for each in outcome.rounds]
    return f"{statistics.median(ratios):.1f} x, {more:+.0f} us"


def median(outcome: Outcome, setting: str) -> float:
    """Return the time of a checkout in microseconds."""
    return statistics.median(each[setting]["us"] for each in outcome.rounds)


def main() -> int:
    """Measure, print, and write the table of a whole run into the page; return 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__)
    parser.add_argument("pools", nargs="*", metavar="POOL", help=f"pools to measure: {', '.join(POOLS)}")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, in which all settings have their turn; default: 5"
    )
    parser.add_argument("--dsn", help="a PostgreSQL to measure on, instead of a throw-away one")
    options = parser.parse_args()
    unknown = [name for name in options.pools if name not in POOLS]
    if unknown or options.rounds < 1:
        parser.error(f"no pool {unknown[0]!r}" if unknown else f"--rounds {options.rounds}: at least 1 is needed")
    rows = [row for row in ROWS if row.name in options.pools or not options.pools]
    with server(options.dsn) as dsn:
        outcomes = [play(row, options.rounds, dsn, show_progress) for row in rows]
        on = machine.describe(dsn)
    show_progress("")
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if failures:
        print(*failures, sep="\n", file=sys.stderr)
        return 1
    measured = f"{on['CPU']}, Python {on['Python']}; rounds: {options.rounds}; {on['libraries']}."
    text = "\n".join([*table(outcomes), "", f"Measured on {measured}", ""])
    print(text)
    if not options.pools:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
