"""The spans of a pool: ``pool.checkout``, ``pool.wait`` and ``pool.connect``."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)

from otel_pgpool._version import __version__
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import thread_names
from otel_pgpool.telemetry import names, sdk_internals
from otel_pgpool.telemetry.context import SUPPRESSED, CheckoutState, ContextWithSpan
from otel_pgpool.telemetry.names import (
    ATTR_CONNECTION_ID,
    ATTR_CONNECTION_PID,
    ATTR_HOLD_TIME,
    ATTR_LONG_HOLD,
    ATTR_OUTCOME,
    ATTR_PATH,
    ATTR_RETRIES,
    ATTR_THREAD_NAME,
    ATTR_WAIT_TIME,
    DIGITS,
    SPAN_CHECKOUT,
)
from otel_pgpool.types import CheckoutPath, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from otel_pgpool.config import TelemetryConfig
    from otel_pgpool.observer import Connect, ObservedPool
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.runtime.tasks import TaskReference
    from otel_pgpool.telemetry.error_types import ErrorTypes

INTERNAL = SpanKind.INTERNAL
NO_CONTEXT = Context()
MOST_DATABASE_STATES = 20
"""Number of events of the database's side that are kept for a span that does not exist yet."""
IDLE = CheckoutPath.IDLE.value
CLOCKS_APART = 0.0005
"""Seconds between the readings of two clocks above which they are read again: a span would be so much too short."""


