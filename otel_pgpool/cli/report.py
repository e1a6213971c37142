"""The report of a recording: totals, percentiles, and the slowest checkouts with the holders that they waited for."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from otel_pgpool.cli.answers import Answer, last_answer
from otel_pgpool.cli.recording import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from otel_pgpool.cli.recording import Recording, Span

NANOSECONDS = 1e9
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Percentiles of durations in seconds, by nearest rank: each is a duration that was measured."""

    count: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, durations: Iterable[float]) -> Spread | None:
        """Compute the percentiles; return None if there are no durations."""
        ordered = sorted(durations)
        if not ordered:
            return None
        return cls(len(ordered), percentile(ordered, 50), percentile(ordered, 99), ordered[-1])


def percentile(ordered: Sequence[float], rank: float) -> float:
    """Return the smallest of the ``ordered`` values that at least ``rank`` percent of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * rank / 100) - 1)]


@dataclass(frozen=True)
class Mark:
    """An event of a checkout, ``at`` seconds after the checkout's start."""

    at: float
    name: str


@dataclass(frozen=True)
class WaitedFor:
    """A holder for which a checkout waited. Times are in seconds; None if the holder's span was not recorded."""

    connection_id: int
    held_then: float
    """Duration of the hold when the wait began."""
    held: float | None = None
    request: str | None = None
    thread: str | None = None


@dataclass(frozen=True)
class SlowCheckout:
    """One checkout, from its start to its end. Times are in seconds."""

    request: str
    """Name of the caller's span."""
    thread: str
    trace_id: str
    outcome: str
    wait: float
    hold: float | None
    """Duration of the hold; None if the checkout received no connection."""
    marks: tuple[Mark, ...] = ()
    waited_for: tuple[WaitedFor, ...] = ()
    transaction: str | None = None
    """State of the transaction when the hold was reported as long."""
    checked_out_at: str | None = None
    database: Answer | None = None
    """What PostgreSQL said last of its session; None if it was not asked."""

    @property
    def total(self) -> float:
        """Sum of wait and hold."""
        return self.wait + (self.hold or 0.0)


@dataclass(frozen=True)
class Report:
    """The figures of a run, computed by `read`."""

    service: str
    seconds: float
    checkouts: int
    paths: dict[str, int]
    """Checkouts that received a connection, by path."""
    outcomes: dict[str, int]
    errors: dict[str, int]
    waited: int
    """Checkouts that waited in the queue, whether or not they received a connection."""
    timeouts: int
    retries: int
    long_holds: int
    created: int
    discarded: dict[str, int]
    wait: Spread | None
    hold: Spread | None
    slowest: tuple[SlowCheckout, ...]


def read(recording: Recording, slowest: int = 3) -> Report:
    """Compute the report of a recording, with up to ``slowest`` of the slowest checkouts."""
    spans = {span.span_id: span for span in recording.spans()}
    checkouts = [span for span in spans.values() if span.name == "pool.checkout"]
    waits = {span.parent_id: span for span in spans.values() if span.name == "pool.wait"}
    recorded = [span.attributes for span in checkouts]
    paths = recording.totals("otel_pgpool.checkouts", "otel_pgpool.path")
    times = [time for span in spans.values() for time in (span.start, span.end)] or [0]
    return Report(
        service=recording.service(),
        seconds=(max(times) - min(times)) / NANOSECONDS,
        checkouts=len(checkouts),
        paths={path: count for path, count in paths.items() if count},
        outcomes=_count(attributes.get("otel_pgpool.outcome") for attributes in recorded),
        errors=_count(attributes.get("error.type") for attributes in recorded),
        waited=len(waits),
        timeouts=sum(recording.totals("db.client.connection.timeouts").values()),
        retries=sum(recording.totals("otel_pgpool.retries").values()),
        long_holds=sum(recording.totals("otel_pgpool.long_holds").values()),
        created=sum(recording.totals("otel_pgpool.connections.created").values()),
        discarded=recording.totals("otel_pgpool.connections.discarded", "otel_pgpool.reason"),
        wait=Spread.of(seconds(attributes["otel_pgpool.wait_time"]) for attributes in recorded),
        hold=Spread.of(seconds(a["otel_pgpool.hold_time"]) for a in recorded if "otel_pgpool.hold_time" in a),
        slowest=tuple(
            _slow_checkout(span, waits.get(span.span_id), spans)
            for span in heapq.nlargest(slowest, checkouts, key=_slowness)
        ),
    )


def _slowness(span: Span) -> float:
    """Return the duration of a checkout in seconds, without a hold that was expected to be as long as it was."""
    is_expected = span.attributes.get("otel_pgpool.expected_hold") and not span.attributes.get("otel_pgpool.long_hold")
    return seconds(span.attributes["otel_pgpool.wait_time"]) if is_expected else (span.end - span.start) / NANOSECONDS


def _slow_checkout(span: Span, wait: Span | None, spans: dict[str, Span]) -> SlowCheckout:
    attributes = span.attributes
    flagged = next((event.attributes for event in span.events if event.name == "pool.long_hold"), {})
    return SlowCheckout(
        request=_request(span, spans) or span.name,
        thread=str(attributes.get("thread.name", "")),
        trace_id=span.trace_id,
        outcome=str(attributes.get("otel_pgpool.outcome", "")),
        wait=seconds(attributes["otel_pgpool.wait_time"]),
        hold=_optional(seconds, attributes.get("otel_pgpool.hold_time")),
        marks=tuple(
            Mark((event.time - span.start) / NANOSECONDS, event.name.removeprefix("pool."))
            for event in sorted(span.events, key=lambda event: event.time)
        ),
        waited_for=_waited_for(wait, spans) if wait else (),
        transaction=_optional(str, flagged.get("otel_pgpool.transaction.status")),
        checked_out_at=next(iter(str(flagged.get("otel_pgpool.checked_out_at", "")).splitlines()), None),
        database=last_answer(span, spans),
    )


def _waited_for(wait: Span, spans: dict[str, Span]) -> tuple[WaitedFor, ...]:
    """Return the holders that a checkout waited for, the longest hold first; their own spans supply the details."""
    found = []
    for link in wait.links:
        holder = spans.get(link.span_id)
        known = holder.attributes if holder else {}
        found.append(
            WaitedFor(
                connection_id=int(link.attributes.get("otel_pgpool.connection.id", 0)),
                held_then=seconds(link.attributes.get("otel_pgpool.held", 0.0)),
                held=_optional(seconds, known.get("otel_pgpool.hold_time")),
                request=_request(holder, spans) if holder else None,
                thread=_optional(str, known.get("thread.name")),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.held_then))


def _optional(read: Callable[[Any], T], value: object) -> T | None:
    return None if value is None else read(value)


def _request(span: Span, spans: dict[str, Span]) -> str | None:
    caller = spans.get(span.parent_id)
    return caller.name if caller else None


def _count(values: Iterable[str | None]) -> dict[str, int]:
    """Count the values, the most frequent first."""
    return dict(Counter(str(value) for value in values if value is not None).most_common())
