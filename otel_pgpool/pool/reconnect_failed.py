"""The program's ``reconnect_failed``, which is called if attempts to connect fail for long."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.core import State
from otel_pgpool.runtime.failures import log_failure
from otel_pgpool.runtime.wakeup import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable


class ReconnectFailed(Part):
    """The time for which every attempt to connect has failed, and the call that follows once it is too long.

    The program's function runs in a thread of its own, so that it may take its time, close the pool or raise anything:
    the pool goes on to connect.
    """

    def __init__(self, common: Common) -> None:
        super().__init__(common)
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._was_called = False

    def connected(self) -> None:
        """Note a successful attempt."""
        if self._failing_since is not None:
            with self._lock:
                self._failing_since, self._was_called = None, False

    def failed(self, began: float, ended: float) -> None:
        """Note a failed attempt, and call the function if it is the first one after the time that the program sets."""
        callback = self._config.reconnect_failed
        if callback is None or self._core.state is State.CLOSED:
            return
        with self._lock:
            since = self._failing_since = began if self._failing_since is None else min(began, self._failing_since)
            if self._was_called or ended - since < self._config.reconnect_timeout:
                return
            self._was_called = True
        pool = self._notifier.pool()
        if pool is None:  # collected meanwhile
            return
        thread = threading.Thread(
            target=self._call, args=(callback, pool), name="otel_pgpool-reconnect-failed", daemon=True
        )
        try:
            start_thread(thread)
        except RuntimeError:  # no thread can be started now: the next failed attempt calls
            self._was_called = False

    def _call(self, callback: Callable[[object], object], pool: object) -> None:
        try:
            callback(pool)
        except BaseException as error:  # noqa: BLE001 - a SystemExit too: it would end this thread only
            log_failure(f"pool {self._core.name}: reconnect_failed raised an error; the pool is not affected", error)
