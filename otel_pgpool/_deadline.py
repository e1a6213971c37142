"""A bound on libpq's blocking calls: past it the socket is cut, which makes libpq return at once."""

from __future__ import annotations

import heapq
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool._wakeup import Wakeup

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg2.extensions import connection
    from typing_extensions import Self

IO_DEADLINE = 5.0
"""Seconds for each ping, check, rollback on return, reset and close."""

IDLE_EXIT = 10.0
"""Seconds after which the watching thread ends when there is nothing to watch."""


class Deadline:
    """``with Deadline(conn, seconds) as deadline``: cut the connection's socket when the block takes longer.

    The cut is a ``shutdown`` on a duplicate of the descriptor, because libpq may close the original, and the system
    give its number to another file, at any moment. ``expired`` tells whether it came to that.
    """

    __slots__ = ("_conn", "_fd", "at", "expired")

    def __init__(self, conn: connection, seconds: float = IO_DEADLINE) -> None:
        self._conn = conn
        self._fd: int | None = None
        self.at = time.monotonic() + seconds
        self.expired = False

    def __enter__(self) -> Self:
        with suppress(psycopg2.Error, OSError):  # a closed connection has nothing that could block
            self._fd = os.dup(self._conn.fileno())
            _watch.add(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _watch.lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __lt__(self, other: Deadline) -> bool:
        return self.at < other.at

    @property
    def over(self) -> bool:
        """Whether the block has ended."""
        return self._fd is None

    def cut(self) -> None:
        """End the block's call. The caller holds the watch's lock."""
        if self._fd is not None:
            self.expired = True
            shut(self._fd)


def shut(fd: int) -> None:
    """Shut down the socket behind a descriptor, which stays open."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def sever(conn: connection) -> None:
    """Cut the connection now, so that a call of another thread on it ends and closing it does not block."""
    with suppress(psycopg2.Error, OSError):
        shut(conn.fileno())


class _Watch:
    """One thread for the whole process, which sleeps until the next deadline."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards the heap and the descriptors of the deadlines in it
        self._wakeup = Wakeup()
        self._deadlines: list[Deadline] = []
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        thread = None
        with self.lock:
            heapq.heappush(self._deadlines, deadline)
            if self._thread is None:
                thread = self._thread = threading.Thread(target=self._run, name="otel_pgpool-deadlines", daemon=True)
            first = self._deadlines[0] is deadline
        if thread is not None:
            thread.start()
        elif first:
            self._wakeup.ring()

    def _run(self) -> None:
        seconds = 0.0
        while seconds >= 0:
            rung = self._wakeup.wait(seconds)
            with self.lock:
                seconds = self._sweep(idle=not rung and seconds == IDLE_EXIT)

    def _sweep(self, *, idle: bool) -> float:
        """Cut what is late; seconds until the next deadline, or -1 to end."""
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0].over or self._deadlines[0].at <= now):
            heapq.heappop(self._deadlines).cut()
        if self._deadlines:
            return self._deadlines[0].at - now
        if idle:
            self._thread = None
            return -1.0
        return IDLE_EXIT


_watch = _Watch()


def _after_fork() -> None:
    global _watch  # noqa: PLW0603 - the parent's thread and lock do not exist in the child
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
