"""Callers asleep: in the queue for a connection, or until the pool is full or quiet."""

from __future__ import annotations

import threading
from collections import OrderedDict
from itertools import islice, takewhile
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


class Queue(OrderedDict["Checkout", Waiter]):
    """First come, first served, each waiter by its checkout. Every method expects its caller to hold the pool's lock.

    Each takes the same time however many wait, so that a crowd that times out together holds up nobody.
    """

    def join(self, checkout: Checkout) -> Waiter:
        """Queue behind all who asked earlier: one whose connection turned out dead keeps its turn."""
        waiter = self[checkout] = Waiter(checkout)
        later = takewhile(lambda other: other.started > checkout.started, islice(reversed(self), 1, None))
        for other in reversed(list(later)):
            self.move_to_end(other)
        return waiter

    def first(self) -> Waiter | None:
        """The first who still waits; one whose server was interrupted after serving it is left out."""
        while self:
            waiter = next(iter(self.values()))
            if waiter.conn is None and waiter.error is None:
                return waiter
            del self[waiter.checkout]
        return None

    def leave(self, checkout: Checkout) -> None:
        """Give up the place, if it is still there."""
        self.pop(checkout, None)

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        """Take one out and wake it with an error."""
        self.leave(waiter.checkout)
        waiter.wake(error)
