"""The values of ``error.type``: a metric needs few, and applications and servers may have any number."""

from __future__ import annotations

import psycopg2
from psycopg2 import errorcodes

from otel_pgpool.types import PoolErrorType

OTHER = "_OTHER"
"""The value that the semantic conventions define for errors without a value of their own."""

MOST_TYPES = 50
"""Maximum number of different classes, and of SQLSTATEs unknown to PostgreSQL, for each pool."""

SQLSTATES = frozenset(
    value for name, value in vars(errorcodes).items() if name.isupper() and len(value) == len("00000")
)


OF_PSYCOPG2 = frozenset(name for name, value in vars(psycopg2).items() if isinstance(value, type))
EXPECTED = frozenset((*PoolErrorType, *OF_PSYCOPG2)) | SQLSTATES
"""Values that do not count against `MOST_TYPES`."""


class ErrorTypes:
    """The values of ``error.type`` of one pool, bounded in number."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, error_type: str) -> str:
        """Return a value for ``error.type``: the given one, or `OTHER` if there were too many different ones before."""
        if error_type in EXPECTED or error_type in self._known:
            return error_type
        if len(self._known) >= MOST_TYPES:
            return OTHER
        self._known.add(error_type)
        return error_type
