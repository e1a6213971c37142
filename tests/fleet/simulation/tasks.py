"""Tasks on a virtual clock, and the locks and threads that the pool's modules get in the place of their own."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable


class Tasks:
    """Tasks, each a greenlet, of which one runs at a time, until it waits. The clock moves when all wait."""

    now = 0.0
    due: list[tuple[float, int, Callable[[], object]]]
    """Functions to call, by time and order."""

    def __init__(self) -> None:
        self.due = []
        self._order = count()
        self._hub = getcurrent()

    def at(self, when: float, call: Callable[[], object]) -> None:
        """Call a function at a moment of the virtual clock."""
        heapq.heappush(self.due, (when, next(self._order), call))

    def start(self, target: Callable[[], object]) -> greenlet:
        """Start a task now."""
        task = greenlet(target, self._hub)
        self.at(self.now, task.switch)
        return task

    def wait(self) -> object:
        """Let the other tasks run until this one is resumed; return the value given to it."""
        return self._hub.switch()

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass for the task that calls."""
        self.at(self.now + max(0.0, seconds), getcurrent().switch)
        self.wait()

    def run(self, until: float) -> None:
        """Run the tasks up to a moment of the virtual clock."""
        while self.due and self.due[0][0] <= until:
            self.now, _order, call = heapq.heappop(self.due)
            call()
        self.now = until


class Here:
    """The tasks of the run in progress."""

    tasks: Tasks


def monotonic() -> float:
    """Return the time of the virtual clock."""
    return Here.tasks.now


class Lock:
    """A lock whose waits take virtual time."""

    def __init__(self) -> None:
        self._is_locked = False
        self._waiting: deque[greenlet] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Lock it, as ``threading.Lock`` does."""
        if not self._is_locked:
            self._is_locked = True
            return True
        if not blocking:
            return False
        me, tasks = getcurrent(), Here.tasks
        self._waiting.append(me)
        if timeout >= 0:
            tasks.at(tasks.now + timeout, lambda: self._give_up(me))
        return bool(tasks.wait())

    def _give_up(self, task: greenlet) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
            task.switch(False)

    def release(self) -> None:
        """Unlock it, or pass it to the first that waits."""
        if not self._is_locked:
            raise RuntimeError("release unlocked lock")
        if self._waiting:
            task = self._waiting.popleft()
            Here.tasks.at(Here.tasks.now, lambda: task.switch(True))
        else:
            self._is_locked = False

    def locked(self) -> bool:
        """Return whether it is locked."""
        return self._is_locked

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_exc: object) -> None:
        self.release()


class Thread:
    """A thread that is a task."""

    def __init__(
        self, target: Callable[..., object], args: tuple[Any, ...] = (), name: str = "", daemon: bool = True
    ) -> None:
        self.target, self.args, self.name, self.daemon = target, args, name, daemon
        self.ident: int | None = None
        self._ended = Lock()
        self._ended.acquire()

    def start(self) -> None:
        """Start the task."""
        task = Here.tasks.start(self._run)
        self.ident = id(task)
        task.thread = self

    def _run(self) -> None:
        try:
            self.target(*self.args)
        finally:
            self._ended.release()

    def is_alive(self) -> bool:
        """Return whether it was started and has not ended."""
        return self.ident is not None and self._ended.locked()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        if self._ended.acquire(timeout=-1 if timeout is None else timeout):
            self._ended.release()


class Threading:
    """What the pool's modules find as ``threading``.

    Its locks are never contended where the pool's own lock is held, since no task waits under that.
    """

    Lock = Lock
    RLock = staticmethod(threading.RLock)
    Thread = Thread
    TIMEOUT_MAX = threading.TIMEOUT_MAX
    local = threading.local

    @staticmethod
    def current_thread() -> Any:
        """Return the thread that runs."""
        task = getcurrent()
        return getattr(task, "thread", task)
