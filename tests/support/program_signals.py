"""What a program has told a receiver: the newest of its metrics, its records, and the traces of a shop's requests."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.otlp_views import LogRecord, MetricPoint, Span
    from tests.support.receivers import HttpReceiver

POOL = "db.client.connection.pool.name"
COUNT = "db.client.connection.count"
QUERIES = ["insert", "update"]


def points_of(receiver: HttpReceiver, name: str, *attributes: str) -> list[MetricPoint]:
    """Return a metric's points with these values of attributes, apart from the pool's name, in order of time."""
    points = [
        point
        for point in receiver.metrics
        if point.name == name and {*attributes} == {value for key, value in point.attributes.items() if key != POOL}
    ]
    return sorted(points, key=lambda point: point.time)


def last(receiver: HttpReceiver, name: str, *attributes: str) -> float:
    """Return the newest value of a program with one process; 0 if there is none."""
    points = points_of(receiver, name, *attributes)
    return (points[-1].value or 0) if points else 0


def logs(receiver: HttpReceiver, event: str) -> list[LogRecord]:
    return [record for record in receiver.logs if record.attributes.get("otel_pgpool.event") == event]


class Answer(NamedTuple):
    """The shop's, to a request."""

    trace_id: str
    worker: int
    backend: int


def ask_shop(port: int, what: str, number: int) -> Answer:
    """For a cart or an order, in a trace of its own."""
    trace_id = f"{number:032x}"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{what}/{number}",
        method="POST",
        headers={"traceparent": f"00-{trace_id}-{number:016x}-01"},
    )
    with urllib.request.urlopen(request, timeout=40) as response:  # noqa: S310 - the program's
        return Answer(trace_id, **json.load(response))


def traces_of(receiver: HttpReceiver, answers: Iterable[Answer]) -> dict[str, list[Span]]:
    """Each request's trace, complete."""

    def traces() -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {answer.trace_id: [] for answer in answers}
        for span in receiver.spans:
            found.get(span.trace_id, []).append(span)
        return found

    receiver.wait_for(lambda _: all({"SERVER"} <= {span.kind for span in trace} for trace in traces().values()))
    return traces()


def assert_traced(trace: list[Span], answer: Answer) -> Span:
    """Check that an order's trace has the request's span, its checkout, its queries, and maybe a connect."""
    (request,) = (span for span in trace if span.kind == "SERVER")
    (checkout,) = (span for span in trace if span.name == "pool.checkout")
    connects = [span for span in trace if span.name == "pool.connect"]
    queries = [span for span in trace if span not in [request, checkout, *connects]]
    assert checkout.parent_span_id == request.span_id
    assert checkout.attributes["otel_pgpool.connection.pid"] == answer.backend
    assert checkout.attributes["otel_pgpool.outcome"] == "released"
    assert checkout.attributes["otel_pgpool.path"] == ("new" if connects else "idle")
    assert [span.parent_span_id for span in connects] == [checkout.span_id] * len(connects)
    assert sorted(span.name for span in queries) == QUERIES
    assert {span.parent_span_id for span in queries} == {request.span_id}
    apart = [(span.name, span.start - checkout.start, checkout.end - span.end) for span in queries]
    assert all(before >= 0 and after >= 0 for _name, before, after in apart), apart  # in nanoseconds
    return request
