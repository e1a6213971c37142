"""The wait graph of a server: from the sessions of an answer to the state of each hold, and to those that block it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.database_state import BlockingSession, DatabaseState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.session_query import Session


class WaitGraph(NamedTuple):
    """The sessions of one server, and the checkouts of this process that hold some of them."""

    sessions: Mapping[int, Session]
    """The sessions by process id."""
    hold_of: Callable[[int], Checkout | None]
    """Function that returns the checkout that holds a session, given by its process id; None if there is none."""

    def state_of(self, session: Session, held: float) -> DatabaseState:
        """Return the state of a session whose hold has lasted for ``held`` seconds."""
        root = self.root_of(session)
        return DatabaseState(
            held=held,
            pid=session.pid,
            state=session.state,
            wait_event_type=session.wait_event_type,
            wait_event=session.wait_event,
            transaction_age=session.transaction_age,
            query_age=session.query_age,
            blocked_by=tuple(map(self._describe, self._nearest_first(session.blockers, root))),
            lock_mode=session.lock_mode,
            lock_relation=session.lock_relation,
            root_blocker=None if root is None else self._describe(root),
        )

    def blockers_of(self, session: Session) -> list[Checkout]:
        """Return the checkouts of this process that block a session, that at the head of the chain included."""
        root = self.root_of(session)
        pids = [*session.blockers, *(() if root is None else (root,))]
        return list(dict.fromkeys(hold for pid in pids if (hold := self.hold_of(pid)) is not None))

    def root_of(self, session: Session) -> int | None:
        """Return the process id at the head of the chain; None if nothing blocks the session, or all wait in a cycle.

        If several chains have a head, the nearest head is returned.
        """
        seen, waiting = {session.pid}, list(session.blockers)
        for pid in waiting:  # grows during the loop
            if pid in seen:
                continue
            seen.add(pid)
            blocker = self.sessions.get(pid)
            if blocker is None or not blocker.blockers:
                return pid
            waiting += blocker.blockers
        return None

    def _nearest_first(self, blockers: Sequence[int], root: int | None) -> list[int]:
        """Return blockers with those first that are the head of the chain, or wait for it directly."""

        def is_far(pid: int) -> bool:
            blocker = self.sessions.get(pid)
            return pid != root and (blocker is None or root not in blocker.blockers)

        return sorted(blockers, key=is_far)

    def _describe(self, pid: int) -> BlockingSession:
        session, hold = self.sessions.get(pid), self.hold_of(pid)
        trace_id: str | None = None if hold is None else getattr(hold.observer_data, "trace_id", None)
        if session is None:
            return BlockingSession(pid, trace_id=trace_id, checked_out_at=None if hold is None else hold.where)
        return BlockingSession(
            pid,
            session.application_name,
            session.state,
            session.transaction_age,
            trace_id or session.trace_id or None,
            None if hold is None else hold.where,
        )
