"""What goes to stderr for whoever watches for trouble: a line each."""

from __future__ import annotations

import sys
from contextlib import suppress

from otel_pgpool.cli.foreign import shown


def complain(text: str) -> None:
    """Say it, where anybody can be told."""
    with suppress(OSError):
        print(f"otel-pgpool: {shown(text)}", file=sys.stderr, flush=True)
