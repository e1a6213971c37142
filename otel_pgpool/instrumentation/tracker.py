"""The tracker of an instrumented pool: who holds which connection since when, and totals, reported by `Telemetry`."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.errors import LONGEST_HOLDERS, PoolTimeout
from otel_pgpool.instrumentation.fair_queue import FairQueue
from otel_pgpool.instrumentation.guards import never_raise
from otel_pgpool.instrumentation.open_checkouts import TaskCheckout
from otel_pgpool.instrumentation.reported_pool import ReportedPool
from otel_pgpool.pool.checkout import NEVER, Blocker, ManualCheckout
from otel_pgpool.pool.figures import diagnose
from otel_pgpool.pool.shared_threads import end_shared_threads
from otel_pgpool.pool.utilization import UtilizationAlarm
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_external
from otel_pgpool.runtime.gc_state import COLLECTING, is_collecting_here
from otel_pgpool.runtime.text import class_of
from otel_pgpool.telemetry.sdk_internals import OPEN
from otel_pgpool.types import CheckoutPath, DiscardReason, Outcome, PoolErrorType

if TYPE_CHECKING:
    from otel_pgpool.instrumentation.adapters.base import PoolReader, PoolTarget
    from otel_pgpool.instrumentation.open_checkouts import TrackedSlot
    from otel_pgpool.instrumentation.options import InstrumentationOptions
    from otel_pgpool.instrumentation.watch import Watch
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import Slot
    from otel_pgpool.runtime.tasks import TaskReference
    from otel_pgpool.types import OutcomeName

AnyCheckout = TypeVar("AnyCheckout", bound=ManualCheckout)

TRACKER_ATTR = "_otel_pgpool"
"""Name of the attribute with which a pool refers to its tracker, so that both are collected together.

