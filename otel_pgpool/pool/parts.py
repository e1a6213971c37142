"""The parts of one pool, and how they are connected."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from otel_pgpool.driver.monitor_connection import MonitorSource
from otel_pgpool.driver.session import close_inherited
from otel_pgpool.pool import registry
from otel_pgpool.pool.acquire import Acquirer
from otel_pgpool.pool.base import Common, Durations, Notifier
from otel_pgpool.pool.checkout import AT_ONCE, Checkout
from otel_pgpool.pool.connect import Connectors
from otel_pgpool.pool.core import Core
from otel_pgpool.pool.discard import Discarder
from otel_pgpool.pool.keepalive import Keepalive
from otel_pgpool.pool.lifecycle import Lifecycle
from otel_pgpool.pool.liveness import LivenessCheck
from otel_pgpool.pool.maintenance import Maintenance
from otel_pgpool.pool.monitor_source import PoolHolds
from otel_pgpool.pool.psycopg_pool_stats import PsycopgPoolStats
from otel_pgpool.pool.release import Releaser
from otel_pgpool.runtime.background import ParkingThread
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.config import PoolConfig
    from otel_pgpool.driver.connect_target import ConnectTarget
    from otel_pgpool.observer import PoolObserver
    from otel_pgpool.pool.registry import Pool


class Parts:
    """The parts of one pool, all in one place.

    Only `ConnectionPool` and `CheckoutContext` have this object. Each part gets those that it calls. Nothing
    here refers to the pool except weakly, and parts refer to this object only weakly: when a program drops an unclosed
    pool, this object is collected, and the threads end.

    In a forked child `assemble` replaces the parts, whose locks and threads belong to the parent.
    """

    __slots__ = (
        "__weakref__",
        "acquirer",
        "config",
        "connectors",
        "core",
        "durations",
        "keepalive",
        "lifecycle",
        "liveness",
        "maintenance",
        "notifier",
        "observer",
        "psycopg_pool_stats",
        "releaser",
        "reset",
        "target",
        "thread",
    )

    def __init__(self, config: PoolConfig, target: ConnectTarget, observer: PoolObserver | None) -> None:
        self.config = config
        self.durations = Durations.of(config)
        self.target = target
        self.observer = observer
        self.reset = config.reset
        self.notifier = Notifier(observer)
        target.fallback_name = self.notifier.session_name
        self.assemble(config.minconn, config.maxconn, config.long_hold)

    def assemble(self, minconn: int, maxconn: int, long_hold: float) -> None:
        """Create the parts, each with those that it calls."""
        config, notifier = self.config, self.notifier
        core = Core(
            minconn,
            maxconn,
            max_waiting=config.max_waiting,
            max_attempts=config.max_attempts,
            long_hold=long_hold,
            name=notifier.pool_name,
        )
        core.parked = True  # so that the first checkout starts the maintenance thread
        self.thread = ParkingThread(core, None, "otel_pgpool-maintenance")
        common = Common(core, config, self.durations, self.target, notifier, self.thread)
        discarder = Discarder(common)
        self.releaser = Releaser(common, discarder)
        self.liveness = LivenessCheck(common, discarder)
        self.connectors = Connectors(common, self, discarder)
        self.keepalive = Keepalive(common, discarder)
        self.acquirer = Acquirer(common, discarder, self.connectors, self.liveness, self.keepalive)
        self.maintenance = Maintenance(common, discarder, self.releaser, self.connectors, self.keepalive)
        self.lifecycle = Lifecycle(common, discarder, self.connectors, self.acquirer, self.keepalive)
        discarder.refill_by(self.connectors.start_if_needed)
        self.psycopg_pool_stats = PsycopgPoolStats(core)
        self.thread.set_duties(self.maintenance)
        self.core = core  # last: after an interrupt, `reset_after_fork` still finds the parent's core

    def reset_after_fork(self) -> list[connection]:
        """Start again in a forked child; return the connections that are checked out, which are the parent's.

        Nothing is sent over the sockets inherited from the parent.
        """
        parents = self.core
        kept = [slot.conn for slot in parents.members if slot.conn is not None]
        for each in kept:
            close_inherited(each)
        for slot in parents.members:
            slot.mark_for_eviction(DiscardReason.FORKED)
        held = [slot for slot in parents.members if slot.checkout is not None]
        self.assemble(parents.minconn, parents.maxconn, parents.long_hold)
        self.core.state, self.core.closed_at = parents.state, parents.closed_at
        if parents.suspended_at is not None:
            self.core.suspend(parents.suspended_at)
        self.core.discarded[DiscardReason.FORKED] = len(kept) + len(held)
        return [conn for slot in held if (conn := slot.ref()) is not None]

    def register(self, pool: Pool, reset: Callable[[Pool], None], holds: Callable[[Pool], PoolHolds]) -> None:
        """Give the pool a unique name; see `registry.register` for the functions."""
        name = registry.register(pool, self.config.name or self.target.name, reset, holds)
        self.core.name = self.notifier.pool_name = name
        self.notifier.pool = weakref.ref(pool)

    def holds(self) -> PoolHolds:
        """Return the checkouts that hold a connection."""
        return PoolHolds(MonitorSource(self.target).server_of, self.core.holds_now())

    def expect_hold(self, checkout: Checkout) -> None:
        """Observe the threshold of a hold that has just begun, and that has one of its own."""
        checkout.is_remarkable = True
        checkout.slot.review_at = AT_ONCE  # so that even a short hold is compared with its threshold when it ends
        self.thread.wake()
