"""The monitor of one server: while holds are long, it asks the server what it says of their sessions."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from otel_pgpool.pool.session_match import Place, match, traceparent_of
from otel_pgpool.pool.session_query import Answer, read_answer, statement_for
from otel_pgpool.pool.wait_graph import WaitGraph
from otel_pgpool.pool.watched_hold import WatchedHold
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_failure, log_safely
from otel_pgpool.runtime.fork import delay_forks_until_this_thread_ends, keep_from_forking
from otel_pgpool.runtime.wakeup import Wakeup, start_thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import MonitorConnection, MonitoredPool, MonitorSource, Server

QUERY_INTERVAL = 1.0
"""Minimum number of seconds between two queries of a server."""

QUERY_SHARE = 0.1
"""Maximum share of the time in which a server works on queries: after a slow query, the interval is longer."""

CLOSE_AFTER = 60.0
"""Seconds without a long hold after which the monitoring connection is closed."""

GATHER = 0.05
"""Seconds between the first long hold and the query, so that holds that become long together are one query."""

AT_ONCE = 1.0
"""Seconds within which a query fails on a connection that the server has closed, or a server refuses a connection."""

RETRY_AFTER = 10.0
"""Seconds between a failed query and the next one."""

MIN_PAUSE = 0.01
"""Minimum number of seconds between two steps of a monitor."""

BEHIND_PROXY = (
    "a proxy such as PgBouncer hides the sessions; OTEL_PGPOOL_APPLICATION_NAME=trace shows those of sampled checkouts"
)

NO_SESSION = "the server that answered has no such session: it has ended, or a load balancer leads to several servers"


class Monitor:
    """The monitor of one server, with a thread and a connection of its own, both made when there is a long hold.

    Nothing waits for a monitor: a server that refuses, freezes or is full costs the answer and nothing else.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()  # guards the next four attributes; nothing under it blocks
        self._holds: list[WatchedHold] = []
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._next_query = 0.0
        self._wakeup = Wakeup()
        # What follows belongs to the thread.
        self._conn: MonitorConnection | None = None
        self._last_work = 0.0
        self._is_proxy: bool | None = None  # None: not known yet
        self._failing: set[str] = set()  # pools whose way to a connection has failed
        self._told: set[str] = set()  # what was logged, so that it is logged once

    def watch(self, pool: MonitoredPool, holds: Iterable[Checkout]) -> bool:
        """Watch long holds until their end. Called by background threads, for which this takes some 100 us.

        Returns:
            Whether they are watched; False if this monitor was stopped.
        """
        watched, thread = [WatchedHold(pool, hold) for hold in holds], None
        with self._lock:
            if self._is_stopped:
                return False
            if not self._holds:
                self._next_query = max(self._next_query, monotonic() + GATHER)
            self._holds = [*self._holds, *watched]
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="otel_pgpool-monitor", daemon=True)
                self._thread = thread
        if thread is None:
            self._wakeup.set()
            return True
        try:
            start_thread(thread)
        except RuntimeError:  # no thread can be started: the next long hold tries again
            with self._lock:
                self._thread = None
                self._holds = []
        return True

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
        self._wakeup.rebuild_if_patched()
        while seconds is not None:
            try:
                self._wakeup.wait(seconds)
                seconds = self.run_once()
            except BaseException as error:  # noqa: BLE001 - no error, not even an injected one, may end the thread
                self._log_once(error)
                seconds = QUERY_INTERVAL
        delay_forks_until_this_thread_ends()

    def run_once(self) -> float | None:
        """Ask the server if that is due; return the seconds until the next pass, or None to end the thread."""
        now = monotonic()
        with self._lock:
            holds = self._holds = [hold for hold in self._holds if not hold.is_over]
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
        due = [hold for hold in holds if hold.due <= now]
        if due and now >= self._next_query:
            self._ask(holds, due)
        pause = max(min(hold.due for hold in holds), self._next_query) - monotonic()
        return min(QUERY_INTERVAL, max(MIN_PAUSE, pause))  # within the interval, to drop the holds that have ended

    # The query

    def _ask(self, holds: list[WatchedHold], due: list[WatchedHold]) -> None:
        """Ask the server for the sessions of all long holds, and report those that are due."""
        names = [name for hold in holds if (name := traceparent_of(hold.checkout))]
        if self._is_proxy and not names:
            self._tell("proxy", due[0].pool, BEHIND_PROXY)
        else:
            began = monotonic()
            pids = [] if self._is_proxy else [hold.checkout.slot.pid for hold in holds]
            answer = self._query(statement_for(pids, [] if self._is_proxy is False else names), due)
            if answer is None:
                return
            with keep_from_forking():
                self._report(holds, due, answer, began)
        for hold in due:
            hold.postpone(monotonic())

    def _query(self, statement: str, due: list[WatchedHold]) -> Answer | None:
        """Return the server's answer; None if no pool has a way to it.

        The pools of the holds that are due are tried one after the other. A pool that takes more than a moment to fail
        is the last, and the others are tried first at the next query.
        """
        pools = {hold.pool.name: hold.pool for hold in due}
        failures: list[str] = []
        for pool in sorted(pools.values(), key=lambda pool: pool.name in self._failing):
            began = monotonic()
            try:
                answer = read_answer(self._value_of(statement, pool.source))
            except Exception as error:  # noqa: BLE001 - a driver or a callback of the program may raise anything
                self._drop_connection()
                self._failing.add(pool.name)
                failures.append(f"it could not be asked: {pool.source.error_text(error)}")
                if monotonic() - began >= AT_ONCE or self._is_stopped:
                    break
            else:
                self._failing.discard(pool.name)
                self._told.discard("failed")
                return answer
        are_all_failing = self._failing >= pools.keys()
        self._next_query = monotonic() + (RETRY_AFTER if are_all_failing else QUERY_INTERVAL)
        if are_all_failing:
            self._failing.clear()
            self._tell("failed", due[0].pool, failures[0])
        return None

    def _value_of(self, statement: str, source: MonitorSource) -> str:
        """Run a statement, on a new connection if there is none or the server has closed the one that was idle."""
        if self._conn is not None:
            began = monotonic()
            try:
                return self._run_statement(self._conn, statement)
            except Exception:
                self._drop_connection()
                if monotonic() - began >= AT_ONCE:  # the server is frozen, and would freeze the next connection too
                    raise
        self._conn = source.open(self._server)
        return self._run_statement(self._conn, statement)

    def _run_statement(self, conn: MonitorConnection, statement: str) -> str:
        began = monotonic()
        value = conn.query(statement)
        ended = monotonic()
        self._next_query = max(began + QUERY_INTERVAL, ended + (ended - began) / QUERY_SHARE)
        return value

    def _drop_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    # The answer

    def _report(self, holds: list[WatchedHold], due: list[WatchedHold], answer: Answer, asked: float) -> None:
        """Store the state of each hold, and report those that are due."""
        place = self._place_of(answer, asked)
        found = match(answer, place)
        graph = WaitGraph(answer.sessions, found.hold_of)
        for hold in holds:
            checkout, session = hold.checkout, found.session_of(hold.checkout)
            if hold.is_over:
                continue
            if session is not None:
                state = checkout.database_state = graph.state_of(session, monotonic() - checkout.acquired)
                if hold in due:
                    hold.pool.report(checkout, state, graph.blockers_of(session))
            elif not place.is_proxy:
                self._tell("missing", hold.pool, NO_SESSION)
            elif not traceparent_of(checkout):
                self._tell("proxy", hold.pool, BEHIND_PROXY)

    def _place_of(self, answer: Answer, asked: float) -> Place:
        """Return the server that has answered."""
        conn = self._conn
        pid, local_port = (0, 0) if conn is None else (conn.pid, conn.local_port)
        self._is_proxy = pid not in (0, answer.backend)
        return Place(self._server, asked, self._is_proxy, is_direct=0 < local_port == answer.client_port)

    # Logs

    def _log_once(self, error: BaseException) -> None:
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
