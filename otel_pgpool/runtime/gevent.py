"""Recognition of locks that gevent has replaced since they were made."""

from __future__ import annotations

import threading


def is_unpatched(lock: object) -> bool:
    """Return whether gevent has replaced ``threading.Lock`` since this lock was created.

    Waiting on such a lock would stop every greenlet.
    """
    return type(lock) is not type(threading.Lock())
