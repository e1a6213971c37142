"""Writes the table: what was to be reached, what was measured, and where."""

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

Written by `make bench`, all in one run. Every measurement runs in a process of its own; the contestants take turns,
round after round, so that a drifting machine hits all alike. Ratios are computed within a round, from figures taken
seconds apart; what is shown is the median over the rounds, with the lower and upper quartile behind it.
"""


def document(outcomes: Sequence[Outcome], machine: Mapping[str, str]) -> str:
    """Put together all of RESULTS.md."""
    parts = [HEAD, "".join(f"- {name}: {text}\n" for name, text in machine.items())]
    parts += ["## Targets\n", "\n".join([*targets(outcomes), *reasons(outcomes)]) + "\n", "## Measurements\n"]
    parts += ["\n".join(measurements(outcome)) + "\n" for outcome in outcomes]
    return "\n".join(parts)


def targets(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines of the table of targets."""
    yield "| work | figure | must reach | measured | |"
    yield "| --- | --- | --- | --- | --- |"
    for outcome in outcomes:
        work = f"{outcome.row.work} (`{outcome.row.name}`)"
        for target in outcome.row.targets:
            measured, reached = verdict(outcome, target)
            yield f"| {work} | {target.text} | {target.bound} | {measured} | {'reached' if reached else '**missed**'} |"
            work = ""


def reasons(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Why targets were missed, where that is known."""
    for outcome in outcomes:
        for target in outcome.row.targets:
            if target.reason and not verdict(outcome, target)[1]:
                yield f"\nMissed: {target.text} (`{outcome.row.name}`). {target.reason}"


def verdict(outcome: Outcome, target: Target) -> tuple[str, bool]:
    """The figure with its spread, and whether it was reached; a row with a failure reaches nothing."""
    try:
        figure, reached = target.judge(outcome.rounds)
        low, _, high = quartiles([target.figure(played) for played in outcome.rounds])
    except KeyError as missing:
        return f"no figure for {missing.args[0]}", False
    digits = 3 if target.unit == "x" else 1
    return f"{figure:.{digits}f} {target.unit} ({low:.{digits}f}-{high:.{digits}f})".replace("  ", " "), reached


def missed(outcomes: Sequence[Outcome]) -> int:
    """How many targets were not reached."""
    return sum(not verdict(outcome, target)[1] for outcome in outcomes for target in outcome.row.targets)


def measurements(outcome: Outcome) -> Iterator[str]:
    """Lines of one row's own table."""
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
    """Median and quartiles of one metric of one contestant."""
    figures = [played[contestant][column.metric] for played in outcome.rounds if contestant in played]
    if not figures:
        return "failed"
    low, middle, high = quartiles(figures)
    if math.isclose(low, high):
        return f"{middle:,.{column.digits}f}"
    return f"{middle:,.{column.digits}f} ({low:,.{column.digits}f}-{high:,.{column.digits}f})"