The pool's class has no attribute of that name: since Python 3.12, reading an attribute that both have is slow.
"""

# Records hold plain texts, as exporters may accept no subclass of ``str``. The hot path reads them from this module,
# because the value of an enumeration's member costs a call.
IDLE, QUEUED, NEW = (path.value for path in CheckoutPath)
RELEASED, RECLAIMED = Outcome.RELEASED, Outcome.RECLAIMED
RELEASED_TEXT: OutcomeName = RELEASED.value


class PoolTracker(ReportedPool):
    """The tracker of one instrumented pool, which its adapter notifies.

    A checkout is reported by `start`, perhaps `enqueued`, then either `failed`, or `acquired` and `released`. Each
    takes the record that `start` has returned. The errors of these methods are not raised but logged, at most once a
    minute.

    The tracker refers to the pool weakly, and outlives the pool only until its checkouts have ended. There is no lock.
    """

    __slots__ = (  # otherwise CPython would store so many attributes outside the object, where access is slower
        "_alarm",
        "_ended",
        "fast_path_owner",
        "gate",
        "queue",
        "wait_timeout",
    )

    def __init__(
        self,
        pool: Any,
        adapter: PoolReader,
        name: str,
        target: PoolTarget,
        *,
        options: InstrumentationOptions,
        watch: Watch,
        predecessor: PoolTracker | None = None,
    ) -> None:
        self._ended = False
        self.wait_timeout = options.wait_timeout if adapter.can_wait(pool) else None
        self.fast_path_owner: object = None  # the adapter that may use its fast path, until the tracker ends
        super().__init__(adapter, name, target, options=options, watch=watch, predecessor=predecessor)
        self._pool = weakref.ref(pool, watch.pool_collected)
        # A pool whose callers wait needs full records: a light checkout has no wait.
        self.gate = OPEN if self.queue is not None else self._observer.recording_gate or OPEN
        try:
            self.start_reporting()
            setattr(pool, TRACKER_ATTR, self)
        except BaseException:
            self.stop_reporting()
            raise

    def reset(self) -> None:
        """Reset all totals, and drop all checkouts, connections, connects and waiters."""
        super().reset()
        self._alarm = UtilizationAlarm(monotonic())
        self.queue: FairQueue | None = None
        if self.wait_timeout is not None:
            self.queue = FairQueue(self.adapter.is_exhausted, self.adapter.exhausted_error)

    # A checkout

    def start(self, stack: Stack) -> ManualCheckout:
        """Start a checkout that was requested at these call sites, and return its record."""
        return self.start_with(ManualCheckout(), stack)

    def start_with(
        self, checkout: AnyCheckout, stack: Stack, since: float | None = None, task: TaskReference | None = None
    ) -> AnyCheckout:
        """Start a checkout with a record supplied by the caller. Hot path: repeats the lines of `begin`.

        Args:
            checkout: the record.
            stack: the call sites.
            since: when the checkout was requested, if that was before the pool was known; None for now.
            task: the task whose name the span gets.
        """
        checkout.stack = stack
        checkout.thread = thread_cache.here.thread
        checkout.path = checkout.observer_data = checkout.queued = checkout.error_type = None
        checkout.block = checkout.flagged = False
        checkout.retries = 0
        if (
            self.gate._real_instrument is None  # noqa: SLF001 - the attribute is the gate: see `RecordingGate`
            or (COLLECTING and is_collecting_here())  # see `DeferringGuard`; a checkout cannot start later
        ):
            checkout.is_observed = False
        else:
            checkout.is_observed = True
            try:
                self._observer.started(checkout, since, task)
            except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                self.guard.log_error(error)
        checkout.started = monotonic() if since is None else since
        return checkout

    def start_in_task(self, stack: Stack, task: TaskReference | None) -> ManualCheckout:
        """Start a checkout that a task requested, or code outside of tasks if ``task`` is None; return its record.

        The key of the checkout's connects is the identity of its record, because a pool may connect in a task of its
        own.
        """
        return self.start_in_task_with(TaskCheckout(), stack, task)

    def start_in_task_with(self, checkout: AnyCheckout, stack: Stack, task: TaskReference | None) -> AnyCheckout:
        """Start a checkout of a task with a record supplied by the caller."""
        checkout.task = task
        checkout.caller = id(checkout)
        return self.start_with(checkout, stack, None, task)

    def enqueued(self, checkout: ManualCheckout) -> None:
        """Record that a checkout waits from now on for the present holders."""
        self.enqueued_at(checkout, monotonic())
        self.waiting[checkout] = None

    def enqueued_at(self, checkout: ManualCheckout, since: float) -> None:
        """Record that a checkout has been queued since a time."""
        checkout.queued = since
        checkout.expected_path = QUEUED
        self.queued += 1
        if checkout.observer_data is not None:
            self._set_blockers(checkout, since)

    @never_raise
    def _set_blockers(self, checkout: ManualCheckout, since: float) -> None:
        checkout.blockers = [Blocker.of(holder, since) for holder in self.all_held()[:LONGEST_HOLDERS]]

    def acquired(self, checkout: ManualCheckout, conn: Any) -> None:
        """Record that a checkout received ``conn``."""
        try:
            slot = self.slots.get(id(conn)) or self._register_unknown(checkout, conn)
            before: Any = slot.checkout
            if before is not None:  # released by a method that is not wrapped, or checked out again by the same key
                self.released(before)
            checkout.slot = slot
            checkout.acquired = now = monotonic()
            checkout.held = True
            slot.checkout = checkout
            self.wait_seconds += now - checkout.started
            if checkout.queued is None and not self.pending:
                checkout.path = IDLE
                self.idle_checkouts += 1
            else:
                self._set_path(checkout)
            if checkout.is_observed:  # before the hold is added, so that the watching thread cannot report it first
                try:
                    self._observer.acquired(checkout)
                except Exception as error:  # noqa: BLE001 - the application continues without telemetry
                    self.guard.log_error(error)
            self.held[checkout] = None
            if self.watch.parked and not self._ended:
                self.watch.wake()
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
        if self._ended:  # during this call
            self.released(checkout)

    def passed_through(self, checkout: ManualCheckout, given: Any) -> None:
        """Record a checkout that received something other than a pool's connection; it ends now, without a release."""
        self.acquired(checkout, given)
        self.released(checkout)
        self.slots.pop(id(given), None)

    def _register_unknown(self, checkout: ManualCheckout, conn: Any) -> TrackedSlot:
        """Register a connection whose connect was not observed, and read the target from it if that is unknown."""
        if not self.target.address:
            target = self.adapter.target_of(conn)
            if target is not None:
                self.target_known(target)
                self._report_target(checkout)
        return self.register(conn)

    def _report_target(self, checkout: ManualCheckout) -> None:
        """Report the target of a checkout that had begun before the target was known."""
        if checkout.started < self.target_since and checkout.is_observed:
            self.guard.notify(self._observer.target_known_to, checkout)

    def _set_path(self, checkout: ManualCheckout) -> None:
        """Set the path of a checkout that waited, or during which a connection was opened."""
        self.waiting.pop(checkout, None)
        self._report_target(checkout)
        if self.pending and self.report_connects(checkout):
            checkout.path = NEW
            self.new_checkouts += 1
        elif checkout.queued is not None:
            checkout.path = QUEUED
            self.queued_checkouts += 1
        else:
            checkout.path = IDLE
            self.idle_checkouts += 1

    @never_raise
    def failed(self, checkout: ManualCheckout, error: BaseException, refusal: PoolErrorType | None = None) -> None:
        """Record that a checkout received no connection.

        Args:
            checkout: the checkout.
            error: the error that the caller gets.
            refusal: ``TIMEOUT`` or ``CLOSED`` if the pool had no connection; None for any other error.
        """
        checkout.released = now = monotonic()
        self.waiting.pop(checkout, None)
        self._report_target(checkout)
        self.wait_seconds += max(0.0, now - checkout.started)
        if self.pending and self.report_connects(checkout):
            checkout.expected_path = NEW
        text = self.adapter.error_text(error, self.target)
        checkout.fail(self.adapter.error_type(error) if refusal is None else refusal.value, text)
        if refusal is PoolErrorType.TIMEOUT:
            checkout.outcome = Outcome.TIMEOUT.value
            self.timeouts += 1
            if checkout.observer_data is not None and checkout.queued is not None and not checkout.blockers:
                self._set_blockers(checkout, checkout.queued)  # the holders were still connecting when it queued
            is_logged = self._observer.will_log_timeout()
            error = self._diagnosis(checkout, error, now) if is_logged else PoolTimeout(text)
        else:
            checkout.outcome = Outcome.ERROR.value
            self.errors += 1
        self.guard.notify(self._observer.failed, checkout, error)

    def _diagnosis(self, checkout: ManualCheckout, error: BaseException, now: float) -> PoolTimeout:
        return diagnose(
            checkout.error_message or class_of(error),
            self.stats(),
            self.all_held(),
            since=checkout.started,
            now=now,
            retries=checkout.retries,
            waiter=checkout,
        )

    def released(
        self,
        checkout: ManualCheckout,
        outcome: Outcome = RELEASED,
        error: BaseException | None = None,
        at: float | None = None,
    ) -> None:
        """Record the end of a hold. A second call does nothing.

        Args:
            checkout: the checkout.
            outcome: how the hold ended.
            error: an error of the pool's own work on the connection, such as its rollback.
            at: when the hold ended, if not now.
        """
        now = monotonic() if at is None else at
        try:
            del checkout.held
        except AttributeError:
            return
        try:
            self._end_hold(checkout, now, outcome, error)
        except BaseException as raised:
            if not isinstance(raised, Exception) or is_external(raised):
                self._end_hold(checkout, now, outcome, error)  # completes what the exception cut short
                raise
            self.guard.log_error(raised)

    def _end_hold(self, checkout: ManualCheckout, now: float, outcome: Outcome, error: BaseException | None) -> None:
        """End a hold. Each step may be repeated after an interrupt."""
        slot = checkout.slot
        following = slot.checkout
        if following is checkout:
            slot.checkout = None
        elif following is not None:  # checked out again before this release was complete
            now = min(now, following.acquired)
        if checkout in self.held:
            duration = now - checkout.acquired
            if duration >= self.long_hold and not checkout.flagged:
                self.flag(checkout, now)
            del self.held[checkout]
            self.hold_seconds += duration  # no call since the removal: no thread sees a wrong `is_finished`
        checkout.released = now
        checkout.outcome = RELEASED_TEXT if outcome is RELEASED else outcome.value
        if error is not None:
            checkout.fail(self.adapter.error_type(error), self.adapter.error_text(error, self.target))
        if checkout.is_reported:
            return
        if outcome is RECLAIMED:
            self._observer.reclaimed(checkout)
        elif checkout.is_observed or checkout.flagged or error is not None:
            if COLLECTING and is_collecting_here():
                self.guard.notify(self._observer.released, checkout)
            else:
                self._observer.released(checkout)
        checkout.end_reported = True

    # Collected connections

    def connection_collected(self, slot: Slot) -> None:
        """Reclaim a connection that was collected without being closed. Finalizers call this, so it only defers."""
        if slot.checkout is not None:
            self.watch.defer(partial(self.reclaim, slot))
        elif self.is_replaced:  # collected with a replaced pool, to which it had been released
            self.watch.defer(partial(self.discarded, slot, DiscardReason.DRAINED))

    @never_raise
    def reclaim(self, slot: Slot) -> None:
        """Record that a connection was dropped by its holder, and that the pool had no strong reference to it."""
        checkout: Any = slot.checkout
        if checkout is not None and checkout.is_held:
            self.released(checkout, RECLAIMED)
            self.discarded(slot, DiscardReason.RECLAIMED, None, checkout)

    # The watching thread

    @never_raise
    def report_due(self, now: float) -> float:
        """Report long holds and the utilization; return when the next call is due, as a reading of the clock."""
        self.check_cleared(now)
        self.promote_all(now - self.long_hold)
        shorter, overdue = [], []
        for checkout in self.held.copy():
            if not checkout.flagged and checkout.acquired + self.long_hold > now:
                shorter.append(checkout)
            elif self._is_idle(checkout):
                self.released(checkout, at=checkout.acquired)  # the time is unknown: count a hold of 0 s
            elif not checkout.flagged:
                self.flag(checkout, now)
                overdue.append(checkout)
        self.report_long_holds(overdue)
        change = None if self.is_stopped else self._alarm.sample(now, self.stats)
        if change is not None:
            self.guard.notify(self._observer.utilization_changed, *change)
        for caller in self.connects.overdue_callers(now):
            self.report_connects(caller=caller)
        return min(self.hold_starts(shorter), default=NEVER) + self.long_hold

    def _is_idle(self, checkout: ManualCheckout) -> bool:
        pool, conn = self._pool(), checkout.slot.ref()
        return pool is not None and conn is not None and self.adapter.is_idle(pool, conn)

    @property
    def is_at_rest(self) -> bool:
        """Whether there is nothing to watch."""
        return not (self.held or self.light or self.pending) and (self.is_stopped or self._alarm.is_settled)

    # The end

    @never_raise
    def end(self, outcome: Outcome, reason: DiscardReason | None = None) -> None:
        """End the reports and every hold, because the pool is closed, collected or no longer instrumented."""
        self._ended = True
        self.fast_path_owner = None
        self.stop_reporting()
        for checkout in self.all_held():
            slot = checkout.slot
            self.released(checkout, outcome)
            if reason is not None:
                self.discarded(slot, reason, None, checkout)
        self.report_connects()
        if self.queue is not None:
            self.queue.end()
        end_shared_threads(0.0)  # without a wait: an event loop may run this
