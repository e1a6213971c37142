"""A bound on libpq's blocking calls: past it the socket is cut, which makes libpq return at once."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import threading
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool import _fork
from otel_pgpool._clock import monotonic
from otel_pgpool._wakeup import Wakeup, start

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg2.extensions import connection
    from typing_extensions import Self

logger = logging.getLogger("otel_pgpool")

IO_DEADLINE = 5.0
"""Seconds for each ping, check, rollback on return, reset and close."""

IDLE_EXIT = 10.0
"""Seconds after which the watching thread ends when there is nothing to watch."""


class _Duplicate(FileIO):
    """A descriptor that closes itself, without a warning, where an interrupt leaves it."""

    __del__ = FileIO.close


class Deadline:
    """``with Deadline(conn, seconds) as deadline``: cut the connection's socket when the block takes longer.

    The cut is a ``shutdown`` on a duplicate of the descriptor, because libpq may close the original, and the system
    give its number to another file, at any moment. ``expired`` tells whether it came to that.
    """

    __slots__ = ("_conn", "_duplicate", "at", "expired")

    def __init__(self, conn: connection, seconds: float = IO_DEADLINE) -> None:
        self._conn = conn
        self._duplicate: _Duplicate | None = None
        self.at = monotonic() + seconds
        self.expired = False

    def __enter__(self) -> Self:
        try:
            self._duplicate = _Duplicate(os.dup(self._conn.fileno()))
        except psycopg2.Error:  # a closed connection has nothing that could block
            return self
        except OSError as error:
            if error.errno != errno.EBADF:  # likewise
                logger.warning("no descriptor is left to watch a deadline: %s; this call has none", error)
            return self
        try:
            _watch.add(self)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            _watch.remove(self)
        except BaseException:
            _watch.remove(self)  # an interrupt has kept it from that
            raise
        finally:
            if self._duplicate is not None:
                self._duplicate.close()

    def cut(self) -> None:
        """End the block's call. The caller holds the watch's lock, and the block has not ended."""
        self.expired = True
        if self._duplicate is not None and not self._duplicate.closed:
            with suppress(OSError):
                borrowed = socket.socket(fileno=self._duplicate.fileno())  # another duplicate may not be had
                try:
                    borrowed.shutdown(socket.SHUT_RDWR)
                finally:
                    borrowed.detach()


def sever(conn: connection) -> None:
    """Cut the connection now, so that a call of another thread on it ends and closing it does not block."""
    with suppress(psycopg2.Error, OSError):
        number = conn.fileno()
        with socket.socket(fileno=os.dup(number)) as duplicate:
            if conn.fileno() == number:  # else libpq has closed it, and the number may be that of another file
                duplicate.shutdown(socket.SHUT_RDWR)


class _Watch:
    """One thread for the whole process, which sleeps until the next deadline, or a little less."""

    def __init__(self) -> None:
        # Guards the attributes below, and the descriptors of the deadlines among them. Reentrant, because the garbage
        # collector may end a block, and so return a connection, inside it.
        self._lock = threading.RLock()
        self._deadlines: set[Deadline] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None
        self._wakeup = Wakeup()

    def add(self, deadline: Deadline) -> None:
        thread = None
        with self._lock:
            self._deadlines.add(deadline)
            sooner = deadline.at < self._wakes_at
            if self._thread is None or not self._thread.is_alive():  # an interrupt may keep it from starting, or end it
                self._wakeup = Wakeup()  # a thread told to end may sleep still on its own: the ring must find each
                thread = self._thread = threading.Thread(
                    target=self._run, args=(self._wakeup,), name="otel_pgpool-deadlines", daemon=True
                )
        if thread is not None:
            self._start(thread)
        elif sooner:
            self._wakeup.ring()

    def _start(self, thread: threading.Thread) -> None:
        try:
            start(thread)
        except BaseException as error:
            with self._lock:
                if self._thread is thread:
                    self._thread = None
            if not isinstance(error, RuntimeError):
                raise
            logger.warning("no thread can be started to watch deadlines: %s; this call has none", error)

    def remove(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.discard(deadline)

    def stop(self) -> None:
        with self._lock:
            if self._deadlines or self._thread is None:
                return
            thread, self._thread = self._thread, None
            self._wakeup.ring()
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def _cut_overdue(self, now: float) -> None:
        """Under the lock. A function of its own, so that no variable keeps a connection while the thread sleeps."""
        for deadline in list(self._deadlines):
            if deadline.at <= now:
                self._deadlines.discard(deadline)
                deadline.cut()

    def _run(self, wakeup: Wakeup) -> None:
        while True:
            with self._lock:
                if self._thread is None and self._deadlines:  # an interrupt has let its starter believe that it failed
                    self._thread, self._wakeup = threading.current_thread(), wakeup
                if self._thread is not threading.current_thread():
                    return
                now = monotonic()
                self._cut_overdue(now)
                self._wakes_at = min((each.at for each in list(self._deadlines)), default=now + IDLE_EXIT)
            rung = wakeup.wait(self._wakes_at - now)
            with self._lock:
                if not rung and not self._deadlines and self._thread is threading.current_thread():
                    self._thread = None


_watch = _Watch()


def stop_watching() -> None:
    """End the watching thread, unless something is being watched; the next deadline starts it again."""
    _watch.stop()


def _after_fork() -> None:
    global _watch  # noqa: PLW0603 - the parent's thread and lock do not exist in the child
    _watch = _Watch()


_fork.register(_after_fork)
