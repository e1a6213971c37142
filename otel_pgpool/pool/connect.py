"""Threads that open connections in the background, so that callers wait for the pool, not for a connect."""

from __future__ import annotations

import logging
import math
import random
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING

from otel_pgpool.driver.attempt import Opening
from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.driver.error_text import lean
from otel_pgpool.driver.exposure import warn
from otel_pgpool.driver.notices import bound_notices
from otel_pgpool.driver.refusal import is_refusal
from otel_pgpool.driver.reset import remember
from otel_pgpool.driver.session import close, configure, settings
from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import note_end
from otel_pgpool.runtime.text import class_of, printable
from otel_pgpool.runtime.wakeup import Wakeup, start, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.observer import Connect
    from otel_pgpool.pool.connection_pool import ConnectionPool
    from otel_pgpool.pool.slot import Slot

MOST_CONNECTORS = 3
AGAIN = 0.25
"""Seconds after which a waiter tries again to start a thread, if none could be started."""
MOST_STUCK = 16
"""Maximum number of threads whose attempt was given up and has not ended; with more, no attempt is made."""
CONFIGURE_TIMEOUT = 2 * IO_DEADLINE
"""Seconds for ``configure``, including its commit, after which the attempt is given up."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Maximum delay in seconds after the first failed attempt, which doubles with each attempt up to the second value."""
LIFETIME_JITTER = 0.1
"""Fraction by which a lifetime is shortened at random, so that connections of the same age are not closed together."""

logger = logging.getLogger("otel_pgpool")


