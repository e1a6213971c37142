"""Plays the rounds: each measurement in a process of its own, the contestants in turn, round after round."""

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
    """A measurement did not come to its end."""


@dataclass
class Outcome:
    """What a row's rounds gave."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def play(row: Row, rounds: int, dsn: str, tell: Callable[[str], None]) -> Outcome:
    """Play the rounds of one row. A measurement that fails is noted, and the row goes on."""
    outcome = Outcome(row)
    teams = [list(row.contestants)] if row.together else [[name] for name in row.contestants]
    for number in range(rounds):
        played: Round = {}
        for team in teams:
            tell(f"{row.name}: round {number + 1} of {rounds}, {', '.join(team)}")
            try:
                played |= in_own_process(row, team, dsn)
            except MeasureError as error:
                outcome.failures.append(f"round {number + 1}, {', '.join(team)}: {error}")
        outcome.rounds.append(played)
    return outcome


def in_own_process(row: Row, contestants: Sequence[str], dsn: str) -> Round:
    """Measure in a fresh interpreter, so that no contestant's threads or imports disturb another's."""
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


class Complaints(logging.Handler):
    """Errors that the pool logs: a pool that is not well is not worth measuring."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.first = self.first or f"the pool logged: {record.getMessage()} {error!r}"


def main() -> None:
    """Measure what the command line says, against the server named on standard input."""
    module, name, *contestants = sys.argv[1:]
    dsn = sys.stdin.read()
    complaints = Complaints()
    logging.getLogger("otel_pgpool").addHandler(complaints)
    [row] = [row for row in importlib.import_module(module).ROWS if row.name == name]
    try:
        print(json.dumps(row.measure(contestants, dsn)))
    finally:
        if complaints.first:
            sys.exit(complaints.first)


if __name__ == "__main__":
    main()
