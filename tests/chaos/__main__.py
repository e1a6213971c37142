"""``python -m tests.chaos``: run every fault on every pool, and write docs/reliability.md; or run and print some."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tests.chaos import load, report
from tests.chaos.catalogue import FAULTS
from tests.chaos.pools import POOLS
from tests.chaos.runner import Outcome, play

if TYPE_CHECKING:
    from collections.abc import Sequence


AWAY = 10.0
PATIENCE = 120.0
"""Seconds for one fault on one pool; some pools hang for ever."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FAULTS], metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument(
        "--pool", choices=POOLS, action="append", help="pool on which the faults are run (default: all)"
    )
    parser.add_argument("--away", type=float, default=AWAY, help="seconds that a server or a network is away")
    parser.add_argument("--json", action="store_true", help="in this process, one JSON document for each outcome")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the faults, and write the document."""
    options = parse()
    names, pools = options.names or list(FAULTS), options.pool or list(POOLS)
    if options.json:
        for name in names:
            for pool in pools:
                print(json.dumps(asdict(play(FAULTS[name], pool, options.away))))
        return 0
    outcomes: report.Outcomes = {}
    for name in names:
        for pool in pools[:1] if FAULTS[name].ours_alone else pools:
            outcome = outcomes[name, pool] = play_apart(name, pool, options.away)
            print(f"{name:18} {pool:20} {report.in_short(outcome)}", flush=True)
    ours = [outcome for (_, pool), outcome in outcomes.items() if pool == POOLS[0]]
    violated = any(isinstance(outcome, str) or outcome.failures() for outcome in ours)
    if not options.names and not options.pool:
        figures = load.play()
        report.write(outcomes, options.away, figures)
        print(f"Written to {report.DOCUMENT}.", *figures.violations, sep="\n")
        violated |= bool(figures.violations)
    return int(violated)


def play_apart(name: str, pool: str, away: float) -> Outcome | str:
    """Run a fault in a process of its own, which can be ended; return a text if there is no outcome."""
    command = [sys.executable, "-m", "tests.chaos", name, "--pool", pool, "--away", str(away), "--json"]
    try:
        played = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE + away, check=True)
    except subprocess.TimeoutExpired:
        return "did not end in time"
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr, flush=True)
        return "could not be run"
    return Outcome(**json.loads(played.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
