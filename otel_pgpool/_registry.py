"""The live pools of this process: their unique names, and what happens to them in a forked child."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Forked(Protocol):
    """A pool that must be told that it lives in a forked child."""

    def _after_fork(self) -> None: ...


# Guards the names. Nothing that may block happens inside; reentrant, because the collector may run a program's
# finalizer there, which closes a pool.
_lock = threading.RLock()
_names: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
_pools: weakref.WeakSet[Forked] = weakref.WeakSet()


def register(pool: Forked, name: str) -> str:
    """Enter a pool.

    Returns:
        Its name: as wanted, or with `` #2``, `` #3`` behind it while another live pool has that one.
    """
    with _lock:
        unique, number = name, 1
        while unique in _names:
            number += 1
            unique = f"{name} #{number}"
        _names[unique] = pool
        _pools.add(pool)
        return unique


def release_name(name: str, pool: object) -> None:
    """A closed pool's name may be used again."""
    with _lock:
        if _names.get(name) is pool:
            del _names[name]


def any_open() -> bool:
    """Whether any pool of this process has not been closed."""
    with _lock:
        return bool(_names)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.RLock()
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
