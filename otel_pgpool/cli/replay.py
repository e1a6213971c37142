"""The report of a recorded run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.cli.complaint import complain
from otel_pgpool.cli.errors import CommandError
from otel_pgpool.cli.printing import make_console, print_json, print_report
from otel_pgpool.cli.recording import Recording
from otel_pgpool.cli.report import read

if TYPE_CHECKING:
    from pathlib import Path

    from otel_pgpool.cli.output import Output


def replay(folder: Path, stdout: Output, *, slowest: int, as_json: bool) -> None:
    """Print the report of the recording in ``folder``.

    Raises:
        CommandError: there is no recording in ``folder``.
    """
    recording = Recording(folder)
    try:
        found = read(recording, slowest)
    except OSError as error:
        raise CommandError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise CommandError(f"{folder} does not hold OTLP JSON lines as the demo writes them") from None
    if as_json:
        print_json(stdout, found, {"files": [str(path) for path in recording.files]})
    else:
        print_report(make_console(stdout), found, str(folder))
    stdout.check()
    for path in sorted(recording.cut_short):
        complain(f"warning: {path} is not complete: a line of it is cut short")
