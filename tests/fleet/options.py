"""Options that the real and the simulated fleet have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tests.fleet.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable


def add_options(parser: argparse.ArgumentParser, *, processes: int, seed: int) -> None:
    """Add the scenario, the number of processes and the seed, with the defaults of a whole run."""
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", choices=names, help="only this one; nothing is saved")
    parser.add_argument(
        "--processes",
        type=_whole(2),
        default=processes,
        help="workers (%(default)s); for others nothing is saved",
    )
    parser.add_argument("--seed", type=_whole(1), default=seed, help="of all random moments (%(default)s)")


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isdecimal() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")

    return parse
