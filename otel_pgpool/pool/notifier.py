"""Notifications of a pool's observer, whose errors do not reach the application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.failures import ObserverGuard

if TYPE_CHECKING:
    from otel_pgpool.observer import PoolObserver


class Notifier(ObserverGuard):
    """The observer of a pool, if it has one, and the protected way to call it."""

    def __init__(self, observer: PoolObserver | None) -> None:
        super().__init__("")
        self.observer = observer
