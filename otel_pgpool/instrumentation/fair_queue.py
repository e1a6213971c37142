"""A queue for callers of an exhausted pool that does not wait itself: first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_INTERVAL = 0.1
"""Seconds after which the first waiter asks again: a subclass may release by a method that is not wrapped."""


def _ignore(_acquired: object) -> None:
    """Do nothing."""


class FairQueue:
    """The queue in front of one pool.

    Only the first waiter asks the pool. A release wakes that waiter, and a waiter that leaves the queue wakes the next.

    Args:
        is_exhausted: return whether the pool raised an error because all of its connections are held.
        exhausted_error: create that error, for a waiter that has not asked the pool when its wait ends.
    """

    def __init__(self, is_exhausted: Callable[[BaseException], bool], exhausted_error: Callable[[], Exception]) -> None:
        self._is_exhausted = is_exhausted
        self._exhausted_error = exhausted_error
        # Guards the queue. Code that holds it does not call the pool, wait or notify. Reentrant, because the garbage
        # collector may run under it and close a generator, which releases a connection.
        self._lock = threading.RLock()
        self._waiters: deque[Wakeup] = deque()
        self._ended = False

    def __bool__(self) -> bool:
        """Return whether a caller waits."""
        return bool(self._waiters)

    def wait_for(self, acquire: Callable[[], Any], seconds: float, release: Callable[[Any], object] = _ignore) -> Any:
        """Ask the pool when the caller is first in the queue, and again after each release, for at most ``seconds``.

        Args:
            acquire: ask the pool for a connection.
            seconds: longest wait in seconds.
            release: release a connection that an interrupt has kept from the caller; by default nothing is done.

        Raises:
            Exception: the pool was exhausted all the time; the error is the pool's.
            BaseException: any other exception that ``acquire`` raised.
        """
        deadline = monotonic() + seconds
        waiter = Wakeup()
        acquired = None
        try:
            with self._lock:
                self._waiters.append(waiter)
            while True:
                is_first = self._waiters[0] is waiter
                if is_first:
                    try:
                        acquired = acquire()
                        break
                    except Exception as error:
                        if self._ended or not self._is_exhausted(error):
                            raise
                left = deadline - monotonic()
                if not waiter.wait(min(RETRY_INTERVAL, left) if is_first else left) and monotonic() >= deadline:
                    raise self._exhausted_error()  # noqa: TRY301 - the handler below raises it again
            self._leave(waiter)
        except BaseException:
            if acquired is not None:
                release(acquired)
            self._leave(waiter)
            raise
        return acquired

    def _leave(self, waiter: Wakeup) -> None:
        with self._lock, suppress(ValueError):  # not in the queue: already removed, or never added due to an interrupt
            self._waiters.remove(waiter)
        self.wake_next()

    def end(self) -> None:
        """Stop queueing: every waiter asks once more and accepts the result, because nothing will wake it again."""
        self._ended = True
        self.wake_next()

    def wake_next(self) -> None:
        """Wake the first waiter, because a connection may be free."""
        with self._lock:
            if self._waiters:
                self._waiters[0].set()
