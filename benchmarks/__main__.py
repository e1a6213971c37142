"""``python -m benchmarks``: measure all rows and write RESULTS.md, or measure the named rows and only print them."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from benchmarks import machine, report
from benchmarks.contest import play
from benchmarks.table import ROWS
from otel_pgpool.demo.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.row import Row

RESULTS = Path(__file__).with_name("RESULTS.md")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to measure; without any, all")
    parser.add_argument("--rounds", type=int, help="rounds of each row, instead of its own number")
    parser.add_argument("--dsn", help="a PostgreSQL to measure on, instead of a throw-away one")
    parser.add_argument("--list", action="store_true", help="list the rows, and measure nothing")
    options = parser.parse_args(arguments)
    known = [row.name for row in ROWS]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1 is needed")
    return options


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """Yield the DSN given, or that of a PostgreSQL that lives as long as the run."""
    if dsn:
        yield dsn
        return
    with PostgresServer() as postgres:
        yield make_dsn(postgres.dsn, host=postgres.socket_dir)


def main() -> int:
    """Measure, print, and write the results of a whole run."""
    options = parse()
    if options.list:
        for row in ROWS:
            print(f"{row.name:16} {row.work}")
        return 0
    rows = [row for row in ROWS if row.name in options.names or not options.names]
    return run(rows, options.rounds, options.dsn, save=not options.names)


def run(rows: Sequence[Row], rounds: int | None, dsn: str | None, *, save: bool) -> int:
    """Measure the rows; return 1 if a measurement failed, and 0 otherwise, even if a target was missed."""
    began = time.monotonic()
    with server(dsn) as at:
        outcomes = [play(row, rounds or row.rounds, at, show_progress) for row in rows]
        text = report.document(outcomes, machine.describe(at))
    show_progress("")
    print(text)
    if save:
        RESULTS.write_text(text)
        print(f"Written to {RESULTS.parent.name}/{RESULTS.name}.")
    print(f"{report.missed(outcomes)} targets missed; {time.monotonic() - began:.0f} s.")
    return int(any(outcome.failures for outcome in outcomes))


def show_progress(text: str) -> None:
    """Print the present step: on a terminal always in the same line, otherwise in a line of its own."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
