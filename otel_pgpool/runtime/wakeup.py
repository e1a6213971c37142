"""Locks and events that can be used from any place, including finalizers."""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from otel_pgpool.runtime.gevent import is_unpatched

if TYPE_CHECKING:
    from collections.abc import Iterator

Item = TypeVar("Item")


def acquire_within(lock: threading.Lock, seconds: float) -> bool:
    """Acquire ``lock`` within ``seconds``, which may be infinite; return whether it was acquired."""
    if seconds <= 0:
        return lock.acquire(blocking=False)
    return lock.acquire(timeout=-1 if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. After an interrupt the thread may or may not run.

    Raises:
        RuntimeError: no thread can be started; also while the interpreter is finalizing, when Python before 3.12 would
            wait forever for the thread.
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
        raise interrupt from None  # hit inside ``threading.Event``, whose "release unlocked lock" has replaced it


class Wakeup:
    """An event on which one thread waits: a binary semaphore made of one raw lock.

    `set` neither blocks nor takes a lock, so that the garbage collector may call it in any critical section, where
    ``threading.Event`` would deadlock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def rebuild_if_patched(self) -> None:
        """Replace the lock if gevent has patched its class. Called before the first wait."""
        if is_unpatched(self._lock):
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock

    def set(self) -> None:
        """End the present wait, or the next one."""
        with suppress(RuntimeError):  # the lock is free already
            self._lock.release()

    def set_on_collect(self, _dead: object) -> None:
        """Set the event, as the callback of a weak reference."""
        self.set()

    def wait(self, seconds: float) -> bool:
        """Sleep until the event is set, for at most ``seconds``; return whether it was set."""
        return acquire_within(self._lock, seconds)


class Deferred(Generic[Item]):
    """Items that finalizers leave to a thread. A finalizer may run under any lock, and must do nothing else."""

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._items: deque[Item] = deque()

    def append(self, item: Item) -> None:
        """Add an item, and wake the thread."""
        self._items.append(item)
        self._wakeup.set()

    def drain(self) -> Iterator[Item]:
        """Remove and yield all items; another thread may do so at the same time."""
        with suppress(IndexError):
            while True:
                yield self._items.popleft()
