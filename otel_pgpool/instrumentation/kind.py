"""The adapter of a kind of instrumented pool: how to read its levels, and what to do at a fork, a return and a wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.pool.checkout import Slot


class Levels(NamedTuple):
    """The levels of an instrumented pool, read without a lock."""

    minconn: int
    maxconn: int
    """Maximum number of connections; 0 for no limit."""
    used: int
    idle: int
    maxidle: int | None
    """Maximum number of idle connections; None for no limit."""
    closed: bool = False


class Kind(NamedTuple):
    """The functions that a ledger needs for a kind of pool."""

    read: Callable[[Any], Levels]
    """Read a pool's levels."""
    abandon: Callable[[Any], int]
    """Drop the parent's connections from a pool in a forked child, without sending anything; return their number."""
    is_back: Callable[[Any, Slot], bool] = lambda _pool, _slot: False
    """Whether a connection that counts as held is idle in the pool, returned by a method that is not wrapped."""
    waits: Callable[[Any], bool] = lambda _pool: False
    """Whether callers of an exhausted pool wait if `Settings.wait_timeout` is set."""
