"""Pools in a forked child: a report by default, a repair on request.

A child has its parent's connections and none of its threads. By default the pool stays as it is, and the first checkout
is reported. With ``OTEL_PGPOOL_FORK_REPAIR=1`` the pool begins anew in the child, without a byte to the server: the
parent's connections are kept, so that nothing ends them, and their sockets are replaced by dead ones, so that neither
a commit nor a close of the child reaches the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.instrumentation.adapters.inherited import REPAIR, InheritedPools
from otel_pgpool.instrumentation.adapters.psycopg_pool import private
from otel_pgpool.instrumentation.guards import ignore_errors

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Inheritance(NamedTuple):
    """A pool that a child has inherited, until its first use there."""

    parent: int
    """Process id."""
    connections: int
    missing: Sequence[str]
    """Private parts of the pool without which it cannot be repaired."""
    can_connect: bool
    """Whether the pool opens connections in its callers, which do not need its threads."""

    def describe(self, *, is_repaired: bool) -> str:
        """Return what the first use in the child reports."""
        if is_repaired:
            return f"it has begun anew there, and left its connections to the parent ({self.connections})"
        state = f"both processes use the same connections ({self.connections}), and the child cannot open others"
        if self.can_connect:
            state = f"the child shares the connections that the parent has checked out ({self.connections})"
        advice = f"open the pool after the fork, or set {REPAIR}"
        if self.missing:
            parts = ", ".join(self.missing)
            advice = f"open the pool after the fork; {REPAIR} has no effect, because this psycopg_pool has no {parts}"
        return f"{state}; {advice}"


class InheritedPsycopgPools(InheritedPools[Inheritance]):
    """The pools of the parent in a forked child."""

    def inherit(self, pool: Any, parent: int, conns: Collection[Any]) -> None:
        """Note a pool in a forked child, and detach it from the parent's connections if it is to be repaired."""
        if pool in self:  # the parent had inherited the pool from its own parent
            return
        can_connect = private.connects_in_callers(pool)
        if not conns and not self._is_repaired and can_connect:
            return
        missing = private.missing_parts(pool) if self._is_repaired else ()
        self.add(pool, Inheritance(parent, len(conns), missing, can_connect))
        if self._is_repaired and not missing:
            self.keep(conns)
            private.begin_anew(pool)
            self.cut_off(conns, lambda conn: conn.pgconn.socket)

    def end(self) -> None:
        """Close the parent's connections in this process, so that no pool keeps one that is released from now on.

        Their sockets are dead, so nothing reaches the server.
        """
        for conn in self.conns.values():
            with ignore_errors:
                conn.pgconn.finish()

    def on_first_use(self, pool: Any, inherited: Inheritance) -> tuple[bool, int, str]:
        """Start the work of a pool that is repaired: its threads, or the tasks of this loop. Describe the first use."""
        is_repaired = self._is_repaired and not inherited.missing
        if is_repaired:
            try:
                private.start_work(pool)
            except BaseException:  # for example, no loop runs; the next use starts the work
                self.add(pool, inherited)
                raise
        return is_repaired, inherited.parent, inherited.describe(is_repaired=is_repaired)
