"""The match between the sessions that a server has listed and the holds of this process."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.pool import registry
from otel_pgpool.pool.checkout import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import PoolHolds, Server
    from otel_pgpool.pool.session_query import Answer, Session

CLOCK_TOLERANCE = 0.5
"""Seconds by which the server's clock may have been changed since a session began."""

ANSWERS_WITHIN = 2.0
"""Seconds that may pass between the moment when the server is asked, and the moment when it reads its clock."""


class Place(NamedTuple):
    """The server that has answered, as the monitor knows it."""

    server: Server
    asked: float
    """When it was asked, as a reading of the clock."""
    is_proxy: bool = False
    """Whether a proxy such as PgBouncer shares the sessions, so that the client does not know their process ids."""
    is_direct: bool = False
    """Whether the server sees the ports of this process's sockets: nothing between them translates addresses."""


class SessionMatch:
    """The sessions of an answer and the holds of this process, each found by the other.

    Behind a proxy a session is found by its ``application_name``, otherwise by its process id. A process id alone is no
    proof: a load balancer may have led the monitor to another server than the hold's, and the system may have given the
    number to a later session.

    Args:
        answer: the sessions.
        place: the server.
        pools: the holds of each pool of this process.
    """

    def __init__(self, answer: Answer, place: Place, pools: Iterable[PoolHolds]) -> None:
        self._answer = answer
        self._place = place
        self._holds_by_pid: defaultdict[int, list[tuple[Checkout, PoolHolds]]] = defaultdict(list)
        self._holds_by_name: dict[str, Checkout] = {}
        for pool in pools:
            for hold in pool.holds:
                if hold.slot.pid:
                    self._holds_by_pid[hold.slot.pid].append((hold, pool))
                if name := name_of(hold):
                    self._holds_by_name[name] = hold
        self._busy: defaultdict[str, list[Session]] = defaultdict(list)  # the sessions that are not idle, by name
        self._idle: dict[str, Session] = {}
        self._found: dict[int, Checkout | None] = {}
        for session in answer.sessions.values():
            if session.trace_id and session.state == "idle":
                self._idle[session.application_name] = session
            elif session.trace_id:
                self._busy[session.application_name].append(session)

    def session_of(self, hold: Checkout) -> Session | None:
        """Return the session of a hold on this server; None if the server lists none that is certainly the hold's."""
        if self._place.is_proxy:
            name = name_of(hold)
            return self._only_busy(name) if name in self._busy else self._idle.get(name)
        session = self._answer.sessions.get(hold.slot.pid) if hold.slot.pid else None
        return session if session is not None and self._fits(session, hold, is_here=True) else None

    def hold_of(self, pid: int) -> Checkout | None:
        """Return the checkout of this process that holds a session, by process id; None if there is none."""
        if pid not in self._found:
            self._found[pid] = self._find_hold(pid)
        return self._found[pid]

    def _find_hold(self, pid: int) -> Checkout | None:
        session = self._answer.sessions.get(pid)
        if session is None:
            return None
        if not self._place.is_proxy:
            for hold, pool in self._holds_by_pid.get(pid, ()):
                if self._fits(session, hold, is_here=pool.server_of(hold.slot) == self._place.server):
                    return hold
        is_named = self._only_busy(session.application_name) is session
        return self._holds_by_name.get(session.application_name) if is_named else None

    def _only_busy(self, name: str) -> Session | None:
        """Return the session with a name that is not idle; None if there is none, or more than one.

        A proxy leaves the name of its last client on an idle session.
        """
        sessions = self._busy.get(name, ())
        return sessions[0] if len(sessions) == 1 else None

    def _fits(self, session: Session, hold: Checkout, *, is_here: bool) -> bool:
        """Return whether a session with the process id of a hold is the hold's.

        The port of the connection proves or refutes it, if the server sees that port. Otherwise the ages have to agree.

        Args:
            session: the session.
            hold: the hold.
            is_here: whether the hold's pool gives its server the same name as the monitor's.
        """
        local, seen = hold.slot.local_port, session.client_port
        if local and seen > 0 and (local == seen or self._place.is_direct):
            return local == seen
        if session.session_age is None:  # not shown to the monitor's login
            return is_here
        is_by_socket = not local and seen < 0 and hold.slot.opened < NEVER
        return (is_here or is_by_socket) and self._has_age(session.session_age, hold)

    def _has_age(self, age: float, hold: Checkout) -> bool:
        """Return whether a session of this age may be the hold's connection."""
        asked, slot = self._place.asked, hold.slot
        if slot.opened == NEVER:  # an instrumented pool's connection, which may be older than its record
            return age >= asked - hold.acquired - CLOCK_TOLERANCE
        youngest, oldest = asked - slot.opened, asked - slot.connect_began + ANSWERS_WITHIN
        return youngest - CLOCK_TOLERANCE <= age <= oldest + CLOCK_TOLERANCE


def name_of(checkout: Checkout) -> str:
    """Return the name that the session of a checkout has got on the server; empty if it keeps its own."""
    return checkout.trace_name or ""


def match(answer: Answer, place: Place) -> SessionMatch:
    """Match an answer with the holds of all pools of this process."""
    return SessionMatch(answer, place, registry.all_holds())
