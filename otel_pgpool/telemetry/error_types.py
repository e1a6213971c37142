"""The values of ``error.type``, bounded in number, because each value makes a new series of a metric."""

from __future__ import annotations

from pkgutil import get_data

from otel_pgpool.types import PoolErrorType

OTHER = "_OTHER"
"""The value that the semantic conventions define for errors without a value of their own."""

MOST_TYPES = 50
"""Maximum number of different classes, and of SQLSTATEs unknown to PostgreSQL, for each pool."""

SQLSTATES = frozenset((get_data(__package__, "sqlstates.txt") or b"").decode().split())
"""PostgreSQL's own SQLSTATEs, from its file ``errcodes.txt``; each line has those of one class."""

OF_DRIVERS = (
    *("Warning", "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError"),
    *("IntegrityError", "InternalError", "ProgrammingError", "NotSupportedError"),
)
"""The classes that every driver with Python's DB API has."""

EXPECTED = SQLSTATES.union(PoolErrorType, OF_DRIVERS)
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
