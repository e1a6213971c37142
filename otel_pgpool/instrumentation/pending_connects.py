"""A buffer for the connects of an instrumented pool.

A pool connects under its own locks, where the observer must not be called. The observer is notified later.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.observer import Connect
from otel_pgpool.pool.outage import Outage, OutageChange, after_failure, number_after
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


class PendingConnect(NamedTuple):
    """A connect of which the observer has not been notified yet."""

    caller: int
    """Key of the caller that connected: see `PendingConnects`."""
    connect: Connect
    change: OutageChange

    def report(self, observer: PoolObserver, guard: ObserverGuard, checkout: Checkout | None) -> None:
        """Notify the observer of the connect, made for ``checkout`` or for none, and of a change of the outage."""
        connect = replace(self.connect, asked_by=checkout)
        guard.notify(observer.connected if connect.error is None else observer.connect_failed, connect)
        self.change.report(guard, observer, connect)


class PendingConnects:
    """The connects of one instrumented pool, each with the key of its caller.

    By default a caller is a thread, and its key is the thread's identity. The adapter of a pool for coroutines passes
    the key of the checkout, `Checkout.caller`, because one thread runs all coroutines.
    """

    __slots__ = ("connecting", "outage", "pending")

    def __init__(self) -> None:
        self.outage: Outage | None = None
        self.connecting: set[int] = set()  # callers, by key
        self.pending: deque[PendingConnect] = deque()

    def succeeded(self, began: float, address: str | None, port: int | None, caller: int | None = None) -> None:
        """Add a successful connect, which ends an outage."""
        before, self.outage = self.outage, None
        connect = Connect(number_after(before), began, monotonic(), None, address=address, port=port)
        self.pending.append(PendingConnect(_key_of(caller), connect, OutageChange(before, None)))

    def failed(
        self,
        began: float,
        error: BaseException,
        message: str,
        *,
        is_refusal: bool,
        caller: int | None = None,
        callback: str = "",
    ) -> None:
        """Add a failed connect, which starts or continues an outage; a refusal ends it, because the server was reached.

        A connect that a callback of the program has prevented does not change the outage.
        """
        before = after = self.outage
        # An interrupt does not mean that the server is down.
        if isinstance(error, Exception) and (is_refusal or not callback):
            self.outage = after = after_failure(before, Outage(began, 1, is_refusal=is_refusal))
        connect = Connect(
            number_after(before), began, monotonic(), None, error, message, is_refusal=is_refusal, callback=callback
        )
        self.pending.append(PendingConnect(_key_of(caller), connect, OutageChange(before, after)))

    def pop_of(self, caller: int | None) -> Iterator[PendingConnect]:
        """Remove and yield the connects of a caller, by default the calling thread, each once."""
        key = _key_of(caller)
        for each in self.pending.copy():
            if each.caller == key:
                with suppress(ValueError):  # another thread has removed it
                    self.pending.remove(each)
                    yield each

    def overdue_callers(self, now: float) -> list[int]:
        """Return the callers with a connect older than `REPORT_AFTER`, in the order of their connects."""
        return [*dict.fromkeys(each.caller for each in self.pending.copy() if now - each.connect.ended > REPORT_AFTER)]


def _key_of(caller: int | None) -> int:
    return threading.get_ident() if caller is None else caller
