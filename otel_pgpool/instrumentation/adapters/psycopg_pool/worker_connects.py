"""The connections that workers have opened, and the checkouts that receive them."""

from __future__ import annotations

from itertools import count
from typing import Any


class WorkerConnects:
    """The connections that workers have opened, until it is known whether a waiter received them.

    The worker reports its connect, unless the connection went to a waiter, whose checkout then reports it. There is no
    lock: each entry is written by one worker, and claimed by one waiter.
    """

    def __init__(self) -> None:
        self._keys = count(-1, -1)  # negative, and so no thread's identity
        self._opened: dict[int, tuple[Any, int]] = {}  # by worker: the connection and the key of its connect
        self._handed_over: dict[int, int] = {}  # by id of the connection: the key of its connect

    def new_key(self) -> int:
        """Return a key for one connect."""
        return next(self._keys)

    def opened(self, worker: int, conn: Any, key: int) -> None:
        """Note that a worker has opened a connection, or failed to: then ``conn`` is None."""
        self._opened[worker] = conn, key

    def begin_hand_over(self, worker: int, conn: Any) -> bool:
        """Note that a worker hands a connection to a waiter; return False if the worker has not just opened it."""
        opened = self._opened.get(worker)
        if opened is None or opened[0] is not conn:
            return False
        self._handed_over[id(conn)] = opened[1]
        return True

    def end_hand_over(self, worker: int, conn: Any, accepted: object) -> None:
        """Note whether the waiter has accepted the connection, which it does only while it still waits."""
        if accepted:
            self._opened.pop(worker, None)
        else:
            self._handed_over.pop(id(conn), None)

    def claim(self, conn: Any) -> int | None:
        """Return the key of the connect that opened a waiter's connection; None if the connection is not new.

        Called at the end of each wait, so that no later checkout of the same connection finds the key.
        """
        return self._handed_over.pop(id(conn), None) if self._handed_over else None

    def pop_unclaimed(self, worker: int) -> tuple[Any, int] | None:
        """Return the connection that a worker has opened for no waiter, or None, and the key of its connect."""
        return self._opened.pop(worker, None)

    def clear(self) -> None:
        """Drop all connects, in a forked child."""
        self._opened.clear()
        self._handed_over.clear()
