"""``python -m tests.fleet PART``: measure a part of the fleet, or all, and write docs/fleet.md."""

from __future__ import annotations

import importlib
import sys

PARTS = ("real", "telemetry", "write")
"""The modules of this package with a function ``main(arguments)``, in the order of a whole run."""
ALONE = ("simulate",)
"""Modules that run only if they are named: the costs of the simulation are assumed, not yet held against real runs."""


def main(arguments: list[str]) -> int:
    """Run the named part with the other arguments, or a whole run."""
    if arguments and arguments[0] not in PARTS + ALONE:
        accepted, all_parts = ", ".join(PARTS + ALONE), ", ".join(PARTS)
        print(f"part {arguments[0]!r}: accepted are {accepted}; without one, {all_parts}", file=sys.stderr)
        return 2
    parts, rest = ((arguments[0],), arguments[1:]) if arguments else (PARTS, [])
    return max(int(importlib.import_module(f"tests.fleet.{part}").main(rest)) for part in parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
