"""Spans, metrics and logs of a pool: the implementation of `PoolObserver` with OpenTelemetry."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.config import TelemetryConfig
from otel_pgpool.driver.messages import known
from otel_pgpool.errors import PoolTimeout, error_type
from otel_pgpool.runtime.text import class_of, text_of
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.context import SUPPRESSED, CheckoutState, leave_ended
from otel_pgpool.telemetry.database_state import database_state_attributes
from otel_pgpool.telemetry.entry_spans import entry_spans
from otel_pgpool.telemetry.error_types import ErrorTypes
from otel_pgpool.telemetry.logs import CANNOT_BE_HANDED_OUT, CANNOT_BE_MADE, CANNOT_BE_USED, Logs
from otel_pgpool.telemetry.long_hold import holder_attributes, long_hold_attributes, transaction_status
from otel_pgpool.telemetry.metrics import instruments
from otel_pgpool.telemetry.sdk_internals import CLOSED, SUPPRESSION_KEY, RecordingGate
from otel_pgpool.telemetry.service_name import service_name
from otel_pgpool.telemetry.spans import Spans
from otel_pgpool.types import CheckoutPath, Outcome, TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.observer import Connect, ObservedPool
    from otel_pgpool.pool.checkout import Checkout, Slot
    from otel_pgpool.runtime.tasks import TaskReference
    from otel_pgpool.stats import PoolStats
    from otel_pgpool.telemetry.callers import Callers
    from otel_pgpool.types import LevelName, ReasonName

    # What is passed is a `Checkout`. An observer of the program knows it as an `ObservedCheckout`, and may pass it on.
    AnyCheckout = Checkout | Any

IDLE = CheckoutPath.IDLE.value


class Telemetry:
    """The telemetry of one pool, to be passed as its ``observer``.

    ``recording_gate`` lets the instrumentation skip an ordinary checkout that would record nothing: see
    `RecordingGate`.

    Args:
        tracer_provider: the tracer provider; by default the global one, whether set now or later.
        meter_provider: the meter provider; by default the global one, whether set now or later.
        spans: which checkouts get spans: ``always``, ``parent`` (only under a recording span), ``slow`` or ``off``; by
            default ``OTEL_PGPOOL_SPANS``, or ``always`` if that is not set.
        slow: time in seconds, of a wait or a hold, after which a checkout is slow; by default ``OTEL_PGPOOL_SLOW``, or
            0.1 if that is not set.
        histograms: which of ``wait_time``, ``use_time`` and ``create_time`` are recorded; by default
            ``OTEL_PGPOOL_HISTOGRAMS``, or all if that is not set.
        stack_skip: top-level packages to leave out of the stack of a long hold, in addition to the built-in list of
            servers and frameworks; by default ``OTEL_PGPOOL_STACK_SKIP``, or none if that is not set.
        caller: whether waits, holds and held connections are reported by the caller; by default
            ``OTEL_PGPOOL_CALLER``, or False if that is not set.

    Raises:
        ValueError: an argument or an environment variable is invalid.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        spans: str | None = None,
        slow: float | None = None,
        histograms: Sequence[str] | None = None,
        *,
        stack_skip: Collection[str] | None = None,
        caller: bool | None = None,
    ) -> None:
        self._config = TelemetryConfig.of(spans, slow, histograms, stack_skip, caller=caller)
        self._may_have_spans = self._config.spans != "off"
        self._tracer_provider = tracer_provider
        self._instruments = instruments(meter_provider)
        recorded = self._config.histograms
        self._wait_time = self._instruments.wait_time if "wait_time" in recorded else None
        self._use_time = self._instruments.use_time if "use_time" in recorded else None
        self._create_time = self._instruments.create_time if "create_time" in recorded else None
        is_recorded = self._wait_time is not None or self._use_time is not None or self._config.caller
        gate = self._instruments.recording_gate if is_recorded else CLOSED
        self.recording_gate: RecordingGate | None = gate if self._config.spans == "off" else None
        self.transaction_status: Callable[[Any], TransactionStatus] = transaction_status
        """Function that reads the status of a connection's transaction; the instrumentation sets its own."""
        self.error_type: Callable[[BaseException], str] = error_type
        """Function that returns the type of an error; the instrumentation sets its own."""
        self._pool_name: str | None = None
        self._error_types = ErrorTypes()
        self._callers: Callers | None = None

    def attached(self, pool: ObservedPool) -> None:
        """Prepare the telemetry of a pool; called again in a forked child.

        Raises:
            ValueError: this telemetry belongs to another pool.
        """
        if self._pool_name not in (None, pool.name):
            raise ValueError(f"observer belongs to pool {self._pool_name!r}: each pool needs a Telemetry of its own")
        self._pool_name = pool.name
        self._pool, self._threshold = weakref.ref(pool), pool.long_hold
        self._attributes = {names.ATTR_POOL_NAME: pool.name}
        self._spans = Spans(self._tracer_provider, self._config, pool, self._error_types)
        self._logs = Logs(pool.name)
        # Taken for long holds only, so that a span does not end while its event is being added. Reentrant, because the
        # garbage collector may run under it and close a generator, which ends a block.
        self._lock = threading.RLock()
        if self._config.caller:
            self._callers = self._instruments.callers_of(pool)
            entry_spans.watch(self._tracer_provider)
        self._connect_failures = self._instruments.connect_failures_of(pool)
        self._instruments.report(pool, self._callers)

    def target_known(self, pool: ObservedPool) -> None:
        """Report from now on where the pool connects to, which was unknown before; checkouts may be in progress."""
        self._spans.set_target(pool)

    # Names of sessions on the server

    def service_name(self) -> str | None:
        """Return the ``service.name`` of the tracer provider's resource; None if it is not known (yet)."""
        return service_name(self._tracer_provider)

    def traceparent(self, checkout: AnyCheckout) -> str | None:
        """Return the ``traceparent`` of a checkout's span; None if there is no span (yet), or none that is sampled."""
        state: CheckoutState | None = checkout.observer_data
        return None if state is None else state.traceparent

    # Checkouts

    def target_known_to(self, checkout: Checkout) -> None:
        """Add the target to the span of a checkout that has begun before the target was known."""
        state: CheckoutState | None = checkout.observer_data
        if state is not None and state.span is not None:
            self._spans.target_known(state.span)

    def started(self, checkout: AnyCheckout, since: float | None = None, task: TaskReference | None = None) -> None:
        """Start the span of a checkout.

        Args:
            checkout: the checkout.
            since: when the checkout was requested, if not now.
            task: the task that requested the checkout, if the span is to have its name.
        """
        context = leave_ended()
        if context.get(SUPPRESSION_KEY):
            checkout.observer_data = SUPPRESSED
            return
        if self._callers is not None:
            checkout.caller_name = self._callers.of(context, checkout.stack)
        if self._may_have_spans:
            self._spans.start(checkout, context, since, task)

    def _attributes_with(self, callers: Callers, checkout: Checkout) -> dict[str, str]:
        return {**self._attributes, names.ATTR_CALLER: checkout.caller_name or callers.at(checkout.stack)}

    def acquired(self, checkout: AnyCheckout) -> None:
        """Record the wait of a checkout; inside a block, make its span current."""
        state: CheckoutState | None = checkout.observer_data
        if state is None:
            context = None
        elif state is SUPPRESSED:
            return
        else:
            if checkout.path != IDLE or checkout.queued is not None or checkout.retries:
                self._spans.acquired(checkout, state)
            context = state.context
        if self._wait_time is not None:
            callers = self._callers
            attributes = self._attributes if callers is None else self._attributes_with(callers, checkout)
            self._wait_time.record(checkout.acquired - checkout.started, attributes, context)
        if checkout.block and state is not None and state.span is not None:
            state.enter()

    def failed(self, checkout: AnyCheckout, error: BaseException) -> None:
        """End the span of a checkout that received no connection, and record its wait."""
        state: CheckoutState | None = checkout.observer_data
        context = None
        checkout.error_type = self._error_types.of(checkout.error_type or class_of(error))
        if state is not None and state is not SUPPRESSED:
            state.leave()  # an interrupt may have hit after the hand-over, when the span was current
            context = state.context
        if checkout.had_proxy_wait:
            self._report_proxy_wait(checkout, context)
        if state is not None and state is not SUPPRESSED:
            self._spans.fail(checkout, state)
        if self._wait_time is not None and state is not SUPPRESSED:
            attributes = self._attributes if self._callers is None else self._attributes_with(self._callers, checkout)
            attributes = {**attributes, names.ATTR_ERROR_TYPE: checkout.error_type}
            self._wait_time.record(checkout.released - checkout.started, attributes, context)
        if isinstance(error, PoolTimeout) and checkout.outcome == Outcome.TIMEOUT.value:
            self._logs.timeout(error, context)

    def released(self, checkout: AnyCheckout) -> None:
        """Record the hold, then end the span.

        In this order the histogram's code is still in the cache from the wait.
        """
        state: CheckoutState | None = checkout.observer_data
        if state is None:
            context = None
        else:
            if state.token is not None:
                state.leave()
            context = state.context
        if checkout.is_remarkable:
            self._report_remarkable(checkout, context)
        if state is SUPPRESSED:
            return
        try:
            if self._use_time is not None:
                callers = self._callers
                attributes = self._attributes if callers is None else self._attributes_with(callers, checkout)
                self._use_time.record(checkout.released - checkout.acquired, attributes, context)
        finally:
            if state is not None:
                self._spans.end(checkout, state)

    def _report_remarkable(self, checkout: Checkout, context: Context | None) -> None:
        """Report what is rare at the end of a hold: its length, expected or not, a proxy's wait, or blocks inside."""
        state: CheckoutState | None = checkout.observer_data
        if checkout.expected_hold is not None and state is not None and state.span is not None:
            self._spans.hold_expected(state.span)
        if checkout.flagged:
            self.held_long(checkout)
            self._logs.long_hold_returned(checkout, context)
        if checkout.had_proxy_wait:
            self._report_proxy_wait(checkout, context)
        if checkout.blocks_inside and state is not None and state.span is not None:
            self._spans.blocks_inside(state.span, checkout.blocks_inside)

    def _report_proxy_wait(self, checkout: Checkout, context: Context | None) -> None:
        state: CheckoutState | None = checkout.observer_data
        if state is not None and state.span is not None:
            self._spans.proxy_wait(state.span)
        attributes = {names.ATTR_CHECKED_OUT_AT: checkout.path_to, **holder_attributes(checkout)}
        self._logs.proxy_wait(attributes, context)

    def will_log_timeout(self) -> bool:
        """Return whether the next timeout will be logged; only then is its diagnosis needed."""
        return self._logs.will_log_timeout()

    def abandoned(self, checkout: AnyCheckout) -> None:
        """Detach the context of a checkout whose span this process must not end."""
        state: CheckoutState | None = checkout.observer_data
        if state is not None:
            state.leave()

    # Long holds

    def held_long(self, checkout: AnyCheckout) -> None:
        """Add the event and log the record of a long hold, once, while the connection is held or at its release."""
        with self._lock:
            attributes = self._report_long_hold(checkout)
        if attributes is not None:
            self._logs.long_hold(attributes, _context(checkout))

    def _report_long_hold(self, checkout: Checkout) -> dict[str, object] | None:
        """Add the event of a long hold, once: the maintenance thread and the releasing thread may both call this.

        The caller holds the lock.
        """
        if checkout.long_hold_reported:
            return None
        checkout.long_hold_reported = True
        attributes = self._long_hold_attributes(checkout)
        state: CheckoutState | None = checkout.observer_data
        if state is not None and state is not SUPPRESSED:
            self._spans.long_hold(state, attributes)
        return {**attributes, **holder_attributes(checkout)}

    def _long_hold_attributes(self, checkout: Checkout) -> dict[str, Any]:
        pool = self._pool()
        if pool is not None:
            self._threshold = pool.long_hold  # may have changed
        return long_hold_attributes(checkout, self._threshold, self._config.stack_skip, self.transaction_status)

    def database_state(self, checkout: AnyCheckout, state: DatabaseState, blockers: Sequence[AnyCheckout]) -> None:
        """Add the event of what the server says of a long hold, and log the record, unless the hold has ended."""
        attributes = database_state_attributes(state)
        with self._lock:  # a release takes it too, for the event of the long hold, before it ends the span
            if not checkout.is_held:
                return
            data: CheckoutState | None = checkout.observer_data
            if data is not None and data is not SUPPRESSED:
                self._spans.database_state(data, attributes, blockers)
        record = {**attributes, **holder_attributes(checkout)}
        self._logs.database_state(state, checkout.where, record, _context(checkout))

    def reclaimed(self, checkout: AnyCheckout) -> None:
        """End the span of a checkout whose connection was dropped, and log its holder."""
        attributes = {**self._long_hold_attributes(checkout), **holder_attributes(checkout)}
        self._logs.reclaimed(attributes, _context(checkout))
        self.released(checkout)

    # Connections

    def connected(self, connect: Connect) -> None:
        """Record a successful attempt to connect."""
        self._record_connect(connect, None)
        self._logs.connected(connect)

    def connect_failed(self, connect: Connect) -> None:
        """Record a failed attempt to connect."""
        name = self._name_of(connect)
        self._record_connect(connect, name)
        self._logs.connect_failed(connect, name)
        if connect.callback:
            effect = CANNOT_BE_USED if connect.is_refusal else CANNOT_BE_MADE
            self._logs.program_error(effect, connect.callback, name, connect.message)
        elif connect.is_refusal:
            self._logs.connect_refused(connect, name)

    def callback_failed(
        self, callback: str, error: BaseException, message: str, checkout: Checkout | None = None
    ) -> None:
        """Log that a callback of the program raised on an open connection. For instrumented pools.

        Args:
            callback: name of the callback.
            error: the error that the callback raised.
            message: text of the error, free of secrets.
            checkout: the checkout that gets another connection or none, if there is one.
        """
        context = None if checkout is None else _context(checkout)
        name = self._error_types.of(self.error_type(error))
        self._logs.program_error(CANNOT_BE_HANDED_OUT, callback, name, message, context)

    def _name_of(self, connect: Connect) -> str:
        return self._error_types.of("" if connect.error is None else error_type(connect.error))

    def _record_connect(self, connect: Connect, failure: str | None) -> None:
        context = self._spans.connect(connect, failure)
        attributes = self._attributes if failure is None else {**self._attributes, names.ATTR_ERROR_TYPE: failure}
        if failure is not None:
            self._connect_failures.add(failure)
        if self._create_time is not None:
            self._create_time.record(connect.ended - connect.began, attributes, context)

    def discarded(
        self, slots: Sequence[Slot | Any], reason: ReasonName, error: BaseException | None, checkout: AnyCheckout | None
    ) -> None:
        """Log which connections were closed, and why."""
        context = None if checkout is None else _context(checkout)
        name = None if error is None else self._error_types.of(self.error_type(error))
        self._logs.discarded(slots, reason, name, context, "" if error is None else known(text_of(error), ()))

    def outage_started(self, connect: Connect) -> None:
        """Log that the server cannot be reached."""
        self._logs.outage_started(connect, self._name_of(connect))

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Log that the server was reached again."""
        self._logs.outage_ended(attempts, duration)

    def utilization_changed(self, level: LevelName, stats: PoolStats) -> None:
        """Log the new utilization level of the pool."""
        self._logs.utilization(level, stats)


def _context(checkout: Checkout) -> Context | None:
    return None if checkout.observer_data is None else checkout.observer_data.context
