"""The attributes of the database's side of a hold, for the event of its span and for its log record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.names import DIGITS

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from otel_pgpool.database_state import BlockingSession, DatabaseState


def database_state_attributes(state: DatabaseState) -> dict[str, AttributeValue]:
    """Return the attributes of what the server says of a session; those that are unknown are left out."""
    attributes: dict[str, AttributeValue] = {
        names.ATTR_HELD: round(state.held, DIGITS),
        names.ATTR_CONNECTION_PID: state.pid,
    }
    texts = {
        names.ATTR_STATE: state.state,
        names.ATTR_WAIT_EVENT_TYPE: state.wait_event_type,
        names.ATTR_WAIT_EVENT: state.wait_event,
    }
    attributes |= {name: text for name, text in texts.items() if text}
    ages = {names.ATTR_TRANSACTION_AGE: state.transaction_age, names.ATTR_QUERY_AGE: state.query_age}
    attributes |= {name: round(age, DIGITS) for name, age in ages.items() if age is not None}
    return attributes | _blocking_attributes(state) if state.blocked_by else attributes


def _blocking_attributes(state: DatabaseState) -> dict[str, AttributeValue]:
    """Return the attributes of the sessions that a session waits for, in one order."""
    sessions: tuple[BlockingSession, ...] = state.blocked_by
    attributes: dict[str, AttributeValue] = {
        names.ATTR_BLOCKING_PIDS: [session.pid for session in sessions],
        names.ATTR_BLOCKING_TRACES: [session.trace_id or "" for session in sessions],
        names.ATTR_BLOCKING_CHECKED_OUT_AT: [session.checked_out_at or "" for session in sessions],
        names.ATTR_BLOCKING_APPLICATIONS: [session.application_name for session in sessions],
        names.ATTR_BLOCKING_STATES: [session.state for session in sessions],
    }
    if state.lock_mode:
        attributes[names.ATTR_BLOCKING_LOCK_MODE] = state.lock_mode
    if state.lock_relation:
        attributes[names.ATTR_BLOCKING_LOCK_RELATION] = state.lock_relation
    return attributes if state.root_blocker is None else attributes | _root_attributes(state.root_blocker)


def _root_attributes(root: BlockingSession) -> dict[str, AttributeValue]:
    """Return the attributes of the session at the head of the chain; those that are unknown are left out."""
    texts = {
        names.ATTR_BLOCKING_ROOT_TRACE: root.trace_id,
        names.ATTR_BLOCKING_ROOT_CHECKED_OUT_AT: root.checked_out_at,
        names.ATTR_BLOCKING_ROOT_APPLICATION: root.application_name,
        names.ATTR_BLOCKING_ROOT_STATE: root.state,
    }
    return {names.ATTR_BLOCKING_ROOT_PID: root.pid} | {name: text for name, text in texts.items() if text}
