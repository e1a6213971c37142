"""The spans of a pool: ``pool.checkout``, ``pool.wait`` and ``pool.connect``."""

from __future__ import annotations

from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Status, StatusCode, set_span_in_context

from otel_pgpool._version import __version__
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import thread_names
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.context import CheckoutContext, detach
from otel_pgpool.telemetry.names import (
    CHECKOUT,
    CONNECTION_ID,
    CONNECTION_PID,
    DIGITS,
    HOLD_TIME,
    LONG_HOLD,
    OUTCOME,
    PATH,
    RETRIES,
    THREAD_NAME,
    WAIT_TIME,
)
from otel_pgpool.telemetry.stacks import stack_of
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from otel_pgpool.config import TelemetryConfig
    from otel_pgpool.observer import Connect, ObservedPool
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.telemetry.error_types import ErrorTypes

INTERNAL = SpanKind.INTERNAL
NO_CONTEXT = Context()


class Observed:
    """The data that telemetry keeps with a checkout. Without an ``__init__``, which would double the cost.

    All its times are computed from one reading of both clocks, so that a step of the system's clock, or a thread switch
    between two readings, moves no event before the span's start.
    """

    __slots__ = ("__dict__", "began", "began_ns", "context", "span", "token")

    began: float
    began_ns: int
    context: Context | None
    """Context of the checkout's span; the caller's context if there is no span (yet)."""
    span: Span | None
    token: Any
    """Token of the context while it is current."""
    told: Mapping[str, AttributeValue] | None = None
    """Attributes of the long hold's event."""

    def enter(self) -> None:
        """Make the checkout's span current."""
        if self.context is not None:
            self.token = contexts.attach(self.context)

    def leave(self) -> None:
        """Restore the context that was current before `enter`."""
        if self.token is not None:
            detach(self.token, self.context)
            self.token = None  # last, so that after an interrupt `leave` is repeated

    def at(self, reading: float) -> int:
        """Return the time of day in nanoseconds for a reading of the monotonic clock."""
        passed = reading - self.began
        return self.began_ns + int(passed * 1e9) if passed > 0.0 else self.began_ns

    @property
    def trace_id(self) -> str | None:
        """Trace of the checkout's span, or else of the caller's span, in hexadecimal digits; None if there is none."""
        if self.context is None:
            return None
        span_context = trace.get_current_span(self.context).get_span_context()
        return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else None


SUPPRESSED = Observed()
SUPPRESSED.context = SUPPRESSED.span = SUPPRESSED.token = None
"""The data of every checkout whose caller has suppressed instrumentation: nothing is recorded."""


