"""An instrumented pool as its observer sees it: its name, target and figures, its connects and closed connections."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_pgpool.environment import DATABASE_STATE
from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.guards import DeferringGuard, never_raise
from otel_pgpool.instrumentation.monitoring import TrackedPoolSource, server_of
from otel_pgpool.instrumentation.open_checkouts import OpenCheckouts
from otel_pgpool.instrumentation.pending_connects import PendingConnects
from otel_pgpool.observer import ARGUMENTS
from otel_pgpool.pool import monitors, registry
from otel_pgpool.pool.checkout import AT_ONCE, Attempt
from otel_pgpool.pool.monitor_source import MonitoredPool, PoolHolds
from otel_pgpool.pool.outage import is_unreachable
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_safely
from otel_pgpool.runtime.fork import renewed
from otel_pgpool.stats import LastFigures, PoolStats, leave_figures
from otel_pgpool.telemetry import Telemetry
from otel_pgpool.types import CheckoutPath, DiscardReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_pgpool.instrumentation.adapters.base import PoolReader, PoolTarget
    from otel_pgpool.instrumentation.options import InstrumentationOptions
    from otel_pgpool.instrumentation.watch import Watch
    from otel_pgpool.pool.checkout import Checkout, ManualCheckout, Slot


NOT_MONITORED = (
    "pool %s: the database state of long holds is unknown: this kind of pool has no monitoring connections; %s=all "
    "covers psycopg2, psycopg_pool, asyncpg, and SQLAlchemy on psycopg2, psycopg, pg8000 and asyncpg"
)


class ReportedPool(OpenCheckouts):
    """An instrumented pool with its observer: an `ObservedPool`."""

    __slots__ = (
        "__weakref__",
        "_is_monitored",
        "_observer",
        "connects",
        "guard",
        "is_stopped",
        "last_figures",
        "long_hold",
        "name",
        "pending",
        "target",
        "target_since",
        "watch",
    )

    def __init__(
        self,
        adapter: PoolReader,
        name: str,
        target: PoolTarget,
        *,
        options: InstrumentationOptions,
        watch: Watch,
        predecessor: ReportedPool | None,
    ) -> None:
        self.adapter = adapter
        super().__init__()
        self.last_figures = LastFigures()
        self.watch = watch
        self.is_stopped = False  # True: closed, collected, replaced or no longer instrumented
        self.target = target
        self.target_since = AT_ONCE  # when the target became known, if that was not at the start
        self.long_hold = options.long_hold
        self._is_monitored = options.is_monitored
        if predecessor is not None:
            predecessor.stop_reporting()
            self.continue_from(predecessor)
            name = predecessor.name
        self._observer = Telemetry(options.tracer_provider, options.meter_provider, **vars(options.telemetry))
        self._observer.transaction_status = adapter.transaction_status
        self._observer.error_type = adapter.error_type
        self.name: str = name
        self.guard = DeferringGuard(name, watch.defer)

    def reset(self) -> None:
        """Reset all totals, and drop all checkouts, connections and connects."""
        super().reset()
        self.connects = PendingConnects()
        self.pending = self.connects.pending  # an attribute of its own, because every checkout reads it

    def start_reporting(self) -> None:
        """Give this pool a unique name, and report its figures.

        The tracker must be complete, because another thread may fork from now on, and the child resets the tracker.

        Raises:
            Exception: the observer refuses the pool.
        """
        cls = type(self)
        reset = cls._reset_after_fork
        self.name = self.guard.pool_name = registry.register(self, self.name, reset, cls._holds)
        self._observer.attached(self)

    def stop_reporting(self) -> None:
        """End the reports of this pool and free its name; holds in progress are still watched."""
        self.is_stopped = True
        registry.release_name(self.name, self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the tracker as None, so that its pool can still be pickled or copied."""
        return type(None), ()

    __del__ = leave_figures

    def _reset_after_fork(self) -> None:
        """Reset all totals and drop all checkouts and connections in a forked child: they belong to the parent."""
        self.reset()
        pool = self._pool()
        if pool is not None and not self.is_stopped:
            try:
                self.discards[DiscardReason.FORKED.value] = self.adapter.forget_inherited(pool)
            finally:
                self.guard.notify(self._observer.attached, self)

    def _holds(self) -> PoolHolds:
        return PoolHolds(partial(server_of, reader=self.adapter, target=self.target), self.recorded_holds())

    # Long holds

    @never_raise
    def report_long_holds(self, holds: Sequence[Checkout]) -> None:
        """Report holds that have become long; then let the monitor of their server watch their sessions."""
        for checkout in holds:
            self.guard.notify(self._observer.held_long, checkout)
        if holds and self._is_monitored:
            self._watch_sessions(holds)

    def _watch_sessions(self, holds: Sequence[Checkout]) -> None:
        pool = self._pool()
        connect = None if pool is None else self.adapter.monitor_connect(pool)
        if connect is not None:
            source = TrackedPoolSource(connect, self.adapter, self.target)
            report = partial(self.guard.notify, self._observer.database_state)
            monitors.watch(MonitoredPool(self.name, source, report), holds)
        elif pool is not None:
            self._is_monitored = False
            log_safely(logging.WARNING, NOT_MONITORED, self.name, DATABASE_STATE.name)

    # What the observer reads

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        return self.target.address

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        return self.target.port

    @property
    def namespace(self) -> str:
        """Name of the database."""
        return self.target.namespace

    @property
    def closed(self) -> bool:
        """Whether the pool is closed, or not reported any more."""
        return self.is_stopped or self._levels().closed

    def _levels(self) -> Levels:
        pool = self._pool()
        if pool is None:
            return Levels(0, 0, 0, 0, 0, closed=True)
        try:
            return self.adapter.levels(pool)
        except Exception as error:  # noqa: BLE001 - a subclass may raise anything
            self.guard.log_error(error)
            return Levels(0, 0, len(self.held), 0, None)

    @renewed
    def stats(self) -> PoolStats:
        """Return the levels, read from the pool, and the totals, which are 0 once a successor's include them."""
        connects = self.connects
        return self.statistics(
            self.name,
            self._levels(),
            connecting=len(connects.connecting),
            is_unreachable=is_unreachable(connects.outage),
        )

    @renewed
    def held_checkouts(self) -> Sequence[Checkout]:
        """Return the checkouts that hold a connection, light ones included."""
        return self.all_held()

    # Connections

    @never_raise
    def target_known(self, target: PoolTarget) -> None:
        """Set the target of the pool, once it is known."""
        before, self.target = self.target, target
        reported = before.address, before.port, before.namespace
        if target.address and (target.address, target.port, target.namespace) != reported:
            self.target_since = monotonic()
            self._observer.target_known(self)

    @never_raise
    def connected(self, began: float, conn: Any, caller: int | None = None) -> None:
        """Note that a connection was opened; the observer is notified later, outside the pool's locks.

        Args:
            began: when the connect began.
            conn: the connection.
            caller: key of the caller, `Checkout.caller`; by default the calling thread's.
        """
        self.created += 1
        self.register(conn)
        self.connects.succeeded(began, *self.adapter.server_address(conn), caller)

    @never_raise
    def connect_failed(
        self,
        began: float,
        error: BaseException,
        caller: int | None = None,
        *,
        callback: str = "",
        is_connected: bool = False,
    ) -> None:
        """Note that an attempt to connect failed; the observer is notified later. See `connected`.

        Args:
            began: when the attempt began.
            error: the error.
            caller: key of the caller, as for `connected`.
            callback: name of the callback of the program that raised; empty if the arguments, the server or the network
                are the cause, even of an error that a callback raised.
            is_connected: whether the callback got a connection, so that the server is up.
        """
        if not isinstance(error, Exception):  # an interrupt of the callback
            callback = ""
        elif not callback and not is_connected and self.adapter.is_argument_error(error):
            callback = ARGUMENTS
        text = self.adapter.error_text(error, self.target)
        is_refusal = is_connected if callback else self.adapter.is_refusal(error)
        self.connects.failed(began, error, text, is_refusal=is_refusal, caller=caller, callback=callback)

    @never_raise
    def callback_failed(self, callback: str, error: Exception, checkout: ManualCheckout | None = None) -> None:
        """Report that a callback of the program raised on an open connection, which is therefore not handed out."""
        text = self.adapter.error_text(error, self.target)
        self.guard.notify(self._observer.callback_failed, callback, error, text, checkout)

    @never_raise
    def report_connects(self, checkout: ManualCheckout | None = None, caller: int | None = None) -> bool:
        """Notify the observer of the connects that a caller made; return whether one succeeded.

        Args:
            checkout: the checkout for which the connects were made, if any.
            caller: key of the caller; by default the checkout's, or else the calling thread's.
        """
        any_succeeded = False
        if caller is None and checkout is not None:
            caller = checkout.caller
        for each in self.connects.pop_of(caller):
            error = each.connect.error
            if error is None:
                any_succeeded = True
            elif checkout is not None:
                self.retries += 1
                checkout.expected_path = CheckoutPath.NEW.value
                failed = Attempt(each.connect.ended, error_type(error), 0.0)
                checkout.retried(failed, None)  # without the error, which would keep its frames
            each.report(self._observer, self.guard, checkout)
        return any_succeeded

    @never_raise
    def discarded(
        self,
        slot: Slot,
        reason: DiscardReason,
        error: BaseException | None = None,
        checkout: ManualCheckout | None = None,
    ) -> None:
        """Record that a connection was closed."""
        if self.slots.get(slot.key) is slot:
            del self.slots[slot.key]
        self.discards[reason.value] += 1
        self.guard.notify(self._observer.discarded, [slot], reason.value, error, checkout)
