"""The values of ``error.type``: a program and a server may have any number of them, a metric must not."""

from __future__ import annotations

from psycopg2 import errorcodes

OTHER = "_OTHER"
"""The value of the semantic conventions for whatever has none of its own."""

MOST_TYPES = 50
"""Classes, and SQLSTATEs that PostgreSQL does not know, for each pool."""

SQLSTATES = frozenset(
    value for name, value in vars(errorcodes).items() if name.isupper() and len(value) == len("00000")
)


class ErrorTypes:
    """Those of one pool."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, error_type: str) -> str:
        """Return the type as it is told: as it is, or `OTHER` where there were too many before."""
        if error_type in SQLSTATES or error_type in self._known:
            return error_type
        if len(self._known) >= MOST_TYPES:
            return OTHER
        self._known.add(error_type)
        return error_type