class Spans:
    """The spans of one pool, in one of the modes ``always``, ``parent``, ``slow`` and ``off``."""

    def __init__(
        self, provider: TracerProvider | None, config: TelemetryConfig, pool: ObservedPool, error_types: ErrorTypes
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, __version__, provider, names.SCHEMA_URL)
        # True until a provider is set. Testing for the provider costs a tenth of a span that is not exported.
        self._is_inert = isinstance(self._tracer, trace.ProxyTracer) and hasattr(trace, "_TRACER_PROVIDER")
        self._mode = config.spans
        self._is_choosy = self._is_inert or self._mode != "always"
        self._is_late = config.spans == "slow"  # a span is created when its checkout has ended
        self._slow = config.slow
        self._pool_name = pool.name
        self._error_types = error_types
        self._server: dict[str, AttributeValue] = {names.SERVER_ADDRESS: pool.address}
        if pool.port is not None:
            self._server[names.SERVER_PORT] = pool.port
        self._attributes: dict[str, AttributeValue] = {
            names.DB_SYSTEM_NAME: names.POSTGRESQL,
            names.DB_NAMESPACE: pool.namespace,
            **self._server,
            names.POOL_NAME: pool.name,
        }

    def start(self, checkout: Checkout, context: Context) -> None:
        """Start the span of a checkout in the caller's context. A checkout without a span keeps no data."""
        if self._is_choosy and not self._wants(context):
            return
        observed = Observed()
        observed.token = observed.span = None
        observed.context = context
        observed.began_ns = time_ns()
        observed.began = monotonic()
        checkout.observed = observed  # before the span starts, which an interrupt would leave open otherwise
        if self._is_late:
            return
        # By position: each argument by name costs 20 ns.
        observed.span = span = self._tracer.start_span(
            CHECKOUT, context, INTERNAL, self._attributes, (), observed.began_ns
        )
        if type(span) is NonRecordingSpan and not span.get_span_context().is_valid:
            checkout.observed = None  # the provider creates no spans
        else:
            observed.context = CheckoutContext.of(context, span)

    def _wants(self, context: Context) -> bool:
        if self._mode == "off" or (self._is_inert and trace._TRACER_PROVIDER is None):
            return False
        return self._mode != "parent" or trace.get_current_span(context).is_recording()

    def acquired(self, checkout: Checkout, observed: Observed) -> None:
        """Record the wait in the checkout's span: failed attempts, the time in the queue, the hand-over."""
        span = observed.span
        if span is not None and span.is_recording():
            self._tell_wait(checkout, observed, span, checkout.acquired)
            if checkout.path != "idle":
                span.add_event(names.ACQUIRED, {names.PATH: str(checkout.path)}, observed.at(checkout.acquired))

    def long_hold(self, observed: Observed, attributes: Mapping[str, AttributeValue]) -> None:
        """Add the event of a long hold."""
        observed.told = attributes
        span = observed.span
        if span is not None and span.is_recording():
            span.add_event(names.LONG_HOLD_EVENT, attributes, observed.at(monotonic()))

    def end(self, checkout: Checkout, observed: Observed) -> None:
        """End the span of a checkout that had a connection. A second call, after an interrupt, does nothing."""
        span = observed.span
        if span is None:
            span = self._start_late(checkout, observed, checkout.released - checkout.acquired)
        if span is None or not span.is_recording():
            return
        slot = checkout.slot
        span.set_attributes(
            {
                # Equal to `round` to `DIGITS`, at a third of the cost.
                WAIT_TIME: ((checkout.acquired - checkout.started) * 1e6 + 0.5) // 1.0 / 1e6,
                HOLD_TIME: ((checkout.released - checkout.acquired) * 1e6 + 0.5) // 1.0 / 1e6,
                RETRIES: checkout.retries,
                PATH: checkout.path or checkout.waits_for,
                LONG_HOLD: checkout.flagged,
                OUTCOME: checkout.outcome,
                CONNECTION_ID: slot.serial,
                CONNECTION_PID: slot.pid,
                THREAD_NAME: thread_names[checkout.thread.name],
            }
        )
        if checkout.error_type is not None:
            checkout.error_type = self._error_types.of(checkout.error_type)
            _tell_error(checkout, span)
        span.end(observed.began_ns + int((checkout.released - observed.began) * 1e9))  # `Observed.at` inline

    def fail(self, checkout: Checkout, observed: Observed) -> None:
        """End the span of a checkout that received no connection. A second call, after an interrupt, does nothing."""
        span = observed.span
        if span is None:
            span = self._start_late(checkout, observed, None)
        if span is None or not span.is_recording():
            return
        self._tell_wait(checkout, observed, span, checkout.released)
        span.set_attributes(
            {
                WAIT_TIME: round(checkout.released - checkout.started, DIGITS),
                RETRIES: checkout.retries,
                PATH: checkout.waits_for,
                OUTCOME: checkout.outcome,
                THREAD_NAME: thread_names[checkout.thread.name],
            }
        )
        _tell_error(checkout, span)
        span.end(observed.at(checkout.released))

    def _start_late(self, checkout: Checkout, observed: Observed, held: float | None) -> Span | None:
        """Create the span of an ended checkout in the mode ``slow``, or return None if the checkout was not slow.

        ``held`` is the duration of the hold in seconds, or None if there was no hold.
        """
        waited = (checkout.released if held is None else checkout.acquired) - checkout.started
        if not (
            checkout.flagged
            or checkout.retries > 0
            or checkout.error_type is not None
            or checkout.outcome == "reclaimed"
            or max(waited, held or 0.0) >= self._slow
        ):
            return None
        caller = observed.context or NO_CONTEXT
        observed.span = span = self._tracer.start_span(
            CHECKOUT, caller, attributes=self._attributes, start_time=observed.began_ns
        )
        observed.context = set_span_in_context(span, caller)
        if held is not None:
            self.acquired(checkout, observed)
        if observed.told is not None and span.is_recording():
            span.add_event(names.LONG_HOLD_EVENT, observed.told, observed.at(checkout.flagged_at))
        return span

    def _tell_wait(self, checkout: Checkout, observed: Observed, span: Span, until: float) -> None:
        """Add an event for each failed attempt, and a span for the time in the queue."""
        for number, attempt in enumerate(checkout.attempts, 1):
            attributes: dict[str, AttributeValue] = {
                names.ATTEMPT: number,
                names.ERROR_TYPE: self._error_types.of(attempt.error_type),
                names.DELAY: round(attempt.delay, DIGITS),
            }
            span.add_event(names.RETRY, attributes, observed.at(attempt.at))
        if checkout.queued is not None:
            links, began, ended = _links(checkout), observed.at(checkout.queued), observed.at(until)
            attributes = {names.POOL_NAME: self._pool_name, **_longest(checkout), names.BLOCKER_COUNT: len(links)}
            # In one line, because an interrupt between two lines would leave the span open.
            self._tracer.start_span(names.WAIT, observed.context, INTERNAL, attributes, links, began).end(ended)

    def connect(self, connect: Connect, error_type: str | None) -> Context | None:
        """Record an attempt to connect as a span; return the context of the span, or None if there is none."""
        asked_by = None if connect.asked_by is None else connect.asked_by.observed
        if self._mode == "off" or asked_by is SUPPRESSED:
            return None
        if self._mode == "parent" and (asked_by is None or asked_by.span is None):
            return None
        if self._mode == "slow" and error_type is None and connect.ended - connect.began < self._slow:
            return None
        parent = NO_CONTEXT if asked_by is None or asked_by.context is None else asked_by.context
        began = _wall(connect.began) if asked_by is None else asked_by.at(connect.began)
        span = self._tracer.start_span(
            names.CONNECT,
            parent,
            SpanKind.CLIENT,
            {**self._server, **_reached(connect), names.ATTEMPT: connect.attempt},
            start_time=began,
        )
        try:
            if error_type is not None:
                span.set_attribute(names.ERROR_TYPE, error_type)
                span.set_status(Status(StatusCode.ERROR, connect.message or None))
        finally:
            span.end(began + int((connect.ended - connect.began) * 1e9))
        return set_span_in_context(span, parent)


