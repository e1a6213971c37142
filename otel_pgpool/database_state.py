"""The database's side of a long hold, as values: `DatabaseState` and `BlockingSession`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

MOST_BLOCKERS = 50
"""Number of sessions that are read as those that one session waits for: in a long queue, each waits for all others."""


@dataclass(frozen=True)
class BlockingSession:
    """A session that holds, or waits in front of, a lock that another session waits for.

    Attributes:
        pid: process id of the session; 0 for a prepared transaction, which has no session.
        application_name: the session's ``application_name``; empty if unknown.
        state: state as in ``pg_stat_activity``, such as ``idle in transaction``; empty if unknown.
        transaction_age: age of its transaction in seconds; None if unknown.
        trace_id: trace of its checkout in hexadecimal digits; None if unknown.
        checked_out_at: call site of its checkout, as ``file:line function``; None for a session of another process.
    """

    pid: int
    application_name: str = ""
    state: str = ""
    transaction_age: float | None = None
    trace_id: str | None = None
    checked_out_at: str | None = None

    def __str__(self) -> str:
        """Return a few words for messages and logs."""
        if not self.pid:
            return "a prepared transaction"
        details = [
            self.state,
            "" if self.transaction_age is None else f"transaction {self.transaction_age:.3f} s",
            f"application {self.application_name!r}" if self.application_name else "",
            f"checked out at {self.checked_out_at}" if self.checked_out_at else "",
            f"trace {self.trace_id}" if self.trace_id else "",
        ]
        known = ", ".join(filter(None, details))
        return f"pid {self.pid} ({known})" if known else f"pid {self.pid}"


@dataclass(frozen=True)
class DatabaseState:
    """PostgreSQL's description of the session of a hold. Durations are in seconds.

    Attributes:
        held: duration of the hold when the server answered.
        pid: process id of the session.
        state: state as in ``pg_stat_activity``; empty if the login may not see it.
        wait_event_type: type of the event that the session waits for, such as ``Lock`` or ``Client``; may be empty.
        wait_event: the event that the session waits for; may be empty.
        transaction_age: age of the transaction; None if there is none, or it is unknown.
        query_age: age of the statement that runs; None if none runs, or it is unknown.
        blocked_by: the sessions that the session waits for, first those that lead to the head of the chain.
        lock_mode: mode of the lock that it waits for; may be empty.
        lock_relation: table or index of that lock; may be empty.
        root_blocker: the session at the head of the chain, which waits for no lock; None if there is none.
    """

    held: float
    pid: int
    state: str = ""
    wait_event_type: str = ""
    wait_event: str = ""
    transaction_age: float | None = None
    query_age: float | None = None
    blocked_by: tuple[BlockingSession, ...] = ()
    lock_mode: str = ""
    lock_relation: str = ""
    root_blocker: BlockingSession | None = None

    def __str__(self) -> str:
        """Return one line for messages and logs."""
        return describe(self)


def describe(state: DatabaseState, described: Collection[int] = ()) -> str:
    """Return a state as one line without ``;``, which separates the lines of a message in a log.

    Args:
        state: the state.
        described: process ids of sessions that the message describes elsewhere, so that their numbers are enough.
    """
    words = [state.state or "state unknown"]
    if state.transaction_age is not None:
        words.append(f"transaction {state.transaction_age:.3f} s")
    if state.query_age is not None:
        words.append(f"statement {state.query_age:.3f} s")
    if state.blocked_by:
        words += _lock_wait(state, described)
    elif state.wait_event_type == "Client":
        words.append("waits for the client")
    elif state.wait_event:
        words.append(f"waits for {state.wait_event_type} {state.wait_event}")
    return ", ".join(words)


def _lock_wait(state: DatabaseState, described: Collection[int]) -> list[str]:
    """Return in words which lock a session waits for: the head of the chain, one blocker, the number of the others."""

    def name(session: BlockingSession) -> str:
        return f"pid {session.pid}" if session.pid and session.pid in described else str(session)

    lock = f"waits for {state.lock_mode or 'a lock'}" + (f" on {state.lock_relation}" if state.lock_relation else "")
    first, root = state.blocked_by[0], state.root_blocker
    if root is None or root in state.blocked_by:
        words = [f"{lock} of {name(root or first)}"]
    else:
        words = [lock, f"head of the chain: {name(root)}", f"direct blocker: {name(first)}"]
    more = len(state.blocked_by) - 1
    if more:
        words.append(f"and {'at least ' if more + 1 >= MOST_BLOCKERS else ''}{more} more ahead of it")
    return words