class Connectors:
    """Up to three threads, started on demand; each checks whether a connection is still wanted before it opens one.

    During an outage only one of them, the prober, keeps connecting. When it succeeds, each success starts one more
    thread, so that the pool refills in steps. The maintenance thread gives up an attempt that does not end.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._core = pool._core
        self._wakeup = Wakeup()
        self._pool = weakref.ref(pool, self._wakeup.ring_for)
        self._threads: set[threading.Thread] = set()  # under the core's lock
        self._openings: dict[Slot, Opening] = {}  # whoever takes one out tells how it ended
        self._stuck: dict[Opening, None] = {}  # given up, and not ended yet
        self._has_warned = False
        self.lack: BaseException | None = None
        """Why the last thread could not be started, until one can."""

    def kick(self) -> None:
        """Start one more thread if one more connection is wanted."""
        thread = None
        try:
            with self._core.lock:
                if not self._core._wanted() or len(self._threads) >= (1 if self._core.outage else MOST_CONNECTORS):
                    return
                if len(self._stuck) >= MOST_STUCK:
                    return
                thread = threading.Thread(target=self._run, name="otel_pgpool-connector", daemon=True)
                self._threads.add(thread)
            start(thread)
            self.lack = None
        except BaseException as error:
            if thread is not None and thread.ident is None:
                with self._core.lock:
                    self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise
            if self.lack is None:
                logger.warning(
                    "pool %s: no thread can be started to connect: %s; callers that wait connect in their own threads",
                    self._name(),
                    error,
                )
            self.lack = lean(error)  # a return may still serve the caller

    def wait_for(self, lock: threading.Lock, deadline: float) -> bool:
        """Wait for a hand-over; if no thread can be started, connect in the calling thread."""
        while self.lack is not None and (left := deadline - monotonic()) > 0:
            delay = self._connect_here(left)
            if wait_for(lock, min(delay, deadline - monotonic())):
                return True
            self.kick()
        return wait_for(lock, deadline - monotonic())

    def _connect_here(self, limit: float) -> float:
        """Do a connector's next step in the calling thread; return the seconds until the following step."""
        me = threading.current_thread()
        try:
            delay = self._step(me, limit)
        finally:
            with self._core.lock:
                self._leave(me)
        return AGAIN if delay is None else min(delay, AGAIN)

    def give_up_overdue(self, now: float) -> None:
        """Give up attempts whose present step takes longer than allowed: they count as failed, and others are made."""
        for opening in [*self._openings.values(), *self._stuck]:
            opening.cut(now)
        pool = self._pool()
        for slot, opening in list(self._openings.items()):
            if pool is None or not opening.is_overdue(now):
                continue
            self._stuck[opening] = None
            if self._openings.pop(slot, None) is None:  # it has just ended
                self._stuck.pop(opening, None)
                continue
            with self._core.lock:
                self._leave(opening.thread)
            self._fail(pool, slot, opening, opening.overdue_error())
            if len(self._stuck) == MOST_STUCK:
                logger.error(
                    "pool %s: %d attempts to connect have not ended; no more are made before one of them ends",
                    pool.name,
                    MOST_STUCK,
                )

    def _name(self) -> str:
        pool = self._pool()
        return "" if pool is None else pool.name

    def stop(self) -> None:
        """Wake the prober, which then finds the pool closed."""
        self._wakeup.ring()

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, for at most ``seconds`` each."""
        for thread in list(self._threads):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(None if seconds == math.inf else max(0.0, seconds))

    def _run(self) -> None:
        me = threading.current_thread()
        delay: float | None = 0.0
        try:
            self._wakeup.renew()
            while delay is not None:
                if delay:
                    self._wakeup.wait(delay)
                delay = self._step(me)
        finally:
            with self._core.lock:
                self._leave(me)
            note_end()

    def _step(self, me: threading.Thread, limit: float | None = None) -> float | None:
        """Open one connection if one is wanted; return the seconds until the next step, or None to end."""
        pool = self._pool()
        if pool is None:
            return None
        slot = None
        try:
            with self._core.lock:
                delay = self._turn(me, monotonic()) if len(self._stuck) < MOST_STUCK else None
                slot = self._core._claim() if delay == 0.0 else None
                if slot is None and not delay:
                    self._leave(me)
                    return None
            if slot is None:
                return delay
            self.kick()
            if self._core.parked:
                pool._wake_maintenance()  # it gives the attempt up where that does not end
            return self._connect(pool, slot, limit)
        except BaseException as error:
            if slot is not None and slot in self._core.opening:  # an interrupt came where nothing else frees the place
                self._fail(pool, slot, self._openings.pop(slot) if slot in self._openings else Opening(), error)
            raise

    def _turn(self, me: threading.Thread, now: float) -> float | None:
        """Return the seconds until this thread may connect; None if another thread connects during an outage.

        The caller holds the core's lock.
        """
        outage = self._core.outage
        if outage is None:
            return 0.0
        if self._core.prober not in (None, me) or not self._core._wanted():
            return None
        self._core.prober = me
        return max(0.0, outage.next_attempt - now)

    def _leave(self, me: threading.Thread) -> None:
        self._threads.discard(me)
        if self._core.prober is me:
            self._core.prober = None

    def _connect(self, pool: ConnectionPool, slot: Slot, limit: float | None) -> float | None:
        warns = partial(self._warn_once, pool._tell, pool._name)
        opening = self._openings[slot] = Opening(self._attempts() + 1, slot.asked_by, limit, warns)
        conn = None
        try:
            conn = pool._target.connect(opening)
            opening.allow("configure", CONFIGURE_TIMEOUT)
            prepare(pool, slot, conn)
        except BaseException as error:
            given_up = self._openings.pop(slot, None) is None
            self._stuck.pop(opening, None)
            if not given_up:
                self._fail(pool, slot, opening, opening.overdue_error() if opening.was_cut and conn is None else error)
            if conn is not None:
                close(conn)
            if not isinstance(error, Exception):
                raise
            return None if given_up else 0.0
        if self._openings.pop(slot, None) is None:
            self._stuck.pop(opening, None)
            close(conn)
            return None
        reached = printable(conn.info.host or "")
        connect = opening.ended(address=reached, port=conn.info.port)
        self._made(pool, slot, conn, connect)
        return 0.0

    def _warn_once(self, tell: Callable[..., None], name: str) -> None:
        """Log that secrets are exposed, once for each pool."""
        with self._core.lock:
            is_first, self._has_warned = not self._has_warned, True
        if is_first:
            tell(warn, name)

    def _attempts(self) -> int:
        """Return the number of failed attempts since the server was last reached."""
        outage = self._core.outage
        return 0 if outage is None else outage.attempts

    def _fail(self, pool: ConnectionPool, slot: Slot, opening: Opening, error: BaseException) -> None:
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(opening.number - 1, 16))
        delay = random.uniform(0, longest)  # nosec B311 # noqa: S311 - jitter
        text = ""
        try:
            text = opening.message_of(error, pool._target)
        finally:
            self._missed(pool, slot, opening.ended(error=lean(error), message=text), delay)

    def _made(self, pool: ConnectionPool, slot: Slot, conn: connection, connect: Connect) -> None:
        reason, ended = self._core.deliver(slot, conn, connect.ended)
        observer = pool._observer
        if observer is not None:
            pool._tell(observer.connected, connect)
            if ended is not None and not ended.is_refusal:
                pool._tell(observer.outage_ended, ended.attempts, connect.ended - ended.since)
        if reason is not None:
            slot.conn = conn
            pool._discard([slot], reason)
        elif self._core.parked:
            pool._wake_maintenance()  # there is a lifetime to watch

    def _missed(self, pool: ConnectionPool, slot: Slot, connect: Connect, delay: float) -> None:
        error = connect.error
        assert error is not None  # nosec B101 # noqa: S101 - a failed attempt has one
        attempt = Attempt(connect.ended, class_of(error), delay, connect.message)
        began, ended = self._core.miss(slot, attempt, error, began=connect.began, is_refusal=is_refusal(error))
        observer = pool._observer
        if observer is not None:
            pool._tell(observer.connect_failed, connect)
            if began:
                pool._tell(observer.outage_started, connect)
            if ended is not None:
                pool._tell(observer.outage_ended, ended.attempts, connect.ended - ended.since)


def prepare(pool: ConnectionPool, slot: Slot, conn: connection) -> None:
    """Prepare a new connection: call ``configure``, set its lifetime, and store what a return restores."""
    config = pool._config
    slot.origin = settings(conn)
    bound_notices(conn)
    if config.reset is not None:  # it may be `reset_session`, or call it
        remember(conn)
    if config.configure is not None:
        configure(conn, config.configure)
    now = monotonic()
    slot.pid = conn.get_backend_pid()
    slot.baseline = settings(conn)
    slot.key = id(conn)
    slot.on_drop = pool._dropped.append
    slot.tie(conn)
    slot.expires = now + config.max_lifetime * (1 - LIFETIME_JITTER * random.random())  # nosec B311 # noqa: S311 - jitter
