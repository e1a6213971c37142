"""Callers of an exhausted stock pool, who take turns: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from psycopg2.pool import PoolError

from otel_pgpool._clock import monotonic
from otel_pgpool._wakeup import Wakeup
from otel_pgpool.instrumentation.lenient import lenient

if TYPE_CHECKING:
    from collections.abc import Callable


AGAIN = 0.1
"""Seconds after which the first asks unasked: a subclass may give back by a method of its own."""

EXHAUSTED = "connection pool exhausted"


def is_exhausted(error: BaseException) -> bool:
    """Whether a stock pool says that every connection is in use: it has no class for that, only these words."""
    if isinstance(error, PoolError):
        with lenient:  # a class of the program's own may not say it
            return str(error) == EXHAUSTED
    return False


class Turns:
    """A queue in front of a pool that can only say no.

    Only the first in the queue asks the pool; whoever gives a connection back wakes it. Who leaves wakes the next.
    """

    def __init__(self) -> None:
        # Guards the queue, and nothing else happens while it is held: no call of the pool, no wait, no telemetry.
        # Reentrant, because the garbage collector may close a generator, and so return a connection, inside it.
        self._lock = threading.RLock()
        self._queue: deque[Wakeup] = deque()
        self._ended = False

    def __bool__(self) -> bool:
        """Whether somebody waits."""
        return bool(self._queue)

    def wait_for(self, ask: Callable[[], Any], seconds: float, give_back: Callable[[Any], object] = id) -> Any:
        """Ask the pool when it is our turn, again after each return, for at most ``seconds``.

        What it gave is given back where an interrupt comes before the caller has it.

        Raises:
            PoolError: it was exhausted all the time; the stock pool's own words.
            BaseException: whatever else ``ask`` raised.
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
                    raise PoolError(EXHAUSTED)  # noqa: TRY301 - the handler below lets it pass
            self._leave(turn)
        except BaseException:
            if given is not None:
                give_back(given)
            self._leave(turn)
            raise
        return given

    def _leave(self, turn: Wakeup) -> None:
        with self._lock, suppress(ValueError):  # it has left, or an interrupt came before it stood there
            self._queue.remove(turn)
        self.call()

    def end(self) -> None:
        """Nobody will be called any more: let each ask once more, and take the answer."""
        self._ended = True
        self.call()

    def call(self) -> None:
        """A connection may be free: let the first ask."""
        with self._lock:
            if self._queue:
                self._queue[0].ring()
