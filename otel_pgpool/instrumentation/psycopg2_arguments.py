"""The arguments of a pool's methods, whatever signature a subclass has given them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.lenient import lenient

if TYPE_CHECKING:
    from collections.abc import Callable

    Method = Callable[..., Any]

LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def runs_later(method: Method) -> bool:
    """Return whether a call of a method runs nothing yet, such as a generator's; the methods it calls are wrapped."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & LATER)


def takes_key(getconn: Method) -> bool:
    """Return whether the first argument of a ``getconn``, if it has any, is a key."""
    _self, *parameters = inspect.signature(getconn).parameters.values()
    by_place = [each for each in parameters if each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    return not by_place or by_place[0].name == "key" or by_place[0].kind is by_place[0].VAR_POSITIONAL


def is_lent(pool: Any, /, key: Any = None, *_args: Any, **_kwargs: Any) -> bool:
    """Return whether a key belongs to a checkout in progress, so that the pool will return that connection again."""
    if key is None:
        return False
    with lenient:  # the key may not be hashable, or the pool not initialized
        return key in pool._used
    return False


def named(pool: Any, /, conn: Any = None, key: Any = None, *_args: Any, **_kwargs: Any) -> Any:
    """Return the connection that is being returned, given directly or by its key."""
    if conn is not None or key is None:
        return conn
    with lenient:
        return pool._used.get(key)
    return None


def is_out(pool: Any, conn: Any) -> bool:
    """Return whether a pool counts a connection as checked out."""
    with lenient:
        return id(conn) in pool._rused
    return False


def closes(
    _pool: Any,
    /,
    _conn: Any = None,
    _key: Any = None,
    close: Any = False,  # noqa: FBT002 - its signature
    *_args: Any,
    **_kwargs: Any,
) -> bool:
    """Return whether the caller of ``putconn`` asks to close the connection."""
    return bool(close)
