"""The monitor of one server: while holds are long, it asks the server what it says of their sessions."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from otel_pgpool.pool.session_query import Answer, read_answer, statement_for
from otel_pgpool.pool.wait_graph import WaitGraph
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_failure, log_safely
from otel_pgpool.runtime.fork import delay_forks_until_this_thread_ends, keep_from_forking
from otel_pgpool.runtime.wakeup import Wakeup, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.pool.checkout import Checkout

QUERY_INTERVAL = 1.0
"""Minimum number of seconds between two queries of a server."""

CLOSE_AFTER = 60.0
"""Seconds without a long hold after which the monitoring connection is closed."""

GATHER = 0.05
"""Seconds between the first long hold and the query, so that holds that become long together are one query."""

AT_ONCE = 1.0
"""Seconds within which a query fails on a connection that the server has closed."""

RETRY_AFTER = 10.0
"""Seconds between a failed query and the next one."""

Server = tuple[str, "int | None"]
"""Host, or folder of a Unix socket, and port."""


class MonitorConnection(Protocol):
    """A monitoring connection of some driver."""

    pid: int
    """Process id of the session as the client knows it; 0 if the driver does not tell."""

    def query(self, statement: str) -> str:
        """Return the one value of a statement, run in a read-only transaction with a time limit.

        Raises:
            Exception: the server did not answer in time, or refused the statement.
        """

    def close(self) -> None:
        """Close the connection. Must not raise."""

    def close_inherited(self) -> None:
        """Close the socket in a forked child, without a message to the server."""


class MonitorSource(Protocol):
    """The way to monitoring connections of one pool."""

    def server_of(self, conn: Any) -> Server:
        """Return the server of one of the pool's connections, or of the pool if that is None."""

    def open(self, server: Server) -> MonitorConnection:
        """Open a monitoring connection within a few seconds.

        Raises:
            Exception: the connection cannot be opened.
        """

    def error_text(self, error: BaseException) -> str:
        """Return the text of an error, without secrets or SQL."""


class MonitoredPool(NamedTuple):
    """A pool as its monitor sees it."""

    name: str
    source: MonitorSource
    report: Callable[[Checkout, DatabaseState, Sequence[Checkout]], None]
    """Called with a hold, its state, and the checkouts of this process that block it; never raises."""


class WatchedHold:
    """A long hold that is in progress."""

    __slots__ = ("checkout", "due_age", "pool")

    def __init__(self, pool: MonitoredPool, checkout: Checkout) -> None:
        self.pool = pool
        self.checkout = checkout
        self.due_age = max(0.0, checkout.flagged_at - checkout.acquired)
        """Age in seconds at which the state of the hold is reported next."""

    @property
    def due(self) -> float:
        """When the state is reported next, as a reading of the clock."""
        return self.checkout.acquired + self.due_age

    @property
    def traceparent(self) -> str:
        """The traceparent that the session may have as ``application_name``; empty if there is none."""
        return traceparent_of(self.checkout)

    def postpone(self, now: float) -> None:
        """Postpone the next report until the hold's age has doubled."""
        age = now - self.checkout.acquired
        self.due_age = max(self.due_age, age / 2, MIN_PAUSE) * 2
        while self.due_age <= age:
            self.due_age *= 2


MIN_PAUSE = 0.01
"""Minimum number of seconds between two steps of a monitor."""


def traceparent_of(checkout: Checkout) -> str:
    """Return the traceparent of a checkout's span; empty if there is none."""
    return getattr(checkout.observer_data, "traceparent", None) or ""


