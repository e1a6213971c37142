"""Kinds of pools that are not ours: how their levels are read, and what a fork, a return and a wait are to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool._slot import Slot


class Levels(NamedTuple):
    """What a kind of pool reads of itself, without a lock."""

    minconn: int
    maxconn: int
    """0 for no limit."""
    used: int
    idle: int
    maxidle: int | None
    """None for as many as there may be."""
    closed: bool = False


class Kind(NamedTuple):
    """What the ledger must know of a kind of pool."""

    read: Callable[[Any], Levels]
    """Read a pool's levels."""
    abandon: Callable[[Any], int]
    """In a forked child: let a pool forget the parent's connections without a word to the server; how many."""
    is_back: Callable[[Any, Slot], bool] = lambda _pool, _slot: False
    """Whether a connection that seems to be out lies in the pool: given back by a way that is not seen."""
    waits: Callable[[Any], bool] = lambda _pool: False
    """Whether an exhausted pool waits where `Settings.wait_timeout` asks for it."""
