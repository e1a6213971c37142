"""The live pools of this process: their unique names, and what happens to them in a forked child."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Protocol

from otel_pgpool import _fork
from otel_pgpool._guard import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable


class Forked(Protocol):
    """A pool that must be told that it lives in a forked child."""

    def _after_fork(self) -> None: ...


FIRST_NUMBER = 2

# Guards the names. Nothing that may block happens inside; reentrant, because the collector may run a program's
# finalizer there, which closes a pool.
_lock = threading.RLock()
_names: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
_pools: weakref.WeakSet[Forked] = weakref.WeakSet()
# No number below these is free, by the name before it: where the search begins, so that many pools of one name are made
# in linear time. Lowered when a numbered pool is closed or collected.
_lowest: dict[str, int] = {}
_numbered: weakref.WeakKeyDictionary[object, Callable[[], object]] = weakref.WeakKeyDictionary()


def register(pool: Forked, name: str) -> str:
    """Enter a pool.

    Returns:
        Its name: as wanted, or with `` #2``, `` #3`` behind it while another live pool has that one.
    """
    with _lock:
        unique = name
        if name in _names:
            number = _lowest.get(name, FIRST_NUMBER)
            while (unique := f"{name} #{number}") in _names:
                number += 1
            _lowest[name] = number + 1
            freed = weakref.finalize(pool, _is_free, name, number)
            freed.atexit = False
            _numbered[pool] = freed
        _names[unique] = pool
        _pools.add(pool)
        return unique


def release_name(name: str, pool: object) -> None:
    """A closed pool's name may be used again."""
    with _lock:
        if _names.get(name) is pool:
            del _names[name]
            if pool in _numbered:
                _numbered.pop(pool)()


def _is_free(name: str, number: int) -> None:
    """Called by a finalizer too, hence without the lock: a number that is overlooked is merely not used again."""
    least = min(number, _lowest.get(name, FIRST_NUMBER))
    if least == FIRST_NUMBER:
        _lowest.pop(name, None)
    else:
        _lowest[name] = least


def any_open() -> bool:
    """Whether any pool of this process has not been closed."""
    with _lock:
        return bool(_names)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.RLock()
    for pool in list(_pools):
        try:
            pool._after_fork()
        except Exception as error:  # noqa: BLE001 - one that a program has made its own way: the others must be told all the same
            log_failure("a pool could not be made fit for the child of a fork", error)


_fork.register(_after_fork)
