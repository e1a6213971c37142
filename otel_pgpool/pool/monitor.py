"""The monitor of one server: while holds are long, its thread reports what the server says of their sessions."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from otel_pgpool.pool.server_queries import CLOSE_AFTER, QUERY_INTERVAL, NoReply, Reply, ServerQueries
from otel_pgpool.pool.session_match import match, name_of
from otel_pgpool.pool.wait_graph import WaitGraph
from otel_pgpool.pool.watched_hold import WatchedHold
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_failure, log_safely
from otel_pgpool.runtime.fork import delay_forks_until_this_thread_ends, keep_from_forking
from otel_pgpool.runtime.wakeup import Wakeup, start_thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.monitor_source import MonitoredPool, Server

GATHER = 0.05
"""Seconds within which holds become due together, so that one query answers for all of them."""

MIN_PAUSE = 0.01
"""Minimum number of seconds between two steps of a monitor."""

MAX_PAUSE = 10.0
"""Seconds after which holds that have ended are forgotten."""

BEHIND_PROXY = (
    "a proxy such as PgBouncer hides the sessions; OTEL_PGPOOL_APPLICATION_NAME=trace shows those of sampled checkouts"
)

NOT_NAMED = (
    "no session behind the proxy has the name of the checkout, or several have: it has none while it is idle outside "
    "of a transaction"
)

NOT_LISTED = (
    "the server that answered has no such session with the process id {pid}: it has ended, or a load balancer leads to "
    "several servers"
)


class Monitor:
    """The monitor of one server, with a thread and a connection of its own, both made when there is a long hold.

    Nothing waits for a monitor: a server that refuses, freezes or is full costs the answer and nothing else.
    """

    def __init__(self, server: Server) -> None:
        self._lock = threading.Lock()  # guards the next six attributes; nothing under it blocks
        self._holds: list[WatchedHold] = []
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._not_before = 0.0  # when the server may be asked next
        self._must_close = False
        self._served: set[str] = set()  # names of the pools whose holds were watched
        self._wakeup = Wakeup()
        # What follows belongs to the thread.
        self._queries = ServerQueries(server)
        self._told: set[str] = set()  # what was logged, so that it is logged once

    @property
    def served(self) -> frozenset[str]:
        """Names of the pools whose holds were watched."""
        with self._lock:
            return frozenset(self._served)

    def watch(self, pool: MonitoredPool, holds: Iterable[Checkout]) -> bool:
        """Watch long holds until their end. Called by background threads, for which this takes some 100 us.

        Returns:
            Whether they are watched; False if this monitor was stopped.
        """
        watched, thread = [WatchedHold(pool, hold) for hold in holds], None
        with self._lock:
            if self._is_stopped:
                return False
            present = [hold for hold in self._holds if not hold.is_over]
            if not present:
                self._not_before = max(self._not_before, monotonic() + GATHER)
            self._holds = present + watched
            self._served.add(pool.name)
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
        return True

    def stay_away(self) -> None:
        """Close the connection and ask nothing for a while, because a pool needs the server's last free slot."""
        with self._lock:
            self._not_before, self._must_close = monotonic() + CLOSE_AFTER, True
        self._wakeup.set()

    def stop(self) -> None:
        """Let the thread close the connection and end."""
        with self._lock:
            self._is_stopped = True
        self._wakeup.set()

    def join(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the thread to end."""
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, seconds))

    def abandon(self) -> None:
        """Drop the connection in a forked child, which must not use the parent's."""
        self._queries.close_inherited()

    # The thread

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
        now, queries = monotonic(), self._queries
        with self._lock:
            holds = self._holds = [hold for hold in self._holds if not hold.is_over]
            is_stopped, not_before = self._is_stopped, self._not_before
            must_close, self._must_close = self._must_close or is_stopped, False
        if must_close or now >= queries.closes_at:
            queries.close()
        if holds and not is_stopped:
            due = [hold for hold in holds if hold.due <= now + GATHER]
            if now >= max(not_before, queries.next_query) and any(hold.due <= now for hold in due):
                self._ask(holds, due)
        elif self._ends():
            return None
        return self._pause(holds, max(not_before, queries.next_query))

    def _ends(self) -> bool:
        """Return whether the thread ends: no hold is watched, and there is no connection to be closed later."""
        with self._lock:
            if self._queries.is_connected or (self._holds and not self._is_stopped):
                return False
            self._thread = None  # so that `watch` starts another thread
            return True

    def _pause(self, holds: list[WatchedHold], not_before: float) -> float:
        """Return the seconds until a hold is due, or until the connection is to be closed."""
        until = [max(not_before, min(hold.due for hold in holds))] if holds else []
        if self._queries.is_connected:
            until.append(self._queries.closes_at)
        return min(MAX_PAUSE, max(MIN_PAUSE, min(until, default=0.0) - monotonic()))

    # The answers

    def _ask(self, holds: list[WatchedHold], due: list[WatchedHold]) -> None:
        """Ask the server for the sessions of all long holds, and report those that are due."""
        pool = due[0].pool
        if self._queries.is_proxy and not any(name_of(hold.checkout) for hold in holds):
            self._tell("proxy", pool, BEHIND_PROXY)
        else:
            try:
                reply = self._queries.ask(holds, due)
            except NoReply as failure:
                self._tell("failed", pool, str(failure))
                return
            if reply is None:
                return
            self._told.discard("failed")
            with keep_from_forking():
                self._report(holds, due, reply)
        for hold in due:
            hold.postpone(monotonic())

    def _report(self, holds: list[WatchedHold], due: list[WatchedHold], reply: Reply) -> None:
        """Store the state of each hold, and report those that are due."""
        found = match(reply.answer, reply.place)
        graph = WaitGraph(reply.answer.sessions, found.hold_of)
        are_missing = True
        for hold in holds:
            checkout, session = hold.checkout, found.session_of(hold.checkout)
            if hold.is_over:
                continue
            if session is None:
                self._tell_missing(hold, is_proxy=reply.place.is_proxy)
                continue
            are_missing = False
            state = checkout.database_state = graph.state_of(session, monotonic() - checkout.acquired)
            if hold in due:
                hold.pool.report(checkout, state, graph.blockers_of(session))
        if are_missing:
            self._queries.close()  # the next connection may lead to the right server

    # Logs

    def _tell_missing(self, hold: WatchedHold, *, is_proxy: bool) -> None:
        if not is_proxy:
            self._tell("not listed", hold.pool, NOT_LISTED.format(pid=hold.checkout.slot.pid))
        elif name_of(hold.checkout):
            self._tell("not named", hold.pool, NOT_NAMED)
        else:
            self._tell("proxy", hold.pool, BEHIND_PROXY)

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