def long_hold_attributes(
    checkout: Checkout,
    threshold: float,
    skipped: Collection[str],
    transaction_status: Callable[[Any], TransactionStatus],
) -> dict[str, AttributeValue]:
    """Return the attributes of a hold in progress, such as whether a query runs and the stack of its thread."""
    conn = checkout.slot.ref()
    status = TransactionStatus.UNKNOWN
    if conn is not None:
        with suppress(Exception):  # an instrumented pool's connections may be of any kind
            status = transaction_status(conn)
    attributes: dict[str, AttributeValue] = {
        names.THRESHOLD: round(threshold if checkout.expected_hold is None else checkout.expected_hold, DIGITS),
        names.HELD: round(monotonic() - checkout.acquired, DIGITS),
        names.CONNECTION_PID: checkout.slot.pid,
        names.TRANSACTION_STATUS: str(status),
        names.CHECKED_OUT_AT: checkout.path_to,
    }
    stack = stack_of(checkout.thread, skipped)
    if stack:
        attributes[names.CODE_STACKTRACE] = stack
    return attributes


def _tell_error(checkout: Checkout, span: Span) -> None:
    if checkout.error_type is not None:
        span.set_attribute(names.ERROR_TYPE, checkout.error_type)
        span.set_status(Status(StatusCode.ERROR, checkout.error_message or None))


def _links(checkout: Checkout) -> list[Link]:
    """Return links to the spans of the holds that a checkout waited for."""
    links = []
    for blocker in checkout.blockers:
        span = getattr(blocker.observed, "span", None)
        if span is not None and span.get_span_context().is_valid:
            attributes = {names.HELD: round(blocker.held, DIGITS), names.CONNECTION_ID: blocker.connection_id}
            links.append(Link(span.get_span_context(), attributes))
    return links


def _longest(checkout: Checkout) -> dict[str, AttributeValue]:
    """Return attributes of the longest hold that a checkout waited for; Jaeger does not show links' attributes."""
    if not checkout.blockers:
        return {}
    longest = checkout.blockers[0]
    attributes: dict[str, AttributeValue] = {
        names.BLOCKER_HELD: round(longest.held, DIGITS),
        names.BLOCKER_PID: longest.pid,
        names.BLOCKER_CHECKED_OUT_AT: longest.path_to,
    }
    trace_id = getattr(longest.observed, "trace_id", None)
    if trace_id is not None:
        attributes[names.BLOCKER_TRACE_ID] = trace_id
    return attributes


def _reached(connect: Connect) -> dict[str, AttributeValue]:
    reached: dict[str, AttributeValue] = {}
    if connect.address:
        reached[names.SERVER_ADDRESS] = connect.address
    if connect.port:
        reached[names.SERVER_PORT] = connect.port
    return reached


def _wall(reading: float) -> int:
    """Return the time of day in nanoseconds for a reading of the monotonic clock."""
    return time_ns() - int((monotonic() - reading) * 1e9)
