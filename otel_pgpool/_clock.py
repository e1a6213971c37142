"""The clock of every wait, bound and duration: a test that freezes the program's clock does not stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool._unpatched import load_again

if TYPE_CHECKING:
    from time import monotonic
else:
    monotonic = load_again("time").monotonic

__all__ = ["monotonic"]
