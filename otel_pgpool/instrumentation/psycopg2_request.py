"""A ``getconn`` that a subclass has made its own, with the stock one somewhere inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection

from otel_pgpool.instrumentation.psycopg2_arguments import is_out
from otel_pgpool.instrumentation.turns import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool._checkout import Loan
    from otel_pgpool.instrumentation.ledger import Ledger


class Request:
    """One of them while it runs, and what the stock one inside it gave."""

    __slots__ = ("_given", "_ledger", "_pool", "again", "error", "loan")

    def __init__(self, pool: Any, ledger: Ledger) -> None:
        self._pool = pool
        self._ledger = ledger
        self.loan: Loan | None = None
        self._given: Any = None
        self.again = False  # by a key that was lent already
        self.error: BaseException | None = None

    def ask_inside(self, ask: Callable[[], Any], *, again: bool) -> Any:
        """Pass a request of its own through, and remember what came of it."""
        waits = self.error is not None and is_exhausted(self.error)  # in its own way, as it asks once more
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
        """The connection that was lent, where any was: a subclass may return what it likes."""
        if self.again:
            return None
        if isinstance(result, connection):
            return result
        return self._given if is_out(self._pool, self._given) else None
