"""Opening connections in the background: callers wait on the pool alone, never on a connect."""

from __future__ import annotations

import logging
import math
import random
import threading
import weakref
from typing import TYPE_CHECKING

from otel_pgpool._checkout import Attempt
from otel_pgpool._clock import monotonic
from otel_pgpool._connection import close, configure, settings
from otel_pgpool._observer import Connect
from otel_pgpool._settlement import bare, describe
from otel_pgpool._target import printable
from otel_pgpool._wakeup import Wakeup, start, wait_for

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool._pool import ConnectionPool
    from otel_pgpool._slot import Slot

MOST_CONNECTORS = 3
AGAIN = 0.25
"""Seconds after which a caller that waits has another go at starting a thread, where none could be started."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
"""Seconds: what the delay between attempts doubles from, and to."""
LIFETIME_JITTER = 0.1
"""Fraction by which a lifetime is shortened at random, so that connections of one age do not go together."""

logger = logging.getLogger("otel_pgpool")


class Connectors:
    """At most three threads, started on demand, of which each asks again whether a connection is still wanted.

    While the server cannot be reached one of them, the prober, goes on trying; when it gets through, each success
    starts one more, so that the pool refills in steps.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._core = pool._core
        self._wakeup = Wakeup()
        self._pool = weakref.ref(pool, self._wakeup.ring_for)
        self._threads: set[threading.Thread] = set()  # under the core's lock
        self.lack: BaseException | None = None
        """Why the last thread could not be started, until one can."""

    def kick(self) -> None:
        """Start one more, if one more connection is wanted."""
        thread = None
        try:
            with self._core.lock:
                if not self._core._wanted() or len(self._threads) >= (1 if self._core.outage else MOST_CONNECTORS):
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
                logger.warning("pool %s: no thread can be started to connect: %s", self._name(), error)
            self.lack = bare(error)  # a return may still serve the caller

    def wait_for(self, lock: threading.Lock, deadline: float) -> bool:
        """Wait to be served; where no thread could be started that connects, try that again meanwhile."""
        while self.lack is not None and deadline - monotonic() > AGAIN:
            if wait_for(lock, AGAIN):
                return True
            self.kick()
        return wait_for(lock, deadline - monotonic())

    def _name(self) -> str:
        pool = self._pool()
        return "" if pool is None else pool.name

    def stop(self) -> None:
        """Wake the prober, so that it sees that the pool is closed."""
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

    def _step(self, me: threading.Thread) -> float | None:
        """Make one connection, if one is wanted; seconds until the next step, or None to end."""
        pool = self._pool()
        if pool is None:
            return None
        with self._core.lock:
            delay = self._turn(me, monotonic())
            slot = self._core._claim() if delay == 0.0 else None
            if slot is None and not delay:
                self._leave(me)
                return None
        if slot is None:
            return delay
        self.kick()
        return self._connect(pool, slot)

    def _turn(self, me: threading.Thread, now: float) -> float | None:
        """Under the lock: seconds until this thread may try; None during an outage that another one ends."""
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

    def _connect(self, pool: ConnectionPool, slot: Slot) -> float:
        outage = self._core.outage
        attempt = 1 + (outage.attempts if outage else 0)
        asked_by = slot.asked_by
        began = monotonic()
        conn = None
        try:
            conn = pool._target.connect()
            prepare(pool, slot, conn)
        except BaseException as error:
            if conn is not None:
                close(conn)
            delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt - 1, 16)))  # noqa: S311 - jitter
            text = ""
            try:
                text = describe(pool._target, error)
            finally:
                failed = Connect(attempt, began, monotonic(), asked_by, bare(error), text)
                self._missed(pool, slot, failed, delay)
            if not isinstance(error, Exception):
                raise
            return 0.0
        reached = printable(conn.info.host or "")
        connect = Connect(attempt, began, monotonic(), asked_by, address=reached, port=conn.info.port)
        self._made(pool, slot, conn, connect)
        return 0.0

    def _made(self, pool: ConnectionPool, slot: Slot, conn: connection, connect: Connect) -> None:
        reason, ended = self._core.deliver(slot, conn, connect.ended)
        observer = pool._observer
        if observer is not None:
            pool._tell(observer.connected, connect)
            if ended is not None:
                pool._tell(observer.outage_ended, ended.attempts, connect.ended - ended.since)
        if reason is not None:
            slot.conn = conn
            pool._discard([slot], reason)
        elif self._core.parked:
            pool._wake_maintenance()  # there is a lifetime to watch

    def _missed(self, pool: ConnectionPool, slot: Slot, connect: Connect, delay: float) -> None:
        error = connect.error
        assert error is not None  # noqa: S101 - a failed attempt has one
        attempt = Attempt(connect.ended, type(error).__name__, delay)
        began = self._core.miss(slot, attempt, error)
        observer = pool._observer
        if observer is not None:
            pool._tell(observer.connect_failed, connect)
            if began:
                pool._tell(observer.outage_started, connect)


def prepare(pool: ConnectionPool, slot: Slot, conn: connection) -> None:
    """Make a new connection ready to be lent: the user's ``configure``, its lifetime, what a return restores."""
    config = pool._config
    if config.configure is not None:
        configure(conn, config.configure)
    now = monotonic()
    slot.pid = conn.get_backend_pid()
    slot.baseline = settings(conn)
    slot.key = id(conn)
    slot.on_drop = pool._dropped.append
    slot.tie(conn)
    slot.expires = now + config.max_lifetime * (1 - LIFETIME_JITTER * random.random())  # noqa: S311 - jitter
