"""``python -m faults.load``: interrupts, load and long runs, each in a process of its own; their figures as JSON."""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import crowd, fleet, herd, interrupts, soak, stress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Figure = interrupts.Struck | stress.Stressed | soak.Soaked | crowd.Crowded | fleet.Sailed | herd.Returned

HANGS_AFTER = 1800.0
"""Seconds beyond those of the stress after which one that does not end says where it stands, and is ended."""


@dataclass(frozen=True)
class Figures:
    """What came of each that was played."""

    interrupts: interrupts.Struck | None = None
    stress: stress.Stressed | None = None
    soak: soak.Soaked | None = None
    crowd: crowd.Crowded | None = None
    fleet: fleet.Sailed | None = None
    herd: herd.Returned | None = None

    @property
    def violations(self) -> list[str]:
        """Of all."""
        return [f"{name}: {each}" for name in PLAYS if (played := getattr(self, name)) for each in played.violations]

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Figures:
        """From what JSON has of them."""
        played: dict[str, Any] = {name: KINDS[name](**figure) for name, figure in figures.items() if figure is not None}
        return cls(**played)


PLAYS: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "interrupts": lambda options: interrupts.play(options.interrupts),
    "stress": lambda options: stress.play(options.seconds, options.seed),
    "soak": lambda options: soak.play(options.checkouts),
    "crowd": lambda options: crowd.play(options.threads),
    "fleet": lambda options: fleet.play(options.pools),
    "herd": lambda options: herd.play(options.processes, away=options.away),
}
KINDS: dict[str, Callable[..., Figure]] = {
    "interrupts": interrupts.Struck,
    "stress": stress.Stressed,
    "soak": soak.Soaked,
    "crowd": crowd.Crowded,
    "fleet": fleet.Sailed,
    "herd": herd.Returned,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m faults.load", description=__doc__)
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
            print(json.dumps(asdict(PLAYS[name](options))))
        return 0
    figures = play(options.only, sys.argv[1:])
    if options.out is not None:
        options.out.write_text(json.dumps(plain(figures), indent=2) + "\n")
    print("\n".join(lines(figures)))
    print(*figures.violations, sep="\n")
    return int(bool(figures.violations))


def plain(figures: Figures) -> dict[str, Any]:
    """For JSON."""
    return asdict(figures)


def play(names: Sequence[str] = tuple(PLAYS), arguments: Sequence[str] = ()) -> Figures:
    """Play some, each in a process of its own, with options of the command line."""
    return Figures.of({name: play_apart(name, arguments) for name in names})


def play_apart(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Play one, and pass on what it says meanwhile."""
    command = [sys.executable, "-m", "faults.load", *arguments, "--only", name, "--json"]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if not said.startswith("{"):
                print(f"{name}: {said}", end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{name} could not be played: status {process.returncode}")
    figure: dict[str, Any] = json.loads(said)
    return figure


def lines(figures: Figures) -> Iterator[str]:
    """The section on them of docs/reliability.md."""
    yield "## Interrupts, load and long runs"
    for name in PLAYS:
        if (played := getattr(figures, name)) is not None:
            yield ""
            yield from played.lines()


if __name__ == "__main__":
    sys.exit(main())
