"""The private names of asyncpg that have no public counterpart.

Checked on asyncpg 0.29, 0.30 and 0.32. If one of those in `NEEDED` is gone, nothing is wrapped: the pools stay
uninstrumented, with a log record. The others are read from connections: if one of them is gone, the address, the status
of the transaction, the reason of a discard or the callback that has raised is unknown, or a forked child is not cut off
from its parent's sessions.
"""
# ruff: noqa: SLF001 - this file is the one place of these accesses

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from asyncpg import Record, connect_utils, connection
from asyncpg.connection import Connection
from asyncpg.pool import Pool, PoolAcquireContext, PoolConnectionHolder, PoolConnectionProxy

from otel_pgpool.instrumentation.tracker import TRACKER_ATTR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

NEEDED: dict[type, tuple[str, ...]] = {
    Pool: (
        "_async__init__",
        "_closed",
        "_connect_args",
        "_connect_kwargs",
        "_generation",
        "_get_new_connection",
        "_holders",
        "_initializing",
        "_loop",
        "_queue",
    ),
    PoolConnectionHolder: (
        "_con",
        "_deactivate_inactive_connection",
        "_generation",
        "_in_use",
        "_inactive_callback",
        "_max_inactive_time",
        "_max_queries",
        "_pool",
        "_release",
        "_setup",
        "acquire",
        "is_idle",
        "release",
    ),
    PoolAcquireContext: ("__aenter__", "__await__", "done", "pool", "timeout"),
    Connection: ("_cleanup", "close", "terminate"),
}
"""Names by class."""


def check_names() -> None:
    """Check that asyncpg has the names.

    Raises:
        AttributeError: one is gone.
    """
    for owner, names in NEEDED.items():
        for name in names:
            getattr(owner, name)


def code_of(owner: Any, name: str) -> CodeType | None:
    """Return the code of a function; None if it is missing, or was replaced by a callable without code."""
    return getattr(getattr(owner, name, None), "__code__", None)


CLOSE, TERMINATE, FINALIZE = (code_of(Connection, name) for name in ("close", "terminate", "__del__"))
ACQUIRE, RELEASE, DEACTIVATE = (
    code_of(PoolConnectionHolder, name) for name in ("acquire", "release", "_deactivate_inactive_connection")
)
POOL_TERMINATE = code_of(Pool, "terminate")
PROXY_TERMINATE = code_of(PoolConnectionProxy, "terminate")
"""Code of the methods that close connections, which shows why a connection was closed."""

NEW_CONNECTION = code_of(Pool, "_get_new_connection")
CONNECT = code_of(connection, "connect")
CONNECT_ADDRESS = code_of(connect_utils, "_connect_addr")
"""Code of the functions that connect, which shows the callback that has raised. The last one calls ``password``."""


def has_connected(frame: FrameType) -> bool:
    """Return whether a call of `NEW_CONNECTION` has a connection, which it then passes to ``init``."""
    return "con" in frame.f_locals


def is_asyncpg_frame(frame: FrameType) -> bool:
    """Return whether a frame is one of asyncpg's own functions."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "asyncpg"


CONNECTION_ATTR = "_con"
"""Attribute with the connection, of a holder and of what a caller has received; None once it was released."""

# Pools. A call of an ``attrgetter`` costs a third of that of a function.

queue_of = attrgetter("_queue")
"""Return the queue of a pool, which exists as long as the pool; None before the pool is initialized."""

tracker_attr_of_pool = attrgetter(f"_queue.{TRACKER_ATTR}")
"""Return the tracker of a pool, or the mark of one that is not observed; an AttributeError if it has neither."""

tracker_attr_of_holder = attrgetter(f"_pool._queue.{TRACKER_ATTR}")
"""Return the tracker or the mark of a holder's pool; an AttributeError if the pool has neither."""


class ChosenHolders(list[Any]):
    """The holders of a pool that was chosen before it was initialized: a list that allows weak references."""

    __slots__ = ("__weakref__",)


def referable_holders(pool: Any) -> Any:
    """Return the list of a pool's holders, which stands for a pool that has no queue yet; replace it if necessary."""
    if type(pool._holders) is list:
        pool._holders = ChosenHolders(pool._holders)
    return pool._holders


def chosen_holders(pool: Any) -> Any:
    """Return the list of holders that stood for a pool when it was chosen; None if the queue did."""
    return pool._holders if isinstance(pool._holders, ChosenHolders) else None


def has_other_loop(pool: Any) -> bool:
    """Return whether another loop than the pool's runs; False in a forked child that runs a copy of the parent's."""
    with suppress(RuntimeError):  # no loop, or the copy of the parent's
        return asyncio.get_running_loop() is not pool._loop
    return False


