"""Background threads: they start on demand, sleep between passes, and end with the object that they serve."""

from __future__ import annotations

import threading
import weakref
from contextlib import nullcontext
from logging import DEBUG
from typing import TYPE_CHECKING, Protocol

from otel_pgpool.runtime.failures import is_external, log_failure
from otel_pgpool.runtime.fork import keep_from_forking
from otel_pgpool.runtime.gevent import is_unpatched
from otel_pgpool.runtime.wakeup import Wakeup, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

AFTER_FAILURE = 0.5
"""Seconds between a failed pass and the next one."""


class Duties(Protocol):
    """The work of a thread."""

    def run_once(self) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread."""


class BackgroundThread:
    """A daemon thread, started at the first `wake`.

    It has a weak reference to the object that does its work, and ends with that object. Setting its ``wakeup`` begins
    the next pass too, but starts no thread.

    Args:
        duties: the object that does the work.
        name: name of the thread.
        delays_forks: whether ``os.fork`` waits for a pass to end, because it may hold locks of libpq or of telemetry.
    """

    def __init__(self, duties: Duties | None, name: str, *, delays_forks: bool = True) -> None:
        self.wakeup = Wakeup()
        self._duties: Callable[[], Duties | None] = lambda: None
        self._name = name
        self._delays_forks = delays_forks
        self._lock = threading.Lock()  # guards the start of the thread, nothing else
        self._thread: threading.Thread | None = None
        if duties is not None:
            self.set_duties(duties)

    def set_duties(self, duties: Duties) -> None:
        """Set the object that does the work, before the first `wake`."""
        self._duties = weakref.ref(duties, self.wakeup.set_on_collect)

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
                    start_thread(self._thread)  # after an interrupt the thread may or may not run
                    return  # without setting the wakeup: the thread begins with a pass, and another would follow
        self.wakeup.set()

    def _renew(self) -> None:
        """Replace the locks if gevent has patched them.

        ``opentelemetry-instrument`` imports this package before gevent applies its patches.
        """
        if is_unpatched(self._lock):
            self._lock = threading.Lock()
            self.wakeup.rebuild_if_patched()

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
                while seconds is not None:  # inside, because an injected error may be raised at the jump of a loop
                    self.wakeup.wait(seconds)
                    seconds = self._next()
            except BaseException as error:  # noqa: BLE001 - no error, not even an injected one, may end the thread
                log_failure(
                    f"{self._name}: a maintenance pass failed; the next one follows in {AFTER_FAILURE} s", error
                )
                seconds = AFTER_FAILURE

    def _next(self) -> float | None:
        """Do a pass, unless the object is gone or another thread has replaced this one."""
        duties = self._duties()
        if duties is None or self._thread is not threading.current_thread():
            return None
        with keep_from_forking() if self._delays_forks else nullcontext():
            return duties.run_once()


class Parking(Protocol):
    """The place where checkouts read whether their thread is parked."""

    parked: bool
    """Whether the thread sleeps until a checkout wakes it, which costs that checkout some 100 us."""


class ParkingThread(BackgroundThread):
    """A thread that parks after half a second without a checkout: it then has nothing to do before the next one."""

    def __init__(self, parking: Parking, duties: Duties | None, name: str) -> None:
        super().__init__(duties, name)
        self._parking = weakref.ref(parking)  # may be the object that does the work

    def wake(self) -> None:
        """Start the next pass now. If no thread can be started, the next checkout tries again."""
        parking = self._parking()
        if parking is None:
            return
        parking.parked = False
        try:
            super().wake()
        except BaseException as error:
            parking.parked = True
            if is_external(error):
                raise
            log_failure(f"{self._name}: the thread could not be started", error, DEBUG)

    def _run(self) -> None:
        try:
            super()._run()
        finally:  # after an error in the handling of another one, the next checkout starts a new thread
            parking = self._parking()
            if parking is not None:
                parking.parked = True