class Spans:
    """The spans of one pool, in one of the modes ``always``, ``parent``, ``slow`` and ``off``."""

    def __init__(
        self, provider: TracerProvider | None, config: TelemetryConfig, pool: ObservedPool, error_types: ErrorTypes
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, __version__, provider, names.SCHEMA_URL)
        self._mode = config.spans
        self._wants = self._filter()
        self._deferred_spans = config.spans == "slow"  # a span is created when its checkout has ended
        self._slow = config.slow
        self._pool_name = pool.name
        self._error_types = error_types
        self.set_target(pool)

    def set_target(self, pool: ObservedPool) -> None:
        """Set the attributes that say where the pool connects to."""
        self._attributes: dict[str, AttributeValue] = {
            names.ATTR_DB_SYSTEM_NAME: names.VALUE_POSTGRESQL,
            names.ATTR_DB_NAMESPACE: pool.namespace,
            names.ATTR_SERVER_ADDRESS: pool.address,
            names.ATTR_POOL_NAME: self._pool_name,
        }
        if pool.port is not None:
            self._attributes[names.ATTR_SERVER_PORT] = pool.port

    def start(
        self, checkout: Checkout, context: Context, since: float | None = None, task: TaskReference | None = None
    ) -> None:
        """Start the span of a checkout in the caller's context, now or since a time. Without a span, keep no data.

        The name of a task is added here and not in `end`, where it would cost the checkouts of threads.
        """
        if self._wants is not None and not self._wants(context):
            return
        state = CheckoutState()
        state.token = state.span = None
        state.context = context
        state.began, state.began_ns = monotonic(), time_ns()
        if monotonic() - state.began > CLOCKS_APART:  # another thread ran in between, for milliseconds maybe
            state.began, state.began_ns = monotonic(), time_ns()
        if since is not None:
            state.began_ns, state.began = state.began_ns - int((state.began - since) * 1e9), since
        checkout.observer_data = state  # before the span starts, which an interrupt would leave open otherwise
        if self._deferred_spans:
            return
        # By position: each argument by name costs 20 ns.
        attributes = self._attributes if task is None else {**self._attributes, names.ATTR_TASK_NAME: task.name}
        state.span = span = self._tracer.start_span(SPAN_CHECKOUT, context, INTERNAL, attributes, (), state.began_ns)
        if type(span) is NonRecordingSpan and not span.get_span_context().is_valid:
            checkout.observer_data = None  # the provider creates no spans
        else:
            state.context = ContextWithSpan.of(context, span)

    def target_known(self, span: Span) -> None:
        """Replace the target of a checkout's span, which has begun before the present one was known."""
        if span.is_recording():
            span.set_attributes(self._attributes)

    def _filter(self) -> Callable[[Context], bool] | None:
        """Return the function that decides whether a checkout in a context gets a span; None if each gets one."""
        if self._mode == "off":
            return lambda _caller: False
        if self._mode == "parent":
            return _is_recorded
        return sdk_internals.has_provider if sdk_internals.waits_for_provider(self._tracer) else None

    def acquired(self, checkout: Checkout, state: CheckoutState) -> None:
        """Record the wait in the checkout's span: failed attempts, the time in the queue, the hand-over."""
        span = state.span
        if span is not None and span.is_recording():
            self._report_wait(checkout, state, span, checkout.acquired)
            if checkout.path != IDLE:
                span.add_event(names.EVENT_ACQUIRED, {names.ATTR_PATH: str(checkout.path)}, state.at(checkout.acquired))

    def long_hold(self, state: CheckoutState, attributes: Mapping[str, AttributeValue]) -> None:
        """Add the event of a long hold."""
        state.long_hold = attributes
        span = state.span
        if span is not None and span.is_recording():
            span.add_event(names.EVENT_LONG_HOLD, attributes, state.at(monotonic()))

    def database_state(
        self, state: CheckoutState, attributes: Mapping[str, AttributeValue], blockers: Sequence[Checkout]
    ) -> None:
        """Add the event of what the server says of a long hold, and links to the checkouts that block it."""
        now, span = monotonic(), state.span
        if span is None:
            state.database_states = (*state.database_states, (now, attributes))[-MOST_DATABASE_STATES:]
        elif span.is_recording():
            for context in _new_links(span, blockers):
                span.add_link(context, {names.ATTR_RELATION: names.VALUE_BLOCKED_BY})
            span.add_event(names.EVENT_DATABASE_STATE, attributes, state.at(now))

    def proxy_wait(self, span: Span) -> None:
        """Note in the span of a checkout that a proxy let a query wait."""
        span.set_attributes({names.ATTR_PROXY_WAIT: True})

    def blocks_inside(self, span: Span, count: int) -> None:
        """Note in the span of a checkout how many blocks inside its own have used the same connection."""
        span.set_attributes({names.ATTR_BLOCKS_INSIDE: count})

    def hold_expected(self, span: Span) -> None:
        """Note in the span of a checkout that its hold was declared to be long."""
        span.set_attributes({names.ATTR_EXPECTED_HOLD: True})

    def end(self, checkout: Checkout, state: CheckoutState) -> None:
        """End the span of a checkout that had a connection. A second call, after an interrupt, does nothing."""
        span = state.span
        if span is None:
            span = self._start_deferred(checkout, state, checkout.released - checkout.acquired)
        if span is None or not span.is_recording():
            return
        slot = checkout.slot
        span.set_attributes(
            {
                # Equal to `round` to `DIGITS`, at a third of the cost.
                ATTR_WAIT_TIME: ((checkout.acquired - checkout.started) * 1e6 + 0.5) // 1.0 / 1e6,
                ATTR_HOLD_TIME: ((checkout.released - checkout.acquired) * 1e6 + 0.5) // 1.0 / 1e6,
                ATTR_RETRIES: checkout.retries,
                ATTR_PATH: str(checkout.path or checkout.expected_path),
                ATTR_LONG_HOLD: checkout.flagged,
                ATTR_OUTCOME: str(checkout.outcome),
                ATTR_CONNECTION_ID: slot.serial,
                ATTR_CONNECTION_PID: slot.pid,
                ATTR_THREAD_NAME: thread_names[checkout.thread.name],
            }
        )
        if checkout.error_type is not None:
            checkout.error_type = self._error_types.of(checkout.error_type)
            _report_error(checkout, span)
        span.end(state.began_ns + int((checkout.released - state.began) * 1e9))  # `CheckoutState.at` inline

    def fail(self, checkout: Checkout, state: CheckoutState) -> None:
        """End the span of a checkout that received no connection. A second call, after an interrupt, does nothing."""
        span = state.span
        if span is None:
            span = self._start_deferred(checkout, state, None)
        if span is None or not span.is_recording():
            return
        self._report_wait(checkout, state, span, checkout.released)
        span.set_attributes(
            {
                ATTR_WAIT_TIME: round(checkout.released - checkout.started, DIGITS),
                ATTR_RETRIES: checkout.retries,
                ATTR_PATH: str(checkout.expected_path),
                ATTR_OUTCOME: str(checkout.outcome),
                ATTR_THREAD_NAME: thread_names[checkout.thread.name],
            }
        )
        _report_error(checkout, span)
        span.end(state.at(checkout.released))

    def _start_deferred(self, checkout: Checkout, state: CheckoutState, held: float | None) -> Span | None:
        """Create the span of an ended checkout in the mode ``slow``, or return None if the checkout was not slow.

        ``held`` is the duration of the hold in seconds, or None if there was no hold.
        """
        waited = (checkout.released if held is None else checkout.acquired) - checkout.started
        if not (
            checkout.flagged
            or checkout.retries > 0
            or checkout.error_type is not None
            or checkout.outcome == Outcome.RECLAIMED.value
            or max(waited, held or 0.0) >= self._slow
        ):
            return None
        caller, attributes = state.context or NO_CONTEXT, self._attributes
        if checkout.task is not None:
            attributes = {**attributes, names.ATTR_TASK_NAME: checkout.task.name}
        if checkout.had_proxy_wait:
            attributes = {**attributes, names.ATTR_PROXY_WAIT: True}
        if checkout.blocks_inside:
            attributes = {**attributes, names.ATTR_BLOCKS_INSIDE: checkout.blocks_inside}
        if checkout.expected_hold is not None and held is not None:
            attributes = {**attributes, names.ATTR_EXPECTED_HOLD: True}
        state.span = span = self._tracer.start_span(
            SPAN_CHECKOUT, caller, attributes=attributes, start_time=state.began_ns
        )
        state.context = set_span_in_context(span, caller)
        if held is not None:
            self.acquired(checkout, state)
        if state.long_hold is not None and span.is_recording():
            span.add_event(names.EVENT_LONG_HOLD, state.long_hold, state.at(checkout.flagged_at))
        if span.is_recording():
            for at, answer in state.database_states:
                span.add_event(names.EVENT_DATABASE_STATE, answer, state.at(at))
        return span

    def _report_wait(self, checkout: Checkout, state: CheckoutState, span: Span, until: float) -> None:
        """Add an event for each failed attempt, and a span for the time in the queue."""
        for number, attempt in enumerate(checkout.attempts, 1):
            attributes: dict[str, AttributeValue] = {
                names.ATTR_ATTEMPT: number,
                names.ATTR_ERROR_TYPE: self._error_types.of(attempt.error_type),
                names.ATTR_DELAY: round(attempt.delay, DIGITS),
            }
            span.add_event(names.EVENT_RETRY, attributes, state.at(attempt.at))
        if checkout.queued is not None:
            links, began, ended = _links(checkout), state.at(checkout.queued), state.at(until)
            attributes = {
                names.ATTR_POOL_NAME: self._pool_name,
                **_longest_holder(checkout),
                names.ATTR_BLOCKER_COUNT: len(links),
            }
            # In one line, because an interrupt between two lines would leave the span open.
            self._tracer.start_span(names.SPAN_WAIT, state.context, INTERNAL, attributes, links, began).end(ended)

    def connect(self, connect: Connect, error_type: str | None) -> Context | None:
        """Record an attempt to connect as a span; return the context of the span, or None if there is none."""
        asked_by = None if connect.asked_by is None else connect.asked_by.observer_data
        if self._mode == "off" or asked_by is SUPPRESSED:
            return None
        if self._mode == "parent" and (asked_by is None or asked_by.span is None):
            return None
        if self._mode == "slow" and error_type is None and connect.ended - connect.began < self._slow:
            return None
        parent = NO_CONTEXT if asked_by is None or asked_by.context is None else asked_by.context
        began = _wall(connect.began) if asked_by is None else asked_by.at(connect.began)
        span = self._tracer.start_span(
            names.SPAN_CONNECT,
            parent,
            SpanKind.CLIENT,
            {**self._attributes, **_address(connect), names.ATTR_ATTEMPT: connect.attempt},
            start_time=began,
        )
        try:
            if error_type is not None:
                span.set_attribute(names.ATTR_ERROR_TYPE, error_type)
                span.set_status(Status(StatusCode.ERROR, connect.message or None))
        finally:
            span.end(began + int((connect.ended - connect.began) * 1e9))
        return set_span_in_context(span, parent)


