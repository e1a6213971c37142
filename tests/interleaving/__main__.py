"""``python -m tests.interleaving``: run all orders of every pair of operations, or some, or replay one order."""

from __future__ import annotations

import argparse
import sys

from tests.interleaving.mutants import MUTANTS, install


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.interleaving", description=__doc__)
    parser.add_argument("operations", nargs="*", help="two or more operations, or none for every pair")
    parser.add_argument(
        "--world",
        choices=("pool", "light", "records"),
        default="pool",
        help="this pool, or an instrumented pool of psycopg2 with spans='off' or with records",
    )
    parser.add_argument("--idle", type=int, help="connections that are idle at the start (default: two numbers)")
    parser.add_argument("--switch", choices=("every", "breakers"), help="every bytecode, or CPython's eval breaker")
    parser.add_argument("--replay", metavar="SWITCHES", help="one order, as a failure prints it")
    parser.add_argument("--interrupt-at", type=int, default=-1, help="step at which the first thread is interrupted")
    parser.add_argument("--mutant", choices=MUTANTS, metavar="NAME", help="a name of tests/interleaving/mutants.py")
    parser.add_argument("--all", action="store_true", help="every world, triples and mutants")
    parser.add_argument("--write", metavar="FILE", help="the same, and write the document")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for."""
    options = parse()
    if options.mutant is not None:
        install(options.mutant)
    from tests.interleaving import runs

    return runs.run(options)


if __name__ == "__main__":
    sys.exit(main())