class Monitor:
    """The monitor of one server, with a thread and a connection of its own, both made when there is a long hold.

    Nothing waits for a monitor: a server that refuses, freezes or is full costs the answer and nothing else.

    Args:
        server: the server.
        find_holds: function that returns the holds of this process on a server, by process id and by traceparent.
    """

    def __init__(
        self, server: Server, find_holds: Callable[[Server], tuple[dict[int, Checkout], dict[str, Checkout]]]
    ) -> None:
        self._server = server
        self._find_holds = find_holds
        self._lock = threading.Lock()  # guards the next four attributes; nothing under it blocks
        self._holds: list[WatchedHold] = []
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._next_query = 0.0
        self._wakeup = Wakeup()
        # What follows belongs to the thread.
        self._conn: MonitorConnection | None = None
        self._last_work = 0.0
        self._is_proxy = False
        self._told: set[str] = set()

    def watch(self, pool: MonitoredPool, holds: Iterable[Checkout]) -> None:
        """Watch long holds until their end. Called by background threads, for which this takes some 100 us."""
        watched, thread = [WatchedHold(pool, hold) for hold in holds], None
        with self._lock:
            if not self._holds:
                self._next_query = max(self._next_query, monotonic() + GATHER)
            self._holds = [*self._holds, *watched]
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="otel_pgpool-monitor", daemon=True)
                self._thread = thread
        if thread is None:
            self._wakeup.set()
            return
        try:
            start_thread(thread)
        except RuntimeError:  # no thread can be started: the next long hold tries again
            with self._lock:
                self._thread = None
                self._holds = []

    def stop(self, seconds: float) -> None:
        """End the thread and close the connection, and wait up to ``seconds`` for that."""
        with self._lock:
            self._is_stopped, thread = True, self._thread
        self._wakeup.set()
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(seconds)

    def abandon(self) -> None:
        """Drop the connection in a forked child, which must not use the parent's."""
        if self._conn is not None:
            self._conn.close_inherited()

    def _run(self) -> None:
        seconds: float | None = 0.0
        try:
            self._wakeup.rebuild_if_patched()
            while seconds is not None:
                self._wakeup.wait(seconds)
                try:
                    seconds = self.run_once()
                except Exception as error:  # noqa: BLE001 - no error may end the thread
                    self._log_once(error)
                    seconds = QUERY_INTERVAL
        finally:
            delay_forks_until_this_thread_ends()

    def run_once(self) -> float | None:
        """Ask the server if that is due; return the seconds until the next pass, or None to end the thread."""
        now = monotonic()
        with self._lock:
            holds = self._holds = [hold for hold in self._holds if hold.checkout.is_held]
            if holds:
                self._last_work = now
            is_over = self._is_stopped or now >= self._last_work + CLOSE_AFTER
            if is_over:
                self._thread = None  # so that `watch` starts another thread
        if is_over:
            self._drop_connection()
            return None
        if not holds:
            return self._last_work + CLOSE_AFTER - now
        if now >= self._next_query and any(hold.due <= now for hold in holds):
            self._ask(holds, now)
        due = max(min(hold.due for hold in holds), self._next_query) - monotonic()
        return min(QUERY_INTERVAL, max(MIN_PAUSE, due))  # within the interval, to drop the holds that have ended

    def _ask(self, holds: list[WatchedHold], now: float) -> None:
        """Ask the server for the sessions of all long holds, and report those that are due."""
        self._next_query = now + QUERY_INTERVAL
        first = min(holds, key=lambda hold: hold.due)
        try:
            answer = self._query(holds, first.pool.source)
        except Exception as error:  # noqa: BLE001 - a driver or a callback of the program may raise anything
            self._next_query = monotonic() + RETRY_AFTER
            self._drop_connection()
            self._tell("failed", first.pool, f"the server does not answer: {first.pool.source.error_text(error)}")
            return
        if answer is not None:
            self._told.discard("failed")
            with keep_from_forking():
                self._report(holds, answer)
        elif self._is_proxy:
            self._tell("proxy", first.pool, BEHIND_PROXY)
        for hold in holds:
            if hold.due <= now:
                hold.postpone(monotonic())

    def _query(self, holds: list[WatchedHold], source: MonitorSource) -> Answer | None:
        """Return the server's answer; None if the sessions cannot be found behind a proxy."""
        names = [hold.traceparent for hold in holds if hold.traceparent]
        if self._is_proxy and not names:
            return None
        pids = [] if self._is_proxy else [hold.checkout.slot.pid for hold in holds]
        answer = read_answer(self._value_of(statement_for(pids, names), source))
        self._is_proxy = self._conn is not None and self._conn.pid not in (0, answer.backend)
        return answer if names or not self._is_proxy else None

    def _value_of(self, statement: str, source: MonitorSource) -> str:
        """Run a statement, on a new connection if there is none or the server has closed the one that was idle."""
        if self._conn is not None:
            began = monotonic()
            try:
                return self._conn.query(statement)
            except Exception:
                self._drop_connection()
                if monotonic() - began >= AT_ONCE:  # the server is frozen, and would freeze the next connection too
                    raise
        self._conn = source.open(self._server)
        return self._conn.query(statement)

    def _report(self, holds: list[WatchedHold], answer: Answer) -> None:
        by_pid, by_name = self._find_holds(self._server)
        graph = WaitGraph(answer.sessions, {} if self._is_proxy else by_pid, by_name)
        sessions = {session.application_name: session for session in answer.sessions.values()}
        for hold in holds:
            checkout, now = hold.checkout, monotonic()
            session = sessions.get(hold.traceparent) if hold.traceparent else None
            if session is None and not self._is_proxy:
                session = answer.sessions.get(checkout.slot.pid)
            if session is None or not checkout.is_held:
                continue
            state = graph.state_of(session, now - checkout.acquired)
            checkout.database_state = state
            if hold.due <= now:
                hold.pool.report(checkout, state, graph.blockers_of(session))

    def _drop_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _log_once(self, error: Exception) -> None:
        """Log an error of the monitor itself, once."""
        if "error" not in self._told:
            self._told.add("error")
            log_failure("a monitor failed; the database state of long holds may be missing", error)

    def _tell(self, what: str, pool: MonitoredPool, reason: str) -> None:
        """Log once why the state of long holds is unknown."""
        if what in self._told:
            return
        self._told.add(what)
        text = "pool %s: the database state of long holds is unknown: %s"
        log_safely(logging.WARNING, text, pool.name, reason)


BEHIND_PROXY = (
    "a proxy such as PgBouncer hides the sessions; OTEL_PGPOOL_APPLICATION_NAME=trace shows those of sampled checkouts"
)
