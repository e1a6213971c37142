"""The rule by which an error of the program costs a connection its place in the pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from otel_pgpool.driver.session import sqlstate_of
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import ERROR_LOG_INTERVAL, is_external, log_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from otel_pgpool.config import EvictOn


class EvictRule:
    """The rule of one pool: a callable, or SQLSTATEs and their classes.

    Args:
        evict_on: the validated option.
    """

    def __init__(self, evict_on: EvictOn) -> None:
        self._evict_on = evict_on
        self._next_log = 0.0

    def applies_to(self, error: BaseException, conn: connection) -> bool:
        """Return whether the connection of a block that has ended with an error has to go.

        A SQLSTATE is that of a psycopg2 error, or of one from which the error was raised: ``raise ... from``. An error
        of another connection's cursor does not count. If the callable raises, the connection stays, and that is
        logged, at most once a minute.
        """
        if self._evict_on is None:
            return False
        if not callable(self._evict_on):
            return any(state in self._evict_on or state[:2] in self._evict_on for state in _sqlstates(error, conn))
        try:
            return bool(self._evict_on(error))
        except BaseException as failure:
            if is_external(failure):
                raise
            self._log(failure)
            return False

    def _log(self, failure: BaseException) -> None:
        now = monotonic()
        if now >= self._next_log:
            self._next_log = now + ERROR_LOG_INTERVAL
            log_failure("evict_on raised an error; the connection is kept", failure, logging.WARNING)


def _sqlstates(error: BaseException, conn: connection) -> Iterator[str]:
    """Iterate over the SQLSTATEs that a connection has met, of an error and of those from which it was raised."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        state = sqlstate_of(cause)
        cursor = getattr(cause, "cursor", None)  # None for a failed commit
        if state is not None and (cursor is None or cursor.connection is conn):
            yield state
        cause = cause.__cause__
