"""``python -m tests.chaos.load``: interrupts, load and long runs, each in a process of its own; their figures as JSON."""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos import crowd, fleet, herd, interrupts, soak, stress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Figure = interrupts.Struck | stress.Stressed | soak.Soaked | crowd.Crowded | fleet.Sailed | herd.Returned

HANGS_AFTER = 1800.0
"""Seconds beyond those of the stress after which one that does not end says where it stands, and is ended."""
WIDTH = 118
"""Characters of a line of prose in docs/reliability.md, at most."""


class Play(NamedTuple):
    """One of them."""

    figure: Callable[..., Figure]
    """What comes of it."""
    begin: Callable[[argparse.Namespace], Figure]


PLAYS = {
    "interrupts": Play(interrupts.Struck, lambda options: interrupts.play(options.interrupts)),
    "stress": Play(stress.Stressed, lambda options: stress.play(options.seconds, options.seed)),
    "soak": Play(soak.Soaked, lambda options: soak.play(options.checkouts)),
    "crowd": Play(crowd.Crowded, lambda options: crowd.play(options.threads)),
    "fleet": Play(fleet.Sailed, lambda options: fleet.play(options.pools)),
    "herd": Play(herd.Returned, lambda options: herd.play(options.processes, away=options.away)),
}


@dataclass(frozen=True)
class Unplayed:
    """One that ended before it could tell anything."""

    name: str
    status: int

    @property
    def violations(self) -> list[str]:
        """That it did."""
        return [f"could not be played: status {self.status}"]

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        yield f"### {self.name.capitalize()}"
        yield ""
        yield f"It could not be played: status {self.status}."


class Figures(dict[str, "Figure | Unplayed"]):
    """What came of each that was played, by its name."""

    @property
    def violations(self) -> list[str]:
        """Of all."""
        return [f"{name}: {each}" for name, figure in self.items() for each in figure.violations]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PLAYS, default=[*PLAYS], help="some of them")
    parser.add_argument("--interrupts", type=int, default=10_000, help="at least")
    parser.add_argument("--seconds", type=float, default=600.0, help="of stress")
    parser.add_argument("--seed", type=int, help="of the stress, to do the same again")
    parser.add_argument("--checkouts", type=int, default=1_000_000, help="of the soak")
    parser.add_argument("--threads", type=int, default=2_000, help="of the crowd")
    parser.add_argument("--pools", type=int, default=500, help="of the fleet")
    parser.add_argument("--processes", type=int, default=20, help="of the herd")
    parser.add_argument("--away", type=float, default=10.0, help="seconds that the herd's server is away")
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--json", action="store_true", help="in this process, with the figures as the last line")
    return parser.parse_args(arguments)


def main() -> int:
    """Play, and write down what came of it."""
    options = parse()
    if options.json:
        faulthandler.dump_traceback_later(options.seconds + HANGS_AFTER, exit=True)
        for name in options.only:
            print(json.dumps(asdict(PLAYS[name].begin(options))))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what it has started ends with it
    figures = play(options.only, sys.argv[1:])
    if options.out is not None:
        options.out.write_text(json.dumps(figures, default=asdict, indent=2) + "\n")
    print(*lines(figures), *figures.violations, sep="\n")
    return int(bool(figures.violations))


def play(names: Sequence[str] = tuple(PLAYS), arguments: Sequence[str] = ()) -> Figures:
    """Play some, each in a process of its own, with options of the command line."""
    return Figures({name: play_apart(name, arguments) for name in names})


def play_apart(name: str, arguments: Sequence[str]) -> Figure | Unplayed:
    """Play one, and pass on what it says meanwhile."""
    command = [sys.executable, "-m", "tests.chaos.load", *arguments, "--only", name, "--json"]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for said in process.stdout:
                if not said.startswith("{"):
                    print(f"{name}: {said}", end="", flush=True)
        except BaseException:
            process.terminate()
            raise
    try:
        return PLAYS[name].figure(**json.loads(said))
    except ValueError:  # no figures came
        return Unplayed(name, process.returncode)


def lines(figures: Figures) -> Iterator[str]:
    """Return the section about these figures of docs/reliability.md."""
    yield "## Interrupts, load and long runs"
    for figure in figures.values():
        yield ""
        for line in figure.lines():
            yield from [line] if line.startswith("|") else wrap(line, WIDTH) or [""]


if __name__ == "__main__":
    sys.exit(main())
