"""Runs the rounds of a row: each measurement in a process of its own, the contestants in turn."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.row import Round, Row

PATIENCE = 120.0
FOREIGN = ("OTEL_", "PG", "DB_CONNECTION_")
"""Prefixes of variables that would change what is measured."""


class MeasureError(Exception):
    """A measurement failed or did not end in time."""


@dataclass
class Outcome:
    """The results of a row's rounds."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def play(row: Row, rounds: int, dsn: str, show_progress: Callable[[str], None]) -> Outcome:
    """Run the rounds of one row. A failed measurement is recorded, and the others continue."""
    outcome = Outcome(row)
    teams = [list(row.contestants)] if row.together else [[name] for name in row.contestants]
    for number in range(rounds):
        played: Round = {}
        for team in teams:
            show_progress(f"{row.name}: round {number + 1} of {rounds}, {', '.join(team)}")
            try:
                played |= in_own_process(row, team, dsn)
            except MeasureError as error:
                outcome.failures.append(f"round {number + 1}, {', '.join(team)}: {error}")
        outcome.rounds.append(played)
    return outcome


def in_own_process(row: Row, contestants: Sequence[str], dsn: str) -> Round:
    """Measure in a process of its own, so that one contestant's threads and imports do not affect another."""
    command = [sys.executable, "-m", "benchmarks.contest", row.module, row.name, *contestants]
    environment = {name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and names from the table
            command, input=dsn, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        message = f"not done after {PATIENCE:g} s"
        raise MeasureError(message) from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise MeasureError(last[0])
    played: Round = json.loads(done.stdout.splitlines()[-1])
    return played


class LoggedErrors(logging.Handler):
    """A log handler that stores the pool's first error, which makes the measurement invalid."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.first = self.first or f"the pool logged: {record.getMessage()} {error!r}"


def main() -> None:
    """Measure the contestants on the command line, on the server whose DSN is on standard input."""
    module, name, *contestants = sys.argv[1:]
    dsn = sys.stdin.read()
    logged = LoggedErrors()
    logging.getLogger("otel_pgpool").addHandler(logged)
    [row] = [row for row in importlib.import_module(module).ROWS if row.name == name]
    try:
        print(json.dumps(row.measure(contestants, dsn)))
    finally:
        if logged.first:
            sys.exit(logged.first)


if __name__ == "__main__":
    main()
