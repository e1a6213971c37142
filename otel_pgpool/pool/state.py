"""The state of a pool, as programs and its observer read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from otel_pgpool.pool.core import State
from otel_pgpool.pool.health import health_of
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import renewed
from otel_pgpool.stats import Holder, LastFigures, PoolHealth, PoolStats, leave_figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.parts import Parts


class PoolState:
    """The state of a `ConnectionPool`, as `ObservedPool` describes it. Nothing here waits for server or connection."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.last_figures = LastFigures()

    @property
    def name(self) -> str:
        """Name of the pool, unique among the live pools of this process."""
        return self._parts.core.name

    @property
    def minconn(self) -> int:
        """Minimum number of connections, kept open at all times."""
        return self._parts.core.minconn

    @property
    def maxconn(self) -> int:
        """Maximum number of connections at any time."""
        return self._parts.core.maxconn

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._parts.core.state is State.CLOSED

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        return self._parts.target.address

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        return self._parts.target.port

    @property
    def namespace(self) -> str:
        """Name of the database."""
        return self._parts.target.namespace

    @renewed
    def stats(self) -> PoolStats:
        """Return the pool's levels and totals, read without a lock."""
        return self._parts.core.stats()

    @renewed
    def health(self) -> PoolHealth:
        """Return whether the pool can serve callers, as far as it knows: it asks no server and uses no connection."""
        return health_of(self._parts.core, monotonic())

    @renewed
    def holders(self) -> list[Holder]:
        """Return a `Holder` for each connection that is checked out, the longest hold first."""
        now = monotonic()
        return [checkout.holder(now) for checkout in self._parts.core.holds_now()]

    @renewed
    def held_checkouts(self) -> Sequence[Checkout]:
        """Return the checkouts that hold a connection, for the pool's observer. Takes no lock."""
        return self._parts.core.present_holds()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {stats.name!r} {stats.status}: {stats.used} of {stats.maxconn} in use, "
            f"{stats.idle} idle, {stats.connecting} connecting, {stats.waiting} waiting>"
        )

    def _refuse_copy(self, *_args: object) -> NoReturn:
        raise TypeError("a ConnectionPool cannot be copied or pickled: create one in each process")

    __copy__ = __deepcopy__ = __reduce_ex__ = _refuse_copy

    __del__ = leave_figures
