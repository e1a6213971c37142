"""Calls of a subclass's own ``getconn``, which may call psycopg2's method internally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg2.extensions import connection

from otel_pgpool.instrumentation.adapters.psycopg2.private import is_checked_out
from otel_pgpool.instrumentation.adapters.psycopg2.results import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.checkout import ManualCheckout


class SubclassCall:
    """A call in progress, and what its inner call of psycopg2's method returned."""

    __slots__ = ("_inner_result", "_pool", "_tracker", "checkout", "error", "is_repeat")

    def __init__(self, pool: Any, tracker: PoolTracker) -> None:
        self._pool = pool
        self._tracker = tracker
        self.checkout: ManualCheckout | None = None
        self._inner_result: Any = None
        self.is_repeat = False  # True: by a key that was checked out already
        self.error: BaseException | None = None

    def call_inner(self, getconn: Callable[[], Any], *, is_repeat: bool) -> Any:
        """Make an inner call, and remember its result or its error."""
        waits = self.error is not None and is_exhausted(self.error)  # the subclass waits by a repeated call
        if waits and self.checkout is not None and self.checkout.queued is None:
            self._tracker.enqueued(self.checkout)
        try:
            result = getconn()
        except BaseException as error:
            self.error = error
            raise
        if is_checked_out(self._pool, result):
            self._inner_result, self.is_repeat = result, is_repeat
        return result

    def acquired(self, result: Any) -> Any:
        """Return the connection that was checked out, or None; a subclass's ``getconn`` may return any object."""
        if self.is_repeat:
            return None
        if isinstance(result, connection):
            return result
        return self._inner_result if is_checked_out(self._pool, self._inner_result) else None
