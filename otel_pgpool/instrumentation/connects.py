"""Physical connects of a pool that is not ours: made under its locks, where nothing may be told, and told later."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool._clock import monotonic
from otel_pgpool._observer import Connect
from otel_pgpool._refusal import is_refusal
from otel_pgpool.instrumentation.driver import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator


TOLD_AFTER = 30.0
"""Seconds after which a connect is told that no checkout has claimed: its thread may still be preparing it."""


class Outage(NamedTuple):
    """The server could not be reached since."""

    since: float
    attempts: int


class Untold(NamedTuple):
    """A connect of which telemetry has not heard yet."""

    thread: int
    """Who made it, by identity."""
    connect: Connect
    outage: Outage | None
    """The one that it fell into, or has ended."""


class Connects:
    """Those of one pool."""

    __slots__ = ("outage", "under_way", "untold")

    def __init__(self) -> None:
        self.outage: Outage | None = None
        self.under_way: set[int] = set()  # threads, by identity
        self.untold: deque[Untold] = deque()

    def made(self, began: float, conn: Any) -> None:
        """A connection was made, which ends an outage."""
        now = monotonic()
        ended, self.outage = self.outage, None
        address, port = place_of(conn)
        connect = Connect(1 + (ended.attempts if ended else 0), began, now, None, address=address, port=port)
        self.untold.append(Untold(threading.get_ident(), connect, ended))

    def failed(self, began: float, error: BaseException, message: str) -> None:
        """An attempt failed, which an outage begins with or goes on; a refusal ends it, as the server was reached."""
        now = monotonic()
        before = self.outage
        since, attempts = before or Outage(now, 0)
        if is_refusal(error):
            self.outage = None
        elif isinstance(error, Exception):  # an interrupt says nothing of the server
            self.outage = Outage(since, attempts + 1)
        connect = Connect(attempts + 1, began, now, None, error, message)
        self.untold.append(Untold(threading.get_ident(), connect, before))

    def take(self, thread: int) -> Iterator[Untold]:
        """What is to be told now of a thread, each once."""
        for each in self.untold.copy():
            if each.thread == thread:
                try:
                    self.untold.remove(each)
                except ValueError:  # another was faster
                    continue
                yield each

    def overdue(self, now: float) -> list[int]:
        """The threads of which something has waited for too long, in the order in which they made it."""
        return [*dict.fromkeys(each.thread for each in self.untold.copy() if now - each.connect.ended > TOLD_AFTER)]
