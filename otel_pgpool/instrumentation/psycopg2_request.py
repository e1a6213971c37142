"""Calls of a subclass's own ``getconn``, which may call the stock method internally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection

from otel_pgpool.instrumentation.psycopg2_arguments import is_out
from otel_pgpool.instrumentation.turns import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.pool.checkout import Loan


class Request:
    """A call in progress, and what its inner stock call returned."""

    __slots__ = ("_given", "_ledger", "_pool", "again", "error", "loan")

    def __init__(self, pool: Any, ledger: Ledger) -> None:
        self._pool = pool
        self._ledger = ledger
        self.loan: Loan | None = None
        self._given: Any = None
        self.again = False  # True: by a key that was checked out already
        self.error: BaseException | None = None

    def ask_inside(self, ask: Callable[[], Any], *, again: bool) -> Any:
        """Make an inner call, and remember its result or its error."""
        waits = self.error is not None and is_exhausted(self.error)  # the subclass itself waits, as it asks once more
        if waits and self.loan is not None and self.loan.queued is None:
            self._ledger.queue(self.loan)
        try:
            result = ask()
        except BaseException as error:
            self.error = error
            raise
        if is_out(self._pool, result):
            self._given, self.again = result, again
        return result

    def lent(self, result: Any) -> Any:
        """Return the connection that was checked out, or None; a subclass's ``getconn`` may return any object."""
        if self.again:
            return None
        if isinstance(result, connection):
            return result
        return self._given if is_out(self._pool, self._given) else None
