"""The command, from its arguments to its exit status."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from otel_pgpool.cli.arguments import parse
from otel_pgpool.cli.complaint import complain
from otel_pgpool.cli.endpoint import ENDPOINT_VARIABLE, Endpoint
from otel_pgpool.cli.errors import BrokenOff, CommandError
from otel_pgpool.cli.interrupts import Interrupted
from otel_pgpool.cli.native import escaped_stderr
from otel_pgpool.cli.output import Output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from otel_pgpool.cli.interrupts import Interrupts

USAGE_ERROR = 2
OPTIONAL_PACKAGES = ("rich", "opentelemetry", "psycopg2")


def run(arguments: Sequence[str] | None, interrupts: Interrupts) -> int:
    """Run what the command line asks for, and return the exit status."""
    stdout = Output(sys.stdout, "stdout")
    try:
        try:
            options = parse(arguments)
        finally:
            stdout.check()  # --help and --version print inside `parse`
        status = _run(options, interrupts, stdout)
        stdout.check()
    except CommandError as error:
        complain(str(error))
        return USAGE_ERROR
    except BrokenOff as end:
        if str(end):
            complain(f"{end}; {end.kept}" if end.kept else str(end))
        return end.status
    return status if interrupts.pending is None else Interrupted(interrupts.pending).status


def _run(options: argparse.Namespace, interrupts: Interrupts, stdout: Output) -> int:
    try:
        from otel_pgpool.cli import demo, replay  # noqa: PLC0415 - they need the extra
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] not in OPTIONAL_PACKAGES:
            raise
        raise CommandError(
            f"{missing} is missing: install the extra 'demo' (pip install 'otel-pgpool[demo]')"
        ) from None
    interrupts.check()  # a signal that came during the imports ends the command here, before anything is created
    if options.command == "report":
        with interrupts.exposed():
            replay.replay(options.folder, stdout, slowest=options.slowest, as_json=options.json)
        return 0
    endpoint = options.endpoint or _endpoint_of_environment()
    wanted = demo.Options(options.seconds, options.dsn, endpoint, options.out, options.json)
    with escaped_stderr() if options.dsn else nullcontext():
        return demo.Demo(wanted, interrupts, stdout).run()


def _endpoint_of_environment() -> Endpoint | None:
    url = os.environ.get(ENDPOINT_VARIABLE, "").strip()
    if not url:
        return None
    try:
        return Endpoint.parse(url, os.environ, bare=False)
    except ValueError as error:
        raise CommandError(f"{ENDPOINT_VARIABLE}: {error}") from None
