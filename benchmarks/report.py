"""The document RESULTS.md: the machine, the targets, and the measurements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.row import quartiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.contest import Outcome
    from benchmarks.row import Column, Target

HEAD = """\
# Benchmarks

Written by `make bench`, in one run. Every measurement runs in a process of its own. The contestants take turns, round
after round, so that a change of the machine's speed affects all of them. Ratios are computed within a round, from
figures measured seconds apart. Each figure is the median of the rounds, followed by the lower and upper quartile.
"""


def document(outcomes: Sequence[Outcome], machine: Mapping[str, str]) -> str:
    """Return the text of RESULTS.md."""
    parts = [HEAD, "".join(f"- {name}: {text}\n" for name, text in machine.items())]
    parts += ["## Targets\n", "\n".join([*targets(outcomes), *reasons(outcomes)]) + "\n", "## Measurements\n"]
    parts += ["\n".join(measurements(outcome)) + "\n" for outcome in outcomes]
    return "\n".join(parts)


def targets(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Iterate over the lines of the table of targets."""
    yield "| work | figure | must reach | measured | |"
    yield "| --- | --- | --- | --- | --- |"
    for outcome in outcomes:
        work = f"{outcome.row.work} (`{outcome.row.name}`)"
        for target in outcome.row.targets:
            measured, reached = verdict(outcome, target)
            yield f"| {work} | {target.text} | {target.bound} | {measured} | {'reached' if reached else '**missed**'} |"
            work = ""


def reasons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Iterate over the known reasons of missed targets."""
    for outcome in outcomes:
        for target in outcome.row.targets:
            if target.reason and not verdict(outcome, target)[1]:
                yield f"\nMissed: {target.text} (`{outcome.row.name}`). {target.reason}"


def verdict(outcome: Outcome, target: Target) -> tuple[str, bool]:
    """Return the figure with its quartiles, and whether the target was reached; it was not if there is no figure."""
    try:
        figure, reached = target.judge(outcome.rounds)
        low, _, high = quartiles([target.figure(played) for played in outcome.rounds])
    except KeyError as missing:
        return f"no figure for {missing.args[0]}", False
    digits = 3 if target.unit == "x" else 1
    return f"{figure:.{digits}f} {target.unit} ({low:.{digits}f}-{high:.{digits}f})".replace("  ", " "), reached


def missed(outcomes: Sequence[Outcome]) -> int:
    """Return the number of missed targets."""
    return sum(not verdict(outcome, target)[1] for outcome in outcomes for target in outcome.row.targets)


def measurements(outcome: Outcome) -> Iterator[str]:
    """Iterate over the lines of one row's own table."""
    row = outcome.row
    yield f"### `{row.name}`: {row.work}\n"
    yield f"{row.note} Rounds: {len(outcome.rounds)}.\n".lstrip()
    yield "| | " + " | ".join(column.header for column in row.columns) + " |"
    yield "| --- |" + " ---: |" * len(row.columns)
    for contestant in row.contestants:
        yield f"| {contestant} | " + " | ".join(cell(outcome, contestant, column) for column in row.columns) + " |"
    for failure in outcome.failures:
        yield f"\nFailed: {failure}"


def cell(outcome: Outcome, contestant: str, column: Column) -> str:
    """Return the median and the quartiles of one metric of one contestant."""
    figures = [played[contestant][column.metric] for played in outcome.rounds if contestant in played]
    if not figures:
        return "failed"
    low, middle, high = quartiles(figures)
    if math.isclose(low, high):
        return f"{middle:,.{column.digits}f}"
    return f"{middle:,.{column.digits}f} ({low:,.{column.digits}f}-{high:,.{column.digits}f})"
