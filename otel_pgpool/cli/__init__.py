"""The command ``otel-pgpool``.

All that is slow to import comes after `main` has taken over Ctrl-C, which would end in a traceback before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.cli.interrupts import Interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    interrupts = Interrupts()
    interrupts.install()
    from otel_pgpool.cli.command import run  # noqa: PLC0415 - see above

    return run(arguments, interrupts)
