"""The live pools of this process: their unique names, their holds, and their reset in a forked child."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.runtime import fork
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool.pool.monitor_source import PoolHolds


Pool = TypeVar("Pool")

FIRST_NUMBER = 2

# Guards the names. No code under this lock blocks. It is reentrant, because the garbage collector may run under it and
# call an application's finalizer that closes a pool.
_lock = threading.RLock()
_names: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
_resets: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_holds: weakref.WeakKeyDictionary[Any, Callable[[Any], PoolHolds]] = weakref.WeakKeyDictionary()
# By name: the lowest number that may be free, at which `register` starts its search, so that creating many pools of one
# name takes linear time. Lowered when a numbered pool is closed or collected.
_lowest: dict[str, int] = {}
_numbered: weakref.WeakKeyDictionary[object, Callable[[], object]] = weakref.WeakKeyDictionary()


def register(
    pool: Pool, name: str, reset: Callable[[Pool], None], holds: Callable[[Pool], PoolHolds] | None = None
) -> str:
    """Register a pool under a unique name.

    Args:
        pool: the pool, which is referred to weakly.
        name: the requested name.
        reset: the function that resets the pool in a forked child.
        holds: the function that returns the pool's checkouts that hold a connection, for `all_holds`.

    Returns:
        The name: as requested, or followed by `` #2``, `` #3`` and so on if another live pool has the name.
    """
    with _lock:
        unique = name
        if name in _names:
            number = _lowest.get(name, FIRST_NUMBER)
            while (unique := f"{name} #{number}") in _names:
                number += 1
            _lowest[name] = number + 1
            freed = weakref.finalize(pool, _mark_free, name, number)
            freed.atexit = False
            _numbered[pool] = freed
        _names[unique] = pool
        _resets[pool] = reset
        if holds is not None:
            _holds[pool] = holds
        return unique


def all_holds() -> Iterator[PoolHolds]:
    """Iterate over the holds of all pools, closed ones included."""
    with _lock:
        pools = list(_holds.items())
    for pool, holds in pools:
        yield holds(pool)


def release_name(name: str, pool: object) -> None:
    """Free the name of a closed pool for other pools."""
    with _lock:
        if _names.get(name) is pool:
            del _names[name]
            if pool in _numbered:
                _numbered.pop(pool)()


def _mark_free(name: str, number: int) -> None:
    """Note that a number is free again.

    This takes no lock, because a finalizer calls it too. A number that is missed as a result is not used again.
    """
    least = min(number, _lowest.get(name, FIRST_NUMBER))
    if least == FIRST_NUMBER:
        _lowest.pop(name, None)
    else:
        _lowest[name] = least


def is_open(name: str) -> bool:
    """Return whether a pool of this name is not closed."""
    with _lock:
        return name in _names


def any_open() -> bool:
    """Return whether any pool of this process is not closed."""
    with _lock:
        return bool(_names)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.RLock()
    for pool, reset in list(_resets.items()):
        try:
            reset(pool)
        except Exception as error:  # noqa: BLE001 - a subclass may raise anything; the other pools still have to be reset
            log_failure("could not reset a pool in the forked child", error)


fork.register(_after_fork)
