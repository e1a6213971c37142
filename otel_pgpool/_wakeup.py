"""A thread's alarm clock, which may be rung from anywhere, finalizers included."""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import weakref

    from psycopg2.extensions import connection


def wait_for(lock: threading.Lock, seconds: float) -> bool:
    """Acquire ``lock`` within ``seconds``, which may be infinite."""
    if seconds <= 0:
        return lock.acquire(blocking=False)
    return lock.acquire(timeout=-1 if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))


def start(thread: threading.Thread) -> None:
    """Start a thread. An interrupt may leave it running or not.

    Raises:
        RuntimeError: none can be started; at the interpreter's end Python before 3.12 would wait for it for ever.
    """
    if sys.is_finalizing():
        raise RuntimeError("can't create new thread at interpreter shutdown")
    handled = sys.exc_info()[1]
    try:
        thread.start()
    except RuntimeError as error:
        interrupt = error.__context__
        if interrupt is None or interrupt is handled:
            raise
        raise interrupt from None  # which came inside ``threading.Event``, and left that with "release unlocked lock"


def is_outdated(lock: object) -> bool:
    """Whether gevent has replaced the kind of lock that this one is: waiting on it would stop every greenlet."""
    return type(lock) is not type(threading.Lock())


class Wakeup:
    """A binary semaphore of one raw lock.

    Ringing neither blocks nor takes a lock, so the garbage collector may do it inside any critical section;
    ``threading.Event`` would deadlock there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def renew(self) -> None:
        """Follow gevent, which may have been late; for whoever will wait, before it does."""
        if is_outdated(self._lock):
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock

    def ring(self) -> None:
        """End the present wait, or the next one."""
        with suppress(RuntimeError):  # rung already
            self._lock.release()

    def ring_for(self, _dead: object) -> None:
        """Ring as the callback of a weak reference."""
        self.ring()

    def wait(self, seconds: float) -> bool:
        """Sleep until rung, for at most ``seconds``; True when rung."""
        return wait_for(self._lock, seconds)


class Dropped:
    """Weak references to lent connections that their borrowers dropped, for the maintenance to reclaim."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._refs: deque[weakref.ref[connection]] = deque()

    def append(self, ref: weakref.ref[connection]) -> None:
        """Remember one; this is the finalizer, so it does no more than that."""
        self._refs.append(ref)
        self._wakeup.ring()

    def __bool__(self) -> bool:
        return bool(self._refs)

    def drain(self) -> list[weakref.ref[connection]]:
        """Take all that have gathered."""
        refs = []
        while self._refs:
            refs.append(self._refs.popleft())
        return refs
