"""A forked child's telemetry is its own: levels, totals, spans, limits."""

from __future__ import annotations

import ast
import threading
from contextlib import ExitStack
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace

from otel_pgpool import PoolTimeout
from tests.support.processes import in_child
from tests.support.telemetry import NAME, Signals, assert_exactly, served, until

if TYPE_CHECKING:
    from collections.abc import Callable


def is_connecting() -> bool:
    return any(thread.name == "otel_pgpool-connector" for thread in threading.enumerate())


def ask_child(work: Callable[[], Any]) -> Any:
    """Return the result of ``work`` in a forked child; an exception there fails the test here.

    The SDK's metrics have locks that a fork does not free: no other thread may be recording at that moment.
    """
    until(lambda: not is_connecting())
    return ast.literal_eval(in_child(work))


def figures(signals: Signals) -> dict[str, Any]:
    names = ("count", "max", "idle.min", "idle.max", "pending_requests", "timeouts")
    own = ("utilization", "oldest_hold", "checkouts", "retries", "long_holds", "connections.created")
    return {
        **{name: signals.values(f"db.client.connection.{name}") for name in names},
        **{name: signals.values(f"otel_pgpool.{name}") for name in own},
    }


def test_levels_and_totals_are_the_childs_own(signals: Signals, dsn: str) -> None:
    """What the parent holds, waited for and has done is not counted in the child, nor the other way round."""
    with signals.pool(1, 2, dsn, long_hold=0.02) as pool, ExitStack() as stack:
        stack.enter_context(pool.connection())
        stack.enter_context(pool.connection())
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        until(lambda: len(signals.logged("long_hold")) == 2)

        def child() -> tuple[dict[str, Any], dict[str, Any]]:
            fresh = figures(signals)
            with pool.connection():
                during = figures(signals)
            pool.close(0)
            return fresh, during

        fresh, during = ask_child(child)
        zero = {(): 0}
        assert fresh == {
            "count": {("used",): 0, ("idle",): 0},
            "max": {(): 2},
            "idle.min": {(): 1},
            "idle.max": {(): 2},
            "pending_requests": zero,
            "timeouts": zero,
            "utilization": zero,
            "oldest_hold": zero,
            "checkouts": {("idle",): 0, ("queued",): 0, ("new",): 0},
            "retries": zero,
            "long_holds": zero,
            "connections.created": zero,
        }
        assert during["count"] == {("used",): 1, ("idle",): 0}
        assert during["utilization"] == {(): 0.5}
        assert during["checkouts"] == {("idle",): 0, ("queued",): 0, ("new",): 1}
        assert during["connections.created"] == {(): 1}
        mine = figures(signals)
        assert mine["count"] == {("used",): 2, ("idle",): 0}
        assert mine["timeouts"] == {(): 1}
        assert mine["long_holds"] == {(): 2}


def test_no_span_is_ended_twice(signals: Signals, dsn: str) -> None:
    """A child that leaves the parent's block, or puts back the parent's connection, ends none of the parent's spans."""
    with signals.pool(2, 2, dsn) as pool:
        conn = pool.getconn()

        def child() -> tuple[int, int, bool]:
            pool.putconn(conn)
            block.__exit__(None, None, None)
            current = trace.get_current_span() is trace.INVALID_SPAN
            pool.close(0)
            return len(signals.spans.ended), len(signals.complaints.all), current

        block = pool.connection()
        block.__enter__()
        before = len(signals.spans.ended)
        ended, complaints, left = ask_child(child)
        assert (ended, complaints, left) == (before, 0, True)
        assert len(signals.live()) == 2
        block.__exit__(None, None, None)
        pool.putconn(conn)
        spans = signals.named("pool.checkout")
        assert len(spans) == 2
        assert_exactly(spans[0].attributes, served(dsn))
        assert_exactly(spans[1].attributes, served(dsn, outcome="released"))


def test_the_child_has_spans_of_its_own(signals: Signals, dsn: str) -> None:
    """A checkout in the child is a child of the span that was current at the fork, with its own ids and its own pid."""
    with signals.pool(1, 1, dsn) as pool, signals.tracer.start_as_current_span("order") as order:

        def child() -> tuple[str, dict[str, Any], bool]:
            with pool.connection() as conn:
                pid = conn.get_backend_pid()
            pool.close(0)
            span = signals.checkout()
            attributes = dict(span.attributes or {})
            assert span.parent is not None
            mine = attributes["otel_pgpool.connection.pid"] == pid
            return str(span.parent.span_id), attributes, mine

        parent, attributes, mine = ask_child(child)
        assert parent == str(order.get_span_context().span_id)
        assert mine
        assert_exactly(attributes, served(dsn, path="new", **{"connection.id": 1}))
        assert signals.named("pool.checkout") == []


def test_long_holds_of_the_parent_are_told_by_the_parent(signals: Signals, dsn: str) -> None:
    """A hold that began before the fork is flagged once, by the parent."""
    with signals.pool(1, 1, dsn, long_hold=0.3) as pool:
        conn = pool.getconn()

        def child() -> int:
            signals.records.all.clear()  # if the fork was late
            sleep(0.4)  # past the threshold
            pool.close(0)
            return len(signals.logged("long_hold"))

        assert ask_child(child) == 0
        until(lambda: signals.logged("long_hold"))
        pool.putconn(conn)
        assert len(signals.logged("long_hold")) == 1


def test_a_forked_pool_is_reported_under_its_name(signals: Signals, dsn: str) -> None:
    """The child's pool keeps its name, once."""
    with signals.pool(1, 1, dsn) as pool:

        def child() -> tuple[str, int]:
            points = len(signals.points("db.client.connection.max"))
            pool.close(0)
            return pool.name, points

        assert ask_child(child) == (NAME, 1)
