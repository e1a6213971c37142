"""The command line, from its arguments to the exit status."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from otel_pgpool._version import __version__
from otel_pgpool.cli.errors import Aborted, CommandError, Interrupted
from otel_pgpool.cli.plan import Load, print_plan
from otel_pgpool.cli.terminal import Output, escape, warn
from otel_pgpool.demo.endpoint import ENDPOINT_VARIABLE, Endpoint
from otel_pgpool.runtime.text import may_hold_password

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_pgpool.cli.errors import Interrupts

USAGE_ERROR = 2
OPTIONAL_PACKAGES = ("rich", "opentelemetry", "psycopg2")
MAX_SECONDS = 600
_CHOICE = re.compile(r"(?<=invalid choice): .*(?= \(choose from )", re.DOTALL)

EPILOG = """\
The demo sends OTLP to --endpoint, or else to OTEL_EXPORTER_OTLP_ENDPOINT, or else not at all.
OTEL_EXPORTER_OTLP_PROTOCOL is grpc or http/protobuf. If it is not set, port 4318 means http/protobuf, and any other
port means grpc.
The SDK's other OTEL_* variables apply too, except for the sampler: every checkout of the demo leaves a span.
"""


def run(arguments: Sequence[str] | None, interrupts: Interrupts) -> int:
    """Run the command with these arguments, by default those of the process, and return the exit status."""
    stdout = Output(sys.stdout, "stdout")
    try:
        try:
            options = _parse(arguments)
        finally:
            stdout.check()  # --help and --version print inside `_parse`
        status = _run_subcommand(options, interrupts, stdout)
        stdout.check()
    except CommandError as error:
        warn(str(error))
        return USAGE_ERROR
    except Aborted as end:
        if str(end):
            warn(f"{end}; {end.partial_output}" if end.partial_output else str(end))
        return end.status
    return status if interrupts.pending is None else Interrupted(interrupts.pending).status


def _run_subcommand(options: argparse.Namespace, interrupts: Interrupts, stdout: Output) -> int:
    try:
        if options.command == "report":
            from otel_pgpool.cli.printing import print_recording  # noqa: PLC0415 - needs the extra

            with interrupts.interruptible():
                print_recording(options.folder, stdout, slowest=options.slowest, as_json=options.json)
            return 0
        if options.command == "plan":
            load = Load(options.processes, options.max_connections, options.arrivals, options.hold)
            print_plan(load, stdout, as_json=options.json)
            return 0
        from otel_pgpool.demo.run import Demo  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] not in OPTIONAL_PACKAGES:
            raise
        raise CommandError(
            f"{missing} is missing: install the extra 'demo' (pip install 'otel-pgpool[demo]')"
        ) from None
    interrupts.check()  # a signal received during the imports ends the command here, before anything is created
    options.endpoint = options.endpoint or _endpoint_of_environment()
    return Demo(options, interrupts, stdout).run()


def _endpoint_of_environment() -> Endpoint | None:
    url = os.environ.get(ENDPOINT_VARIABLE, "").strip()
    try:
        return Endpoint.parse(url, os.environ, strict=False) if url else None
    except ValueError as error:
        raise CommandError(f"{ENDPOINT_VARIABLE}: {error}") from None


class _Parser(argparse.ArgumentParser):
    """A parser whose errors do not show other options' values, which may be a DSN with its password."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        super().error(escape(_CHOICE.sub("", message)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments.

    Raises:
        SystemExit: the arguments are invalid, which is printed, or they are ``--help`` or ``--version``.
    """
    parser = _make_parser()
    options, others = parser.parse_known_args(arguments)
    if others:
        names = (other.partition("=")[0] if other.startswith("--") else "***" for other in others)  # without values
        parser.error(f"unrecognized arguments: {' '.join(names)}")
    return options


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="otel-pgpool", description="A psycopg2 connection pool in which every checkout is an OpenTelemetry span."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)
    summary = "Run a small shop's traffic on a pool and report what its telemetry says."
    demo = commands.add_parser("demo", help=summary, description=summary, epilog=EPILOG)
    summary = "Print the report of a recorded run again."
    report = commands.add_parser("report", help=summary, description=summary)
    seconds = _number(float, MAX_SECONDS, f"a number of seconds above 0 and up to {MAX_SECONDS}")
    count = _number(int, 1000, "a whole number from 1 to 1000")
    folder: dict[str, Any] = {"type": _folder, "metavar": "DIR", "default": Path("otel-pgpool-demo")}
    demo.add_argument(
        "--seconds",
        type=seconds,
        default=15.0,
        metavar="N",
        help=f"duration in seconds, at most {MAX_SECONDS} (default: 15; the whole scenario needs at least 4)",
    )
    demo.add_argument(
        "--dsn",
        help="the PostgreSQL to use, in a scratch schema that is dropped at the end (default: an embedded one)",
    )
    demo.add_argument("--endpoint", type=_endpoint, metavar="URL", help="address for OTLP, as http://host:port")
    demo.add_argument("--out", **folder, help="folder for the telemetry as OTLP JSON lines (default: %(default)s)")
    report.add_argument(
        "folder", nargs="?", **folder, help="folder of the recording, the --out of its run (default: %(default)s)"
    )
    report.add_argument(
        "--slowest", type=count, default=3, metavar="N", help="how many checkouts to draw (default: %(default)s)"
    )
    plan = _add_plan(commands)
    for command in (demo, report, plan):
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> _Parser:
    summary = "Compute the sizes of a fleet: pools, PgBouncer, series, spans, gateways; with the formula of each."
    plan = commands.add_parser("plan", help=summary, description=summary)
    for name, most, text in (
        ("--processes", 1_000_000, "processes of the fleet, with one pool each"),
        ("--max-connections", 262_143, "max_connections of PostgreSQL"),
    ):
        count = _number(int, most, f"a whole number from 1 to {most:,}")
        plan.add_argument(name, type=count, required=True, metavar="N", help=text)
    for name, most, text in (
        ("--arrivals", 1_000_000, "checkouts a second of each process, not of the whole fleet"),
        ("--hold", 3600, "mean seconds for which a checkout holds its connection"),
    ):
        rate = _number(float, most, f"a number above 0 and up to {most:,}")
        plan.add_argument(name, type=rate, required=True, metavar="N", help=text)
    return plan


def _number(kind: type[float], most: int, accepted: str) -> Callable[[str], float]:
    """Return the type of an option that is a number above 0."""

    def parse(text: str) -> float:
        number = 0.0
        with suppress(ValueError):
            number = kind(text)
        if not 0 < number <= most:  # NaN neither
            shown = "what was given" if may_hold_password(text) else repr(text)
            raise argparse.ArgumentTypeError(f"{shown} is not {accepted}")
        return number

    return parse


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text, os.environ)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(text: str) -> Path:
    if not text or "\0" in text or may_hold_password(text):
        raise argparse.ArgumentTypeError("the name of a folder is expected")
    return Path(text)
