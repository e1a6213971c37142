"""A buffer for the connects of an instrumented pool.

A pool connects under its own locks, where the observer must not be called. The observer is notified later.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.driver.refusal import is_refusal
from otel_pgpool.instrumentation.driver import place_of
from otel_pgpool.observer import Connect
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator


TOLD_AFTER = 30.0
"""Seconds after which the observer is notified of a connect that no checkout has claimed.

Until then the connecting thread may still be preparing the connection for its checkout.
"""


class Outage(NamedTuple):
    """A period in which the server cannot be reached."""

    since: float
    attempts: int


class Untold(NamedTuple):
    """A connect of which the observer has not been notified yet."""

    thread: int
    """Identity of the thread that connected."""
    connect: Connect
    outage: Outage | None
    """The outage that was in progress before the connect."""


class Connects:
    """The connects of one instrumented pool."""

    __slots__ = ("outage", "under_way", "untold")

    def __init__(self) -> None:
        self.outage: Outage | None = None
        self.under_way: set[int] = set()  # threads, by identity
        self.untold: deque[Untold] = deque()

    def made(self, began: float, conn: Any) -> None:
        """Add a successful connect, which ends an outage."""
        now = monotonic()
        ended, self.outage = self.outage, None
        address, port = place_of(conn)
        connect = Connect(1 + (ended.attempts if ended else 0), began, now, None, address=address, port=port)
        self.untold.append(Untold(threading.get_ident(), connect, ended))

    def failed(self, began: float, error: BaseException, message: str) -> None:
        """Add a failed connect, which starts or continues an outage; a refusal ends it, as the server was reached."""
        now = monotonic()
        before = self.outage
        since, attempts = before or Outage(now, 0)
        if is_refusal(error):
            self.outage = None
        elif isinstance(error, Exception):  # an interrupt does not mean that the server is down
            self.outage = Outage(since, attempts + 1)
        connect = Connect(attempts + 1, began, now, None, error, message)
        self.untold.append(Untold(threading.get_ident(), connect, before))

    def take(self, thread: int) -> Iterator[Untold]:
        """Remove and yield the connects of a thread, each once."""
        for each in self.untold.copy():
            if each.thread == thread:
                try:
                    self.untold.remove(each)
                except ValueError:  # another thread has removed it
                    continue
                yield each

    def overdue(self, now: float) -> list[int]:
        """Return the threads with a connect older than `TOLD_AFTER`, in the order of their connects."""
        return [*dict.fromkeys(each.thread for each in self.untold.copy() if now - each.connect.ended > TOLD_AFTER)]