def _is_recorded(caller: Context) -> bool:
    span: Any = caller.get(sdk_internals.SPAN_KEY)
    return span is not None and span.is_recording()


def _report_error(checkout: Checkout, span: Span) -> None:
    if checkout.error_type is not None:
        span.set_attribute(names.ATTR_ERROR_TYPE, checkout.error_type)
        span.set_status(Status(StatusCode.ERROR, checkout.error_message or None))


def _links(checkout: Checkout) -> list[Link]:
    """Return links to the spans of the holds that a checkout waited for."""
    links = []
    for blocker in checkout.blockers:
        span = getattr(blocker.observer_data, "span", None)
        if span is not None and span.get_span_context().is_valid:
            attributes = {names.ATTR_HELD: round(blocker.held, DIGITS), names.ATTR_CONNECTION_ID: blocker.connection_id}
            links.append(Link(span.get_span_context(), attributes))
    return links


def _new_links(span: Span, blockers: Sequence[Checkout]) -> list[SpanContext]:
    """Return the contexts of the blockers' spans to which a span has no link yet."""
    contexts = [
        blocker.observer_data.span.get_span_context()
        for blocker in blockers
        if getattr(blocker.observer_data, "span", None) is not None
    ]
    known = {link.context.span_id for link in getattr(span, "links", ())}
    return [context for context in contexts if context.is_valid and context.span_id not in known]


def _longest_holder(checkout: Checkout) -> dict[str, AttributeValue]:
    """Return attributes of the longest hold that a checkout waited for; Jaeger does not show links' attributes."""
    if not checkout.blockers:
        return {}
    longest = checkout.blockers[0]
    attributes: dict[str, AttributeValue] = {
        names.ATTR_BLOCKER_HELD: round(longest.held, DIGITS),
        names.ATTR_BLOCKER_PID: longest.pid,
        names.ATTR_BLOCKER_CHECKED_OUT_AT: longest.path_to,
    }
    trace_id = getattr(longest.observer_data, "trace_id", None)
    if trace_id is not None:
        attributes[names.ATTR_BLOCKER_TRACE_ID] = trace_id
    return attributes


def _address(connect: Connect) -> dict[str, AttributeValue]:
    reached = {names.ATTR_SERVER_ADDRESS: connect.address, names.ATTR_SERVER_PORT: connect.port}
    return {name: value for name, value in reached.items() if value}


def _wall(reading: float) -> int:
    """Return the time of day in nanoseconds for a reading of the monotonic clock."""
    return time_ns() - int((monotonic() - reading) * 1e9)
