"""PostgreSQL's last description of the session of a recorded checkout, and of the sessions that blocked it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from otel_pgpool.cli.recording import seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.cli.recording import Span

MAX_BLOCKERS = 50
"""Maximum number of blockers of one checkout; the pool reports no more."""


@dataclass(frozen=True)
class Blocker:
    """A session for which a checkout waited in the database. Texts are empty if they are unknown."""

    pid: int
    """Process id of its backend; 0 for a prepared transaction."""
    state: str = ""
    application: str = ""
    checked_out_at: str = ""
    trace_id: str = ""
    request: str = ""
    """Name of the span of its caller."""
    thread: str = ""


@dataclass(frozen=True)
class Answer:
    """PostgreSQL's description of a session. Texts are empty if they are unknown; times are in seconds."""

    held: float
    """Duration of the hold when PostgreSQL answered."""
    state: str
    wait_event_type: str = ""
    wait_event: str = ""
    lock_mode: str = ""
    lock_relation: str = ""
    blocked_by: tuple[Blocker, ...] = ()
    root: Blocker | None = None
    """The head of the chain."""


def last_answer(span: Span, spans: Mapping[str, Span]) -> Answer | None:
    """Return the last answer about a checkout; None if there was none.

    Raises:
        TypeError, ValueError: a recorded value is of a wrong type or out of range.
    """
    events = [event for event in span.events if event.name == "pool.database_state"]
    if not events:
        return None
    told = max(events, key=lambda event: event.time).attributes
    known = _blocking_checkouts(span, spans)
    count = len(_list(told, "postgresql.blocking.pids"))
    blockers = tuple(_blocker(told, index, known, spans) for index in range(count))
    return Answer(
        held=seconds(told.get("otel_pgpool.held")),
        state=_text(told, "postgresql.state"),
        wait_event_type=_text(told, "postgresql.wait_event_type"),
        wait_event=_text(told, "postgresql.wait_event"),
        lock_mode=_text(told, "postgresql.blocking.lock.mode"),
        lock_relation=_text(told, "postgresql.blocking.lock.relation"),
        blocked_by=blockers,
        root=_root(told, blockers, known, spans),
    )


def _blocking_checkouts(span: Span, spans: Mapping[str, Span]) -> dict[object, Span]:
    """Return the recorded checkouts that blocked a checkout, by process id."""
    linked = [link.span_id for link in span.links if link.attributes.get("otel_pgpool.relation") == "blocked_by"]
    found = [spans[span_id] for span_id in linked if span_id in spans]
    return {blocker.attributes.get("otel_pgpool.connection.pid"): blocker for blocker in found}


def _blocker(told: Mapping[str, Any], index: int, known: Mapping[object, Span], spans: Mapping[str, Span]) -> Blocker:
    def text(name: str) -> str:
        texts = _list(told, f"otel_pgpool.blocking.{name}")
        return str(texts[index]) if index < len(texts) else ""

    pid = int(_list(told, "postgresql.blocking.pids")[index])
    return Blocker(
        pid,
        text("states"),
        text("applications"),
        text("checked_out_at"),
        text("traces"),
        *_caller(known.get(pid), spans),
    )


def _root(
    told: Mapping[str, Any], blockers: tuple[Blocker, ...], known: Mapping[object, Span], spans: Mapping[str, Span]
) -> Blocker | None:
    """Return the head of the chain, which may be one of the blockers; None if there is none."""
    pid = told.get("otel_pgpool.blocking.root.pid")
    if pid is None:
        return None
    same = [blocker for blocker in blockers if blocker.pid == pid]
    if same:
        return same[0]
    return Blocker(
        int(pid),
        _text(told, "otel_pgpool.blocking.root.state"),
        _text(told, "otel_pgpool.blocking.root.application"),
        _text(told, "otel_pgpool.blocking.root.checked_out_at"),
        _text(told, "otel_pgpool.blocking.root.trace"),
        *_caller(known.get(pid), spans),
    )


def _caller(checkout: Span | None, spans: Mapping[str, Span]) -> tuple[str, str]:
    """Return the request and the thread of a checkout."""
    if checkout is None:
        return "", ""
    caller = spans.get(checkout.parent_id)
    return "" if caller is None else caller.name, str(checkout.attributes.get("thread.name", ""))


def _text(told: Mapping[str, Any], name: str) -> str:
    return str(told.get(name, ""))


def _list(told: Mapping[str, Any], name: str) -> list[Any]:
    found = told.get(name, [])
    if not isinstance(found, list):
        raise TypeError("an attribute is no list")
    return found[:MAX_BLOCKERS]
