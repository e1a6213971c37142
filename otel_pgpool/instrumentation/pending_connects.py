"""A buffer for the connects of an instrumented pool.

A pool connects under its own locks, where the observer must not be called. The observer is notified later.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.observer import Connect
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.observer import PoolObserver
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.runtime.failures import ObserverGuard


REPORT_AFTER = 30.0
"""Seconds after which the observer is notified of a connect that no checkout has claimed.

Until then the caller may still be preparing the connection for its checkout.
"""


class TrackedOutage(NamedTuple):
    """An outage of an instrumented pool: the time in which no connection can be made."""

    since: float
    attempts: int


class PendingConnect(NamedTuple):
    """A connect of which the observer has not been notified yet."""

    caller: int
    """Key of the caller that connected: see `PendingConnects`."""
    connect: Connect
    outage: TrackedOutage | None
    """The outage that was in progress before the connect."""
    reached_server: bool
    """Whether the connect succeeded, or the server refused it."""

    def report(self, observer: PoolObserver, guard: ObserverGuard, checkout: Checkout | None) -> None:
        """Notify the observer of the connect, and of the ``checkout`` that it served, if any, and of an outage."""
        connect, outage = replace(self.connect, asked_by=checkout), self.outage
        guard.notify(observer.connected if connect.error is None else observer.connect_failed, connect)
        if self.reached_server:
            if outage is not None:
                guard.notify(observer.outage_ended, outage.attempts, connect.ended - outage.since)
        elif outage is None and isinstance(connect.error, Exception):
            guard.notify(observer.outage_started, connect)


class PendingConnects:
    """The connects of one instrumented pool, each with the key of its caller.

    A caller is a thread by default, and its key the thread's identity. An adapter of a pool for coroutines passes the
    key of the checkout, `Checkout.caller`, because one thread runs all of them.
    """

    __slots__ = ("connecting", "outage", "pending")

    def __init__(self) -> None:
        self.outage: TrackedOutage | None = None
        self.connecting: set[int] = set()  # callers, by key
        self.pending: deque[PendingConnect] = deque()

    def succeeded(self, began: float, address: str | None, port: int | None, caller: int | None = None) -> None:
        """Add a successful connect, which ends an outage."""
        now = monotonic()
        ended, self.outage = self.outage, None
        connect = Connect(1 + (ended.attempts if ended else 0), began, now, None, address=address, port=port)
        self.pending.append(PendingConnect(_key_of(caller), connect, ended, reached_server=True))

    def failed(
        self, began: float, error: BaseException, message: str, *, is_refusal: bool, caller: int | None = None
    ) -> None:
        """Add a failed connect, which starts or continues an outage; a refusal ends it, as the server was reached."""
        before = self.outage
        since, attempts = before or TrackedOutage(began, 0)
        if is_refusal:
            self.outage = None
        elif isinstance(error, Exception):  # an interrupt does not mean that the server is down
            self.outage = TrackedOutage(since, attempts + 1)
        connect = Connect(attempts + 1, began, monotonic(), None, error, message, is_refusal=is_refusal)
        self.pending.append(PendingConnect(_key_of(caller), connect, before, reached_server=is_refusal))

    def pop_of(self, caller: int | None) -> Iterator[PendingConnect]:
        """Remove and yield the connects of a caller, by default the calling thread, each once."""
        key = _key_of(caller)
        for each in self.pending.copy():
            if each.caller == key:
                try:
                    self.pending.remove(each)
                except ValueError:  # another thread has removed it
                    continue
                yield each

    def overdue_callers(self, now: float) -> list[int]:
        """Return the callers with a connect older than `REPORT_AFTER`, in the order of their connects."""
        return [*dict.fromkeys(each.caller for each in self.pending.copy() if now - each.connect.ended > REPORT_AFTER)]


def _key_of(caller: int | None) -> int:
    return threading.get_ident() if caller is None else caller
