"""``python -m tests.interleaving``: run all orders of every pair of operations, or some, or replay one order."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from tests.interleaving.mutants import MUTANTS, install


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.interleaving", description=__doc__)
    parser.add_argument("operations", nargs="*", help="two or more operations, or none for every pair")
    parser.add_argument("--idle", type=int, choices=(0, 1), help="connections idle at the start (default: both)")
    parser.add_argument("--replay", help="the list of switches of one order, as a failure prints it")
    parser.add_argument("--interrupt-at", type=int, default=-1, help="access at which the first thread is interrupted")
    parser.add_argument("--mutant", choices=MUTANTS, help="run the pairs of one mutant, in this process")
    parser.add_argument("--breakers", action="store_true", help="switch only where CPython reads its eval breaker")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for."""
    options = parse()
    if options.mutant is not None:
        install(options.mutant)
    from tests.interleaving import runs  # after the mutant  # noqa: PLC0415

    return runs.run(options)


if __name__ == "__main__":
    sys.exit(main())
