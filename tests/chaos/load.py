"""``python -m tests.chaos.load``: interrupts, load and long runs, each in a process of its own."""

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

from tests.chaos import interrupts, scale, soak, stress, thundering_herd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


Figure = (
    interrupts.InterruptResult
    | stress.StressResult
    | soak.SoakResult
    | scale.WaitersResult
    | scale.PoolsResult
    | thundering_herd.HerdResult
)

HANGS_AFTER = 1800.0
"""Seconds, beyond those of the stress, after which a run that does not end prints its stacks and is ended."""
WIDTH = 118
"""Characters of a line of prose in docs/reliability.md, at most."""


class Run(NamedTuple):
    """A kind of run."""

    figure: Callable[..., Figure]
    """The class of its result."""
    begin: Callable[[argparse.Namespace], Figure]


RUNS = {
    "interrupts": Run(interrupts.InterruptResult, lambda options: interrupts.play(options.interrupts)),
    "stress": Run(stress.StressResult, lambda options: stress.play(options.seconds, options.seed)),
    "soak": Run(soak.SoakResult, lambda options: soak.play(options.checkouts)),
    "many-waiters": Run(scale.WaitersResult, lambda options: scale.play_waiters(options.threads)),
    "many-pools": Run(scale.PoolsResult, lambda options: scale.play_pools(options.pools)),
    "thundering-herd": Run(
        thundering_herd.HerdResult, lambda options: thundering_herd.play(options.processes, away=options.away)
    ),
}


@dataclass(frozen=True)
class Unplayed:
    """A run that ended without a result."""

    name: str
    status: int

    @property
    def violations(self) -> list[str]:
        """Say that the run could not be run."""
        return [f"could not be run: status {self.status}"]

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        title = self.name.replace("-", " ").capitalize()
        yield f"### {title}"
        yield ""
        yield f"It could not be run: status {self.status}."


class Figures(dict[str, "Figure | Unplayed"]):
    """The results of runs, by name."""

    @property
    def violations(self) -> list[str]:
        """Return the violations of all runs."""
        return [f"{name}: {each}" for name, figure in self.items() for each in figure.violations]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=[*RUNS], help="some of the runs")
    parser.add_argument("--interrupts", type=int, default=10_000, help="at least")
    parser.add_argument("--seconds", type=float, default=600.0, help="of stress")
    parser.add_argument("--seed", type=int, help="of the stress, to repeat its random choices")
    parser.add_argument("--checkouts", type=int, default=1_000_000, help="of the soak")
    parser.add_argument("--threads", type=int, default=2_000, help="of many-waiters")
    parser.add_argument("--pools", type=int, default=500, help="of many-pools")
    parser.add_argument("--processes", type=int, default=20, help="of thundering-herd")
    parser.add_argument("--away", type=float, default=10.0, help="seconds that the server of thundering-herd is away")
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--json", action="store_true", help="in this process, with the figures as the last line")
    return parser.parse_args(arguments)


def main() -> int:
    """Play the runs, and print their results."""
    options = parse()
    if options.json:
        faulthandler.dump_traceback_later(options.seconds + HANGS_AFTER, exit=True)
        for name in options.only:
            print(json.dumps(asdict(RUNS[name].begin(options))))
        return 0
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # the processes that it has started end with it
    figures = play(options.only, sys.argv[1:])
    if options.out is not None:
        options.out.write_text(json.dumps(figures, default=asdict, indent=2) + "\n")
    print(*lines(figures), *figures.violations, sep="\n")
    return int(bool(figures.violations))


def play(names: Sequence[str] = tuple(RUNS), arguments: Sequence[str] = ()) -> Figures:
    """Play some runs, each in a process of its own, with options of the command line."""
    return Figures({name: play_apart(name, arguments) for name in names})


def play_apart(name: str, arguments: Sequence[str]) -> Figure | Unplayed:
    """Play one run, and print its output meanwhile."""
    command = [sys.executable, "-m", "tests.chaos.load", *arguments, "--only", name, "--json"]
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith("{"):
                    print(f"{name}: {line}", end="", flush=True)
        except BaseException:
            process.terminate()
            raise
    try:
        return RUNS[name].figure(**json.loads(line))
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
