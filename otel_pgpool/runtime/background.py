"""A base class for a background thread: starts on demand, sleeps between passes, ends with the object it serves."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

from otel_pgpool.runtime.failures import log_failure
from otel_pgpool.runtime.fork import keep_from_forking
from otel_pgpool.runtime.gevent import is_unpatched
from otel_pgpool.runtime.wakeup import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.runtime.wakeup import Wakeup

Subject = TypeVar("Subject")

AFTER_FAILURE = 0.5
"""Seconds between a failed pass and the next one."""


class BackgroundThread(Generic[Subject]):
    """A daemon thread, started at the first `wake`.

    It has a weak reference to its subject, and ends with the subject.
    """

    def __init__(self, subject: Subject | None, wakeup: Wakeup, name: str) -> None:
        self._wakeup = wakeup
        self._subject: Callable[[], Subject | None] = lambda: None
        self._name = name
        self._lock = threading.Lock()  # guards the start of the thread, nothing else
        self._thread: threading.Thread | None = None
        if subject is not None:
            self.serve(subject)

    def serve(self, subject: Subject) -> None:
        """Set the subject, before the first `wake`."""
        self._subject = weakref.ref(subject, self._wakeup.set_on_collect)

    def wake(self) -> None:
        """Start the next pass now, in a new thread if none runs.

        Raises:
            RuntimeError: no thread can be started.
        """
        if not self._runs():
            self._renew()
            with self._lock:
                if not self._runs():
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    start(self._thread)  # after an interrupt the thread may or may not run
                    return  # without setting the wakeup: the thread begins with a pass, and another would follow
        self._wakeup.set()

    def _renew(self) -> None:
        """Replace the locks if gevent has patched them.

        ``opentelemetry-instrument`` imports this package before gevent applies its patches.
        """
        if is_unpatched(self._lock):
            self._lock = threading.Lock()
            self._wakeup.rebuild_if_patched()

    def _runs(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the thread to end."""
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, min(seconds, threading.TIMEOUT_MAX)))

    def _run(self) -> None:
        seconds: float | None = 0.0
        while seconds is not None:
            try:
                self._wakeup.wait(seconds)
                seconds = self._next()
            except BaseException as error:  # noqa: BLE001 - no error, not even an injected one, may end the thread
                log_failure(
                    f"{self._name}: a maintenance pass failed; the next one follows in {AFTER_FAILURE} s", error
                )
                seconds = AFTER_FAILURE

    def _next(self) -> float | None:
        """Do a pass, unless the subject is gone or another thread has replaced this one."""
        subject = self._subject()
        if subject is None or self._thread is not threading.current_thread():
            return None
        with keep_from_forking():
            return self._run_once(subject)

    def _run_once(self, subject: Subject) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread."""
        raise NotImplementedError
