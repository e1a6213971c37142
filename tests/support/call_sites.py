"""Call sites, as spans and records show them."""

from __future__ import annotations

import re


def function_at(place: str) -> str:
    """Return the function's own name: before Python 3.11 a place does not have the qualified one."""
    found = re.search(r"\w+$", place)
    assert found is not None, place
    return found[0]
