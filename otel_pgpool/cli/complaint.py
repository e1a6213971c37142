"""Warnings and errors of the command on stderr, one line each."""

from __future__ import annotations

import sys
from contextlib import suppress

from otel_pgpool.cli.foreign import shown


def complain(text: str) -> None:
    """Print a warning or an error, unless stderr cannot be written."""
    with suppress(OSError):
        print(f"otel-pgpool: {shown(text)}", file=sys.stderr, flush=True)