def begin_anew(pool: Any) -> None:
    """Empty a pool whose loop and connections are a parent process's, and set it up for the running loop.

    The pool gets new holders, because the parent's checkouts may still refer to the old ones. The old ones become free,
    so that a release or an end of their connections does not reach the pool. The queue is set up again in place,
    because the queue stands for the pool.
    """
    queue, inherited = pool._queue, [*pool._holders]
    pool._loop = asyncio.get_running_loop()
    if hasattr(Pool, "_maintenance_task"):  # since 0.32
        pool._maintenance_task = None
    vars(queue).pop("_loop", None)  # the first waiter has bound the queue to this loop
    queue.__init__(maxsize=len(inherited))
    pool._holders.clear()
    for old in inherited:
        old._in_use = old._inactive_callback = None
        new = PoolConnectionHolder(
            pool, max_queries=old._max_queries, max_inactive_time=old._max_inactive_time, setup=old._setup
        )
        pool._holders.append(new)
        queue.put_nowait(new)


def has_to_wait(pool: Any) -> bool:
    """Return whether an acquire that begins now waits for a holder."""
    return pool._queue.empty() and not is_closing(pool)


def is_closing(pool: Any) -> bool:
    """Return whether a pool is closed, or waits for its holders to be closed."""
    return bool(Pool.is_closing(pool))


def limits_of(pool: Any) -> tuple[int, int]:
    """Return the minimum and the maximum number of a pool's connections."""
    return Pool.get_min_size(pool), Pool.get_max_size(pool)


def sizes_of(pool: Any) -> tuple[int, int]:
    """Return the number of a pool's connections, and how many of them are idle."""
    holders = [holder for holder in pool._holders if _is_open(holder._con)]
    return len(holders), sum(PoolConnectionHolder.is_idle(holder) for holder in holders)


def is_closed(pool: Any) -> bool:
    """Return whether a pool is closed; False while it waits for its holders."""
    return bool(pool._closed)


def is_initializing(pool: Any) -> bool:
    """Return whether a task opens the first connections of a pool."""
    return bool(pool._initializing)


def connect_arguments(pool: Any) -> tuple[Any, dict[str, Any]]:
    """Return the positional and the keyword arguments of a pool's connects."""
    return pool._connect_args, pool._connect_kwargs


def connects_itself(pool: Any) -> bool:
    """Return whether a pool connects by asyncpg's own function, not by one of the application."""
    function = getattr(pool, "_connect", None)  # since 0.30
    return function is None or getattr(function, "__module__", None) == Connection.__module__


connect = connection.connect
"""Open a connection."""


def connect_by_program(pool: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the awaitable of a connect by the program's function, in the running loop, with asyncpg's own classes."""
    loop = asyncio.get_running_loop()
    return pool._connect(*args, loop=loop, connection_class=Connection, record_class=Record, **kwargs)


def connections_of(pool: Any) -> Iterator[Any]:
    """Iterate over the open connections of a pool."""
    for holder in pool._holders:
        con = holder._con
        if _is_open(con):
            yield con


def _is_open(con: Any) -> bool:
    with suppress(AttributeError):  # the protocol is removed while the loop's thread closes the connection
        return con is not None and not Connection.is_closed(con)
    return False


_releases: set[asyncio.Task[Any]] = set()  # kept, because a loop refers to its tasks weakly


def release_later(pool: Any, proxy: Any) -> None:
    """Release a connection in a new task of the pool's loop, on behalf of a caller that cannot await."""
    release = pool._loop.create_task(pool.release(proxy))
    _releases.add(release)
    release.add_done_callback(_releases.discard)


# Contexts, which accept no further attribute


def attach(context: Any, checkout: Any) -> None:
    """Store the record of a checkout in the attribute ``done`` of a context, which asyncpg tests for truth."""
    if isinstance(context, PoolAcquireContext):
        context.done = checkout


def detach(context: Any) -> Any:
    """Remove and return the record that was stored in a context; None if there is none."""
    checkout = context.done
    if isinstance(checkout, bool):
        return None
    context.done = False
    return checkout


# Connections


def has_made_max_queries(holder: Any, con: Any) -> bool:
    """Return whether a connection has made as many queries as ``max_queries`` allows."""
    with suppress(AttributeError):
        return bool(con._protocol.queries_count >= holder._max_queries)
    return False


def is_outdated(holder: Any) -> bool:
    """Return whether a pool has expired its connections since the one of this holder was opened."""
    return bool(holder._generation != holder._pool._generation)


def address_of(con: Any) -> Any:
    """Return what a connection was made to: host and port, or the path of a Unix socket."""
    return con._addr


def database_of(con: Any) -> Any:
    """Return the name of a connection's database."""
    return con._params.database


def descriptor_of(con: Any) -> int:
    """Return the file descriptor of a connection's socket."""
    number: int = con._transport.get_extra_info("socket").fileno()
    return number


def forget_address(con: Any) -> None:
    """Prevent a connection from cancelling its statement, for which asyncpg would connect again."""
    con._addr = os.devnull  # as the path of a Unix socket, where no server listens


def runs_query(con: Any) -> bool:
    """Return whether a connection waits for an answer of its server.

    The protocol is a C class without an attribute for it, but it refers to the future of the query that runs.
    """
    referents = gc.get_referents(con._protocol)
    return any(isinstance(each, asyncio.Future) and not each.done() for each in referents)
