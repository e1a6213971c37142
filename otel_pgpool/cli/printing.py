"""The output of the command: for people, and for programs."""

from __future__ import annotations

import json
import os
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from otel_pgpool._version import __version__
from otel_pgpool.cli.drawing import draw, glyphs_for
from otel_pgpool.cli.lines import joined

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.cli.output import Output
    from otel_pgpool.cli.report import Report


def make_console(output: Output) -> Console:
    """Create a console with colour and animation only if the output is a terminal that supports them.

    The variable FORCE_COLOR is ignored.
    """
    terminal = output.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
    return Console(
        file=cast("IO[str]", output),  # `Output` has the methods that rich uses
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="auto" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_report(console: Console, report: Report, *run: str) -> None:
    """Print the report for people; the words of ``run`` identify the run."""
    glyphs = glyphs_for(console.encoding)
    facts = f" {glyphs.dot} ".join((f"{report.seconds:.1f} s", *run))
    console.print(joined())
    console.print(joined(("  otel-pgpool demo  ", "bold"), facts), soft_wrap=True)
    console.print(joined())
    console.print(draw(report, console.width, glyphs))
    console.print(joined())


def print_further(console: Console, **places: str) -> None:
    """Print where to look next, without wrapping, so that the lines can be copied."""
    console.print(joined(("  Where to look next", "bold")))
    for name, place in places.items():
        console.print(joined((f"    {name:<7} ", "dim"), place), soft_wrap=True)


def print_json(output: Output, report: Report, facts: Mapping[str, Any]) -> None:
    """Print the report for programs, as one document."""
    text = json.dumps({"version": __version__, **report.as_dict(), **facts}, indent=2)
    output.write(text.replace("\x7f", "\\u007f") + "\n")  # the only control character that JSON does not escape
