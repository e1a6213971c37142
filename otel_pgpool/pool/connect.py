"""Threads that open connections in the background, so that callers wait for the pool, not for a connect."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver import session
from otel_pgpool.driver.attempt import ConnectAttempt
from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.driver.error_text import without_traceback
from otel_pgpool.driver.exposure import warn
from otel_pgpool.driver.reset import bound_notices, store_initial_state
from otel_pgpool.errors import PoolTimeout
from otel_pgpool.observer import Connect
from otel_pgpool.pool.backoff import delay_after
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.checkout import Attempt, Checkout, Slot
from otel_pgpool.pool.figures import diagnose
from otel_pgpool.pool.outage import number_after
from otel_pgpool.pool.reconnect_failed import ReconnectFailed
from otel_pgpool.pool.slots import set_lifetime
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_safely
from otel_pgpool.runtime.fork import delay_forks_until_this_thread_ends, keep_from_forking
from otel_pgpool.runtime.sockets import local_port
from otel_pgpool.runtime.text import class_of, printable
from otel_pgpool.runtime.wakeup import Deferred, Wakeup, acquire_within, start_thread

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.pool.discard import Discarder

MAX_THREADS = 3
START_RETRY = 0.25
"""Seconds after which a waiter tries again to start a thread, if none could be started."""
MAX_STUCK = 16
"""Maximum number of abandoned attempts that have not ended; with so many, no further attempt is made."""
CONFIGURE_TIMEOUT = 2 * IO_DEADLINE
"""Seconds for ``configure``, including its commit, after which the attempt is abandoned."""
LIFETIME_JITTER = 0.1
"""Fraction by which a lifetime is shortened at random, so that connections of the same age are not closed together."""
KEEPALIVE_JITTER = 0.2
"""Fraction by which the time between pings is shortened at random, for each connection."""


class Connectors(Part):
    """Up to three threads, started on demand; each checks whether a connection is still wanted before it opens one.

    During an outage only one of them, the retry thread, keeps connecting. When it succeeds, each success starts one
    more thread, so that the pool refills in steps. The maintenance thread abandons an attempt that does not end.
    """

    def __init__(self, common: Common, owner: object, discarder: Discarder) -> None:
        super().__init__(common)
        self._wakeup = Wakeup()
        self._owner = weakref.ref(owner, self._wakeup.set_on_collect)  # the threads end with the owner
        self._discarder = discarder
        self._reconnect_failed = ReconnectFailed(common)
        self.dropped: Deferred[weakref.ref[connection]] = Deferred(self._maintenance_thread.wakeup)
        """References to connections that their holders have dropped."""
        self._threads: set[threading.Thread] = set()  # threads that may connect; guarded by the core's lock
        self._started: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # for `join`, until each has ended
        self._attempts: dict[Slot, ConnectAttempt] = {}  # the thread that pops an attempt reports its end
        self._stuck: dict[ConnectAttempt, None] = {}  # abandoned attempts that have not ended
        self._has_warned = False
        self._start_error: BaseException | None = None  # of the last failed start of a thread, until a start succeeds

    # Threads

    def start_if_needed(self) -> None:
        """Start one more thread if one more connection is wanted."""
        thread = None
        core = self._core
        try:
            with core.lock:
                if not core.is_connection_wanted() or len(self._threads) >= (1 if core.outage else MAX_THREADS):
                    return
                if len(self._stuck) >= MAX_STUCK:
                    return
                thread = threading.Thread(target=self._run, name="otel_pgpool-connector", daemon=True)
                self._threads.add(thread)
                self._started.add(thread)
            start_thread(thread)
            self._start_error = None
        except BaseException as error:
            if thread is not None and thread.ident is None:
                with core.lock:
                    self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise
            if self._start_error is None:
                log_safely(
                    logging.WARNING,
                    "pool %s: no thread can be started to connect: %s; waiters connect in their own threads",
                    core.name,
                    error,
                )
            self._start_error = without_traceback(error)  # a release may still serve the caller

    def wait_for(self, lock: threading.Lock, deadline: float) -> bool:
        """Wait for a hand-over; if no thread can be started, connect in the calling thread."""
        while self._start_error is not None and (left := deadline - monotonic()) > 0:
            delay = self._connect_here(left)
            if acquire_within(lock, min(delay, deadline - monotonic())):
                return True
            self.start_if_needed()
        return acquire_within(lock, deadline - monotonic())

    def diagnose(
        self,
        reason: str,
        since: float,
        retries: int,
        waiter: Checkout | None = None,
        kind: type[PoolTimeout] = PoolTimeout,
    ) -> PoolTimeout:
        """Return the error of a caller that has got no connection in time; its cause is the last failed connect.

        Args:
            reason: what happened, the first words of the message.
            since: when the wait began, as a reading of the clock.
            retries: failed attempts during the wait.
            waiter: the checkout that waited, if the caller did not wait for the whole pool.
            kind: the class of the error.
        """
        core, outage, cause, text = self._core, self._core.outage, self._start_error, ""
        if core.is_suspended:
            reason = f"the pool is suspended: {reason}"
        if waiter is not None and waiter.error is not None:
            cause, text = waiter.error, waiter.attempts[-1].message or class_of(waiter.error)
        elif outage is not None and outage.error is not None:
            cause, text = outage.error, outage.message or class_of(outage.error)
        elif cause is not None:
            text = f"no thread can be started: {printable(str(cause))}"
        stats, holds, now = core.stats(), core.holds_now(), monotonic()
        error = diagnose(
            reason, stats, holds, since=since, now=now, retries=retries, waiter=waiter, last_failure=text, kind=kind
        )
        error.__cause__ = cause
        return error

    def stop(self) -> None:
        """Wake the retry thread, which ends if the pool is no longer open."""
        self._wakeup.set()

    def join(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the threads to end, except for those of abandoned attempts."""
        deadline = monotonic() + seconds
        for thread in list(self._started):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, min(deadline - monotonic(), threading.TIMEOUT_MAX)))

    def _connect_here(self, limit: float) -> float:
        """Do a connector's next step in the calling thread; return the seconds until the following step."""
        me = threading.current_thread()
        try:
            delay = self._step(me, limit)
        finally:
            self._leave(me)
        return START_RETRY if delay is None else min(delay, START_RETRY)

    def _run(self) -> None:
        me = threading.current_thread()
        delay: float | None = 0.0
        try:
            self._wakeup.rebuild_if_patched()
            while delay is not None:
                if delay:
                    self._wakeup.wait(delay)
                delay = self._step(me)
        finally:
            self._leave(me)
            delay_forks_until_this_thread_ends()

    def _step(self, me: threading.Thread, limit: float | None = None) -> float | None:
        """Open one connection if one is wanted; return the seconds until the next step, or None to end."""
        owner = self._owner()  # kept for the duration of this step
        if owner is None:
            return None
        core, slot = self._core, None
        try:
            with core.lock:
                delay = self._retry_delay(me, monotonic()) if len(self._stuck) < MAX_STUCK else None
                slot = core.reserve_slot(monotonic()) if delay == 0.0 else None
                if slot is None and not delay:
                    self._leave(me)
                    return None
            if slot is None:
                return delay
            self.start_if_needed()
            if core.parked:
                self._maintenance_thread.wake()  # to abandon the attempt if it does not end
            return self._connect(slot, limit)
        except BaseException as error:
            if slot is not None and slot in core.opening:  # after an interrupt that nothing else handles
                attempt = self._attempts.pop(slot) if slot in self._attempts else ConnectAttempt()
                self._fail(slot, attempt, error)
            raise

    def _retry_delay(self, me: threading.Thread, now: float) -> float | None:
        """Return the seconds until this thread may connect; None if another thread connects during an outage.

        The caller holds the core's lock.
        """
        core = self._core
        if core.outage is None:
            return 0.0
        if core.retry_thread not in (None, me) or not core.is_connection_wanted():
            return None
        core.retry_thread = me
        return max(0.0, core.outage.next_attempt - now)

    def _leave(self, me: threading.Thread) -> None:
        """Remove a thread that no longer connects."""
        with self._core.lock:
            self._threads.discard(me)
            if self._core.retry_thread is me:
                self._core.retry_thread = None

    # Attempts

    def abandon_overdue(self, now: float) -> None:
        """Abandon attempts whose present step takes longer than allowed: they count as failed, and others are made."""
        for attempt in [*self._attempts.values(), *self._stuck]:
            attempt.cut(now)
        for slot, attempt in list(self._attempts.items()):
            if not attempt.is_overdue(now):
                continue
            self._stuck[attempt] = None
            if self._attempts.pop(slot, None) is None:  # the attempt has just ended
                self._stuck.pop(attempt, None)
                continue
            self._leave(attempt.thread)
            self._started.discard(attempt.thread)
            self._fail(slot, attempt, attempt.overdue_error())
            if len(self._stuck) == MAX_STUCK:
                log_safely(
                    logging.ERROR,
                    "pool %s: %d attempts to connect have not ended; the next one is made when one of them has ended",
                    self._core.name,
                    MAX_STUCK,
                )

    def _connect(self, slot: Slot, limit: float | None) -> float | None:
        number = number_after(self._core.outage)
        attempt = self._attempts[slot] = ConnectAttempt(number, limit, self._warn_once)
        conn = None
        try:
            conn = self._target.connect(attempt)
            attempt.allow("configure", CONFIGURE_TIMEOUT)
            self._prepare(slot, conn, attempt.began)
        except BaseException as error:
            is_abandoned = self._attempts.pop(slot, None) is None
            self._stuck.pop(attempt, None)
            if not is_abandoned and conn is not None and not conn.closed and isinstance(error, Exception):
                self._fail(slot, attempt, error, "configure")
            elif not is_abandoned:
                self._fail(slot, attempt, attempt.overdue_error() if attempt.was_cut and conn is None else error)
            if conn is not None:
                session.close(conn)
            if not isinstance(error, Exception):
                raise
            return None if is_abandoned else 0.0
        if self._attempts.pop(slot, None) is None:
            self._stuck.pop(attempt, None)
            session.close(conn)
            return None
        address = printable(conn.info.host or "")
        self._succeed(slot, conn, _describe(attempt, slot, address=address, port=conn.info.port))
        return 0.0

    def _prepare(self, slot: Slot, conn: connection, began: float) -> None:
        """Prepare a new connection: call ``configure``, set its lifetime, store what a release restores."""
        config = self._config
        slot.origin = session.settings(conn)
        bound_notices(conn, slot.note_proxy_wait)
        if config.reset is not None:  # `reset_session`, or a function that calls it
            store_initial_state(conn)
        if config.configure is not None:
            session.configure(conn, config.configure)
        now = monotonic()
        slot.pid = conn.get_backend_pid()
        slot.server = self._target.chosen_server(conn)
        slot.local_port = local_port(conn.fileno())
        slot.baseline = session.settings(conn)
        slot.key = id(conn)
        slot.on_collected = self.dropped.append
        slot.track(conn)
        slot.opened, slot.connect_began = now, began
        slot.lifetime_share = 1 - LIFETIME_JITTER * random.random()  # nosec B311 # noqa: S311 - jitter
        with self._core.lock:  # so that no change of `max_lifetime` is missed
            set_lifetime(slot, self._durations.max_lifetime)
        slot.ping_after = config.keepalive * (1 - KEEPALIVE_JITTER * random.random())  # nosec B311 # noqa: S311 - jitter

    def _warn_once(self) -> None:
        """Log that credentials are exposed, once for each pool."""
        with self._core.lock:
            is_first, self._has_warned = not self._has_warned, True
        if is_first:
            warn(self._core.name)

    def _succeed(self, slot: Slot, conn: connection, connect: Connect) -> None:
        self._reconnect_failed.connected()
        reason, change = self._core.connect_succeeded(slot, conn, connect.ended, began=connect.began)
        notifier, observer = self._notifier, self._notifier.observer
        with keep_from_forking():  # a child would inherit the locks of the telemetry
            if observer is not None:
                notifier.notify(observer.connected, connect)
                change.report(notifier, observer, connect)
            if reason is not None:
                slot.conn = conn
                self._discarder.discard([slot], reason)
        if reason is None and self._core.parked:
            self._maintenance_thread.wake()  # to watch the connection's lifetime

    def _fail(self, slot: Slot, attempt: ConnectAttempt, error: BaseException, callback: str = "") -> None:
        """Record a failed attempt; ``callback`` is the function of the application that raised the error, if any."""
        delay = delay_after(attempt.number)
        message = ""
        try:
            message = attempt.message_of(error, self._target)
        finally:
            error = without_traceback(error)
            is_refusal = bool(callback) or session.is_refusal(error)  # the server is up
            outcome = {"error": error, "message": message, "is_refusal": is_refusal, "callback": callback}
            connect = _describe(attempt, slot, **outcome)
            failed = Attempt(connect.ended, class_of(error), delay, message)
            change = self._core.connect_failed(slot, failed, error, began=connect.began, is_refusal=connect.is_refusal)
            notifier, observer = self._notifier, self._notifier.observer
            if observer is not None:
                with keep_from_forking():  # as in `_succeed`
                    notifier.notify(observer.connect_failed, connect)
                    change.report(notifier, observer, connect)
            self._reconnect_failed.failed(connect.began, connect.ended)


def _describe(attempt: ConnectAttempt, slot: Slot, **outcome: Any) -> Connect:
    """Return the description of an attempt that has ended; ``outcome`` are further fields of `Connect`."""
    return Connect(attempt.number, attempt.began, monotonic(), slot.asked_by, **outcome)
