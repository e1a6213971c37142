"""The command ``otel-pgpool``."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from otel_pgpool._version import __version__
from otel_pgpool.cli.endpoint import ENDPOINT_VARIABLE, Endpoint
from otel_pgpool.cli.errors import CommandError
from otel_pgpool.cli.interrupts import Interrupted, Interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 600.0
USAGE_ERROR = 2
OPTIONAL_PACKAGES = ("rich", "opentelemetry", "psycopg2")

EPILOG = """\
OTLP goes to --endpoint, else to OTEL_EXPORTER_OTLP_ENDPOINT, else nowhere. OTEL_EXPORTER_OTLP_PROTOCOL says how, grpc
or http/protobuf; where it is not set the port does: 4318 is http/protobuf, any other is grpc.
The other OTEL_* variables of the SDK hold too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    interrupts = Interrupts()
    interrupts.install()
    options = _parser().parse_args(arguments)
    try:
        status = _run(options, interrupts)
        sys.stdout.flush()
    except Interrupted as interruption:
        return _refuse(f"stopped by {signal.Signals(interruption.signum).name}", interruption.status)
    except BrokenPipeError:
        # Nobody reads any more; what Python still has for stdout goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if interrupts.pending is None else Interrupted(interrupts.pending).status


def _run(options: argparse.Namespace, interrupts: Interrupts) -> int:
    try:
        from otel_pgpool.cli import demo  # noqa: PLC0415 - needs the extra
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] not in OPTIONAL_PACKAGES:
            raise
        return _refuse(f"{missing} is missing: install the extra 'demo' (pip install 'otel-pgpool[demo]')")
    try:
        if options.command == "report":
            demo.report(options.folder, slowest=options.slowest, as_json=options.json)
            return 0
        endpoint = options.endpoint or _endpoint_of_environment()
        wanted = demo.Options(options.seconds, options.dsn, endpoint, options.out, options.json)
        return demo.Demo(wanted, interrupts).run()
    except CommandError as error:
        return _refuse(str(error))


def _endpoint_of_environment() -> Endpoint | None:
    url = os.environ.get(ENDPOINT_VARIABLE, "").strip()
    if not url:
        return None
    try:
        return Endpoint.parse(url, os.environ, bare=False)
    except ValueError as error:
        raise CommandError(f"{ENDPOINT_VARIABLE}: {error}") from None


def _refuse(message: str, status: int = USAGE_ERROR) -> int:
    print(f"otel-pgpool: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-pgpool", description="A psycopg2 connection pool in which every checkout is an OpenTelemetry span."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)

    summary = "run a small shop's traffic on a pool and report what its telemetry says"
    demo = commands.add_parser("demo", help=summary, description=_sentence(summary), epilog=EPILOG)
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        metavar="N",
        help=f"for how long, at most {LONGEST:g} (default: 15; the story needs about 4)",
    )
    demo.add_argument(
        "--dsn",
        help="the PostgreSQL to use, in a scratch schema that is dropped at the end (default: an embedded one)",
    )
    demo.add_argument("--endpoint", type=_endpoint, metavar="URL", help="where OTLP goes, as http://host:port")
    demo.add_argument(
        "--out",
        type=_folder,
        default=Path("otel-pgpool-demo"),
        metavar="DIR",
        help="folder for the telemetry as OTLP JSON lines (default: %(default)s)",
    )
    demo.add_argument("--json", action="store_true", help="print the report as one JSON document")

    summary = "print the report of a recorded run again"
    report = commands.add_parser("report", help=summary, description=_sentence(summary))
    report.add_argument(
        "folder",
        nargs="?",
        type=_folder,
        default=Path("otel-pgpool-demo"),
        metavar="DIR",
        help="the --out of that run (default: %(default)s)",
    )
    report.add_argument(
        "--slowest", type=_count, default=3, metavar="N", help="how many checkouts to draw (default: %(default)s)"
    )
    report.add_argument("--json", action="store_true", help="print it as one JSON document")
    return parser


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:  # NaN neither
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to {LONGEST:g}")
    return seconds


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000")
    return int(text)


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text, os.environ)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("the name of a folder is expected")
    return Path(text)
