"""The arguments of a pool's methods, whatever signature a subclass has given them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.psycopg2 import private
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    Method = Callable[..., Any]

RUNS_LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def runs_later(method: Method) -> bool:
    """Return whether a call of a method only creates a generator or a coroutine, which runs the method later."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    return bool(getattr(code, "co_flags", 0) & RUNS_LATER)


def takes_key(getconn: Method) -> bool:
    """Return whether the first argument of a ``getconn``, if it has any, is a key."""
    _self, *parameters = inspect.signature(getconn).parameters.values()
    by_place = [each for each in parameters if each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    return not by_place or by_place[0].name == "key" or by_place[0].kind is by_place[0].VAR_POSITIONAL


def is_key_checked_out(pool: Any, /, key: Any = None, *_args: Any, **_kwargs: Any) -> bool:
    """Return whether a key belongs to an open checkout, so that the pool will return that connection again."""
    if key is None:
        return False
    with ignore_errors:  # the key may not be hashable, or the pool not initialized
        return private.connection_by_key(pool, key) is not None
    return False


def released_connection(pool: Any, /, conn: Any = None, key: Any = None, *_args: Any, **_kwargs: Any) -> Any:
    """Return the connection that a ``putconn`` releases, given directly or by its key."""
    if conn is not None or key is None:
        return conn
    with ignore_errors:
        return private.connection_by_key(pool, key)
    return None


def asks_to_close(
    _pool: Any, /, _conn: Any = None, _key: Any = None, close: Any = None, *_args: Any, **_kwargs: Any
) -> bool:
    """Return whether the caller of ``putconn`` asks to close the connection."""
    return bool(close)
