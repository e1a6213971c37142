"""The waits of callers: for a connection in the queue, or for the whole pool in ``wait()`` and ``close()``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout


class OneShotEvent:
    """An event on which one thread waits, once. Another thread sets it by releasing a raw lock."""

    __slots__ = ("error", "lock")

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.lock.acquire()

    def set(self, error: BaseException | None = None) -> None:
        """Wake the waiting thread, with an error or without one."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Wake the waiting thread, which locks the lock again by that. Called under the pool's lock."""
        with suppress(RuntimeError):  # it was woken before, and has not run since
            self.lock.release()


class Waiter(OneShotEvent):
    """A caller in the queue for a connection."""

    __slots__ = ("checkout", "conn")

    def __init__(self, checkout: Checkout) -> None:
        super().__init__()
        self.checkout = checkout
        self.conn: connection | None = None
        """The connection, once it was handed over; then the lock is released."""

    @property
    def is_waiting(self) -> bool:
        """Whether the caller has got neither a connection nor an error."""
        return self.conn is None and self.error is None


class Queue(OrderedDict["Checkout", Waiter]):
    """The waiters of a pool by their checkout, first come, first served; its methods are called under the pool's lock.

    The time that a method takes does not depend on the number of waiters, so that many waiters that time out together
    do not delay the pool.
    """

    def join(self, checkout: Checkout) -> Waiter:
        """Add a waiter behind all whose checkouts started earlier, so that a retried checkout keeps its turn."""
        waiter = self[checkout] = Waiter(checkout)
        later = takewhile(lambda other: other.started > checkout.started, islice(reversed(self), 1, None))
        for other in reversed(list(later)):
            self.move_to_end(other)
        return waiter

    def first(self) -> Waiter | None:
        """Return the first unserved waiter; remove served ones, which an interrupted hand-over may have left."""
        while self:
            waiter = next(iter(self.values()))
            if waiter.is_waiting:
                return waiter
            del self[waiter.checkout]
        return None

    def leave(self, checkout: Checkout) -> None:
        """Remove a checkout from the queue, if present."""
        self.pop(checkout, None)

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        """Remove a waiter and wake it with an error."""
        self.leave(waiter.checkout)
        waiter.set(error)

    # A change of class instead of a new object: a signal handler may suspend the pool while its thread is in `join`,
    # whose waiter must be in the queue afterwards. A flag would need a `__bool__` here, a call in every checkout.

    def suspend(self) -> None:
        """Serve nobody from now on."""
        self.__class__ = SuspendedQueue

    def resume(self) -> None:
        """Serve the waiters again, in their order."""
        self.__class__ = Queue


class SuspendedQueue(Queue):
    """The queue of a suspended pool. It has no first waiter, so that nobody is served.

    It is true even without a waiter: a checkout that finds it so waits in it, and does not get an idle connection.
    """

    def __bool__(self) -> bool:
        return True

    def first(self) -> Waiter | None:
        """Return None: no waiter is to be served."""
        return None
