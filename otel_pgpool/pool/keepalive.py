"""Pings of idle connections, so that nothing between the pool and its server cuts them for their silence."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from otel_pgpool.driver.deadline import NoAnswer, shutdown_socket
from otel_pgpool.driver.error_text import without_traceback
from otel_pgpool.driver.session import ping
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.runtime.background import BackgroundThread
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_external, log_failure
from otel_pgpool.runtime.fork import delay_forks_until_this_thread_ends, keep_from_forking
from otel_pgpool.types import DiscardReason

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Slot
    from otel_pgpool.pool.discard import Discarder

LOOK_AGAIN = 0.5
"""Minimum number of seconds between two looks for connections that are due."""


class Keepalive(Part):
    """Pings idle connections one after the other, in a thread that exists only while a connection is due.

    The maintenance thread only looks whether one is due, because a frozen server must not delay its other duties.
    """

    def __init__(self, common: Common, discarder: Discarder) -> None:
        super().__init__(common)
        self._check = common.config.check if callable(common.config.check) else None
        self._discarder = discarder
        self._thread = BackgroundThread(self, "otel_pgpool-keepalive", delays_forks=False)
        self._pinged: Slot | None = None
        self._cut: Slot | None = None  # whose ping was cut for a caller

    def start_if_due(self, now: float) -> float:
        """Start the thread if a connection is due; return the seconds until the next look."""
        if self._config.keepalive == math.inf:
            return math.inf
        seconds = self._core.next_ping() - now
        if seconds <= 0:
            try:
                self._thread.wake()
            except RuntimeError as error:  # no thread can be started: the next look tries again
                log_failure("a thread for pings of idle connections could not be started", error, logging.DEBUG)
        return max(LOOK_AGAIN, seconds)

    def run_once(self) -> float | None:
        """Ping the connection that is due and has been idle for the longest time; end the thread if there is none."""
        slot = self._core.begin_ping(monotonic())
        if slot is None:
            delay_forks_until_this_thread_ends()
            return None
        self._pinged = slot
        try:
            self._ping(slot)
        finally:
            self._pinged = self._cut = None
        return 0.0

    def stop(self) -> None:
        """Cut the present ping, so that the thread of a closed pool ends even if the server is frozen."""
        slot = self._pinged
        conn = None if slot is None else slot.conn
        if conn is not None:
            shutdown_socket(conn)

    def cut_after(self, seconds: float) -> None:
        """Cut the present ping if it has taken so long, because a caller waits and can have another connection."""
        slot = self._pinged
        if slot is None or monotonic() - slot.kept_at < seconds:
            return
        conn = slot.conn
        if conn is not None and self._core.abandon_check(slot, DiscardReason.BROKEN):
            self._cut = slot
            shutdown_socket(conn)

    def join(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the thread to end."""
        self._thread.join(seconds)

    def _ping(self, slot: Slot) -> None:
        """Ping a connection that was set aside, and make it available again, or discard it."""
        self._core.keep_aside([slot], monotonic())
        conn = slot.conn
        if conn is None:  # closed as an orphan
            return
        try:
            if slot.evict_reason is None:  # read after `_pinged` was set, so that either `stop` or this sees the other
                ping(conn, self._check)
        except BaseException as failure:
            if self._core.check_failed(slot):
                self._discard(slot, conn, failure)
            if is_external(failure):
                raise
            return
        reason = self._core.ping_passed(slot, monotonic())
        if reason is not None:
            with keep_from_forking():
                self._discarder.discard([slot], reason)

    def _discard(self, slot: Slot, conn: connection, failure: BaseException) -> None:
        """Discard a connection whose ping failed, for the reason that a check at a checkout gives."""
        with keep_from_forking():
            if self._cut is slot and slot.evict_reason == DiscardReason.BROKEN:
                failure = NoAnswer.within(monotonic() - slot.kept_at)
            elif slot.evict_reason is not None:  # the pool was closed or drained meanwhile
                self._discarder.discard([slot], slot.evict_reason)
                return
            is_broken = self._check is None or conn.closed
            reason = DiscardReason.BROKEN if is_broken else DiscardReason.CHECK_FAILED
            self._discarder.discard([slot], reason, without_traceback(failure))
