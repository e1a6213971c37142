"""Call sites, as spans and records show them."""

from __future__ import annotations

import sys

QUALIFIED = sys.version_info >= (3, 11)
"""Whether code objects know their functions' qualified names."""


def shown_name(qualified_name: str) -> str:
    """Return what a call site shows of a function's qualified name: all of it, or on Python 3.10 the plain name."""
    return qualified_name if QUALIFIED else qualified_name.rpartition(".")[2]
