"""A thread that looks after something: started on demand, asleep between two looks, gone with what it looks after."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

from otel_pgpool._guard import log_failure
from otel_pgpool._wakeup import is_outdated, start

if TYPE_CHECKING:
    from otel_pgpool._wakeup import Wakeup

Subject = TypeVar("Subject")

AFTER_FAILURE = 0.5
"""Seconds until the next look after one that failed."""


class Watcher(Generic[Subject]):
    """One daemon thread, started with the first thing to watch. It holds its subject weakly and ends with it."""

    def __init__(self, subject: Subject, wakeup: Wakeup, name: str) -> None:
        self._wakeup = wakeup
        self._subject = weakref.ref(subject, self._wakeup.ring_for)
        self._name = name
        self._lock = threading.Lock()  # guards the start of the thread, nothing else
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Let it look now; start it if it does not run.

        Raises:
            RuntimeError: no thread can be started.
        """
        if not self._runs():
            self._renew()
            with self._lock:
                if not self._runs():
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    start(self._thread)  # an interrupt here may leave it running or not
                    return  # it begins with a look, and must not take the next one for that of a tick later
        self._wakeup.ring()

    def _renew(self) -> None:
        """Follow gevent: what ``opentelemetry-instrument`` has imported is older than its patches."""
        if is_outdated(self._lock):
            self._lock = threading.Lock()
            self._wakeup.renew()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, for at most ``seconds``."""
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, min(seconds, threading.TIMEOUT_MAX)))

    def _run(self) -> None:
        seconds: float | None = 0.0
        while seconds is not None:
            try:
                self._wakeup.wait(seconds)
                seconds = self._next()
            except BaseException as error:  # noqa: BLE001 - what it looks after must not go unwatched
                log_failure(f"{self._name}: a look failed, and it goes on", error)
                seconds = AFTER_FAILURE

    def _next(self) -> float | None:
        """Look, if it is this thread's turn."""
        subject = self._subject()
        if subject is None or self._thread is not threading.current_thread():
            return None
        return self._look(subject)

    def _look(self, subject: Subject) -> float | None:
        """Do what is due; seconds until the next look, or None to end."""
        raise NotImplementedError
