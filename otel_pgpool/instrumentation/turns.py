"""A queue for callers of an exhausted psycopg2 pool, which itself does not wait: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from psycopg2.pool import PoolError

from otel_pgpool.instrumentation.lenient import lenient
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable


AGAIN = 0.1
"""Interval in seconds at which the first waiter asks the pool; a subclass may return by a method that is not wrapped.
"""

EXHAUSTED = "connection pool exhausted"


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error means that all connections are in use; psycopg2 has only this text for it, no class."""
    if isinstance(error, PoolError):
        with lenient:  # ``str`` of an application's own class may raise
            return str(error) == EXHAUSTED
    return False


class Turns:
    """The queue in front of a psycopg2 pool.

    Only the first waiter asks the pool. A return wakes it, and a waiter that leaves the queue wakes the next one.
    """

    def __init__(self) -> None:
        # Guards the queue. Code that holds it does not call the pool, wait or notify. Reentrant, because the garbage
        # collector may run under it and close a generator, which returns a connection.
        self._lock = threading.RLock()
        self._queue: deque[Wakeup] = deque()
        self._ended = False

    def __bool__(self) -> bool:
        """Return whether a caller waits."""
        return bool(self._queue)

    def wait_for(self, ask: Callable[[], Any], seconds: float, give_back: Callable[[Any], object] = id) -> Any:
        """Ask the pool when the caller is first in the queue, and again after each return, for at most ``seconds``.

        If an interrupt hits before the caller has the connection, the connection is returned.

        Raises:
            PoolError: the pool was exhausted all the time; the text is psycopg2's.
            BaseException: any other exception that ``ask`` raised.
        """
        deadline = monotonic() + seconds
        turn = Wakeup()
        given = None
        try:
            with self._lock:
                self._queue.append(turn)
            while True:
                if self._queue[0] is turn:
                    try:
                        given = ask()
                        break
                    except PoolError as error:
                        if self._ended or not is_exhausted(error):
                            raise
                if not turn.wait(min(AGAIN, deadline - monotonic())) and monotonic() >= deadline:
                    raise PoolError(EXHAUSTED)  # noqa: TRY301 - the handler below raises it again
            self._leave(turn)
        except BaseException:
            if given is not None:
                give_back(given)
            self._leave(turn)
            raise
        return given

    def _leave(self, turn: Wakeup) -> None:
        with self._lock, suppress(ValueError):  # not in the queue: already removed, or never added due to an interrupt
            self._queue.remove(turn)
        self.call()

    def end(self) -> None:
        """Stop queueing: every waiter asks once more and accepts the result, because nothing will wake it again."""
        self._ended = True
        self.call()

    def call(self) -> None:
        """Wake the first waiter, because a connection may be free."""
        with self._lock:
            if self._queue:
                self._queue[0].ring()
