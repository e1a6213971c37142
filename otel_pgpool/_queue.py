"""Callers asleep: in the queue for a connection, or until the pool is full or quiet."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool._checkout import Checkout


class Sleeper:
    """A thread asleep on a raw lock of its own, which whoever wakes it releases."""

    __slots__ = ("error", "lock")

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.lock.acquire()

    def wake(self, error: BaseException | None = None) -> None:
        """End its sleep, with an error or without."""
        self.error = error
        self.lock.release()


class Waiter(Sleeper):
    """A caller in the queue for a connection."""

    __slots__ = ("checkout", "conn")

    def __init__(self, checkout: Checkout) -> None:
        super().__init__()
        self.checkout = checkout
        self.conn: connection | None = None

    def serve(self, conn: connection) -> None:
        """Hand it a connection."""
        self.conn = conn
        self.lock.release()


class Queue(deque[Waiter]):
    """First come, first served. Every method expects its caller to hold the pool's lock."""

    def join(self, checkout: Checkout) -> Waiter:
        """Queue behind all who asked earlier: one whose connection turned out dead keeps its turn."""
        waiter = Waiter(checkout)
        position = len(self)
        while position and self[position - 1].checkout.started > checkout.started:
            position -= 1
        self.insert(position, waiter)
        return waiter

    def first(self) -> Waiter | None:
        """The first who still waits; one whose server was interrupted after serving it is left out."""
        while self and (self[0].conn is not None or self[0].error is not None):
            self.popleft()
        return self[0] if self else None

    def leave(self, checkout: Checkout) -> None:
        """Give up the place, if it is still there."""
        for waiter in [waiter for waiter in self if waiter.checkout is checkout]:
            self.remove(waiter)

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        """Take one out and wake it with an error."""
        self.remove(waiter)
        waiter.wake(error)
