"""The command ``otel-pgpool``.

Modules that are slow to import are imported after `main` has installed the signal handlers, because a Ctrl-C before
that ends in a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.cli.errors import Interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    interrupts = Interrupts()
    interrupts.install()
    from otel_pgpool.cli.command import run  # noqa: PLC0415 - see above

    return run(arguments, interrupts)
