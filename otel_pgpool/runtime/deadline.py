"""A time limit for the blocking calls of a driver: when it has passed, a shutdown of the socket makes them return."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import threading
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, Protocol

from otel_pgpool.runtime import fork
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_safely
from otel_pgpool.runtime.wakeup import Wakeup, start_thread

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

IDLE_EXIT = 10.0
"""Seconds without a deadline after which the watchdog thread ends."""


class _Duplicate(FileIO):
    """A descriptor that closes itself, without a ResourceWarning, if an interrupt leaves it open."""

    __del__ = FileIO.close


class HasDescriptor(Protocol):
    """A connection with a socket."""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""


class SocketDeadline:
    """A time limit for the calls in a ``with`` block; ``expired`` is True if it passed.

    The socket is shut down through a duplicate of its descriptor. A driver may close the original at any moment, and
    the system may then give the number to another file.

    Args:
        conn: the connection.
        seconds: the time limit.
    """

    __slots__ = ("_conn", "_duplicate", "at", "expired")

    def __init__(self, conn: HasDescriptor, seconds: float) -> None:
        self._conn = conn
        self._duplicate: _Duplicate | None = None
        self.at = monotonic() + seconds
        self.expired = False

    def __enter__(self) -> Self:
        try:
            number = self.descriptor()
            if number is None:
                return self
            self._duplicate = _Duplicate(os.dup(number))
        except OSError as error:
            if error.errno != errno.EBADF:  # the connection was closed in between
                _warn_without_timeout("no file descriptor is left", error)
            return self
        try:
            _watch.add(self)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def descriptor(self) -> int | None:
        """Return the descriptor of the socket; None if the connection has none that could block."""
        return self._conn.fileno()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            _watch.remove(self)
        except BaseException:
            _watch.remove(self)  # again, because an interrupt may have prevented the first call
            raise
        finally:
            self.close_duplicate()

    def close_duplicate(self) -> None:
        """Close the duplicate of the descriptor, without which the connection cannot be cut."""
        if self._duplicate is not None:
            self._duplicate.close()

    def cut(self) -> None:
        """Shut the socket down. The caller holds the watchdog's lock, and the block has not ended."""
        self.expired = True
        if self._duplicate is not None and not self._duplicate.closed:
            with suppress(OSError):
                borrowed = socket.socket(fileno=self._duplicate.fileno())  # no dup: there may be no free descriptor
                try:
                    borrowed.shutdown(socket.SHUT_RDWR)
                finally:
                    borrowed.detach()


class _Watch:
    """The watchdog: one thread for the whole process, which sleeps until the next deadline."""

    def __init__(self) -> None:
        # Guards the attributes below, and the descriptors of the deadlines in `_deadlines`. Reentrant, because the
        # garbage collector may run under it and end a block, which releases a connection.
        self._lock = threading.RLock()
        self._deadlines: set[SocketDeadline] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None
        self._wakeup = Wakeup()

    def add(self, deadline: SocketDeadline) -> None:
        thread = None
        with self._lock:
            self._deadlines.add(deadline)
            sooner = deadline.at < self._wakes_at
            if self._thread is None or not self._thread.is_alive():  # not alive: an interrupt hit its start, or its run
                self._wakeup = Wakeup()  # a new one, as the previous thread may still have to wake to end
                thread = self._thread = threading.Thread(
                    target=self._run, args=(self._wakeup,), name="otel_pgpool-deadlines", daemon=True
                )
        if thread is not None:
            self._start(thread)
        elif sooner:
            self._wakeup.set()

    def _start(self, thread: threading.Thread) -> None:
        try:
            start_thread(thread)
        except BaseException as error:
            with self._lock:
                if self._thread is thread:
                    self._thread = None
            if not isinstance(error, RuntimeError):
                raise
            _warn_without_timeout("no watchdog thread can be started", error)

    def remove(self, deadline: SocketDeadline) -> None:
        with self._lock:
            self._deadlines.discard(deadline)

    def stop(self, seconds: float) -> None:
        with self._lock:
            if self._deadlines or self._thread is None:
                return
            thread, self._thread = self._thread, None
            self._wakeup.set()
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def abandon(self) -> None:
        """Close the duplicates in a forked child: they would keep the parent's connections open. Takes no lock."""
        for deadline in list(self._deadlines):
            deadline.close_duplicate()

    def _cut_overdue(self, now: float) -> None:
        """Cut the overdue connections. The caller holds the lock.

        A function of its own, so that no local variable of `_run` keeps a connection while the thread sleeps.
        """
        for deadline in list(self._deadlines):
            if deadline.at <= now:
                self._deadlines.discard(deadline)
                deadline.cut()

    def _run(self, wakeup: Wakeup) -> None:
        while True:
            with self._lock:
                if (
                    self._thread is None and self._deadlines
                ):  # an interrupt hit `_start`, which counts as a failed start
                    self._thread, self._wakeup = threading.current_thread(), wakeup
                if self._thread is not threading.current_thread():
                    return
                now = monotonic()
                self._cut_overdue(now)
                self._wakes_at = min((each.at for each in list(self._deadlines)), default=now + IDLE_EXIT)
            was_set = wakeup.wait(self._wakes_at - now)
            with self._lock:
                if not was_set and not self._deadlines and self._thread is threading.current_thread():
                    self._thread = None


_watch = _Watch()


def _warn_without_timeout(reason: str, error: Exception) -> None:
    text = "cannot enforce an I/O timeout: %s (%s); continuing without the timeout"
    log_safely(logging.WARNING, text, reason, error)


def stop_watching(seconds: float = 1.0) -> None:
    """End the watchdog thread unless a deadline is set, and wait up to ``seconds`` for that.

    The next deadline starts a new thread.
    """
    _watch.stop(seconds)


def _after_fork() -> None:
    global _watch
    inherited, _watch = _watch, _Watch()
    inherited.abandon()


fork.register(_after_fork)
