"""The pool, which connects the mechanics (`Core`), psycopg2's connections and the observer."""

from __future__ import annotations

import os
import weakref
from collections import deque
from contextlib import suppress
from logging import DEBUG
from sys import _getframe
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg2

from otel_pgpool.config import PoolConfig, limits, refuse, seconds
from otel_pgpool.config import expected_hold as validate_expected_hold
from otel_pgpool.driver import deadline as _deadline
from otel_pgpool.driver import session as _connection
from otel_pgpool.driver.dsn import Target
from otel_pgpool.driver.session import is_clean
from otel_pgpool.errors import PoolClosed, PoolError, timeout_error
from otel_pgpool.pool import registry
from otel_pgpool.pool.acquire import fail, last_failure, obtain
from otel_pgpool.pool.call_site import stack_of
from otel_pgpool.pool.checkout import begin
from otel_pgpool.pool.collected import Dropped
from otel_pgpool.pool.connect import Connectors
from otel_pgpool.pool.context import Block, LongBlock
from otel_pgpool.pool.core import GONE, Core, State
from otel_pgpool.pool.health import check_all
from otel_pgpool.pool.maintenance import Maintenance
from otel_pgpool.pool.release import rescue, settle
from otel_pgpool.pool.slot import AT_ONCE
from otel_pgpool.pool.utilization import level_name
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import Guard, log_failure
from otel_pgpool.runtime.fork import is_here, renew, renewed
from otel_pgpool.runtime.gc_state import is_collecting_here
from otel_pgpool.runtime.thread_cache import renew_here
from otel_pgpool.runtime.wakeup import Wakeup, wait_for
from otel_pgpool.stats import Holder, LastFigures, PoolStats, leave_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import EllipsisType, TracebackType

    from psycopg2.extensions import connection as Connection  # noqa: N812 - `connection` is a method of the pool
    from typing_extensions import Self

    from otel_pgpool.config import Check
    from otel_pgpool.observer import PoolObserver
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.slot import Slot


OPENING = 30.0
"""Seconds that opening the pool may take if ``timeout``, the bound of a checkout, is 0."""


class ConnectionPool:
    """A pool of psycopg2 connections in which every checkout is an OpenTelemetry span.

    The first arguments are those of ``psycopg2.pool.ThreadedConnectionPool``: ``minconn``, ``maxconn``, then the
    arguments of ``psycopg2.connect``. The pool opens ``minconn`` connections at once and more on demand. Callers get
    connections in the order in which they asked, and wait where psycopg2's pools raise. Threads may share a pool. A
    forked child opens connections of its own.

    Args:
        minconn: minimum number of connections, kept open at all times; at least 0.
        maxconn: maximum number of connections at any time; 1 to 262143, PostgreSQL's bound on ``max_connections``.
        *args: for ``psycopg2.connect``: a URL or ``key=value`` string, ``connection_factory``, ``cursor_factory``.
        name: name of the pool in telemetry, by default ``host:port/dbname``. If a live pool of this process has the
            name already, `` #2``, `` #3`` and so on is added.
        timeout: longest wait for a connection in seconds; by default ``DB_CONNECTION_TIMEOUT``, or 30 if that is not
            set. With 0, a checkout takes an idle connection or raises at once.
        max_waiting: maximum number of waiters; a further checkout raises `TooManyRequests`. 0 for no limit.
        max_retries: failed attempts after which a checkout gives up before its timeout; None for no limit.
        max_lifetime: maximum age of a connection in seconds, shortened by up to 10 % at random; None for no limit.
        max_idle: seconds after which an idle connection above ``minconn`` is closed; None for never.
        long_hold: hold time in seconds after which a checkout is reported as a long hold; by default
            ``OTEL_PGPOOL_LONG_HOLD``, or 1 if that is not set; None or 0 for never.
        check: how an idle connection is checked before it is handed over. ``"auto"``: by polling its socket, and by a
            ``SELECT 1`` after 30 s without use. A callable: called with the connection if that was idle for more than
            50 ms; raises if the connection must not be used. None: not at all.
        configure: callable that prepares each new connection, and each returned one after ``reset``. The server has 5 s
            to answer all its queries and to commit.
        reset: callable that cleans up each returned connection, such as `reset_session`. The same bound of 5 s applies.
        credentials: callable that returns a mapping of keyword arguments to merge into those of ``psycopg2.connect``,
            called before each connect. With it, and libpq 16 or later, a password is sent in clear text over TLS only,
            unless libpq's parameter ``require_auth`` is given.
        open: False to open no connection before `open` or the first checkout, for pre-fork servers.
        observer: a `PoolObserver` to notify of the pool's events. By default `Telemetry`, which reports to
            OpenTelemetry; None for no telemetry.
        **kwargs: for ``psycopg2.connect``.

    Raises:
        ValueError: an option, an environment variable or the DSN is invalid; the message contains its name and what is
            accepted.
        psycopg2.Error: the first attempt to connect failed.
        PoolTimeout: ``minconn`` connections could not be opened within ``timeout``.
    """

    def __init__(
        self,
        minconn: int,
        maxconn: int,
        *args: Any,
        name: str | None = None,
        timeout: float | None = None,
        max_waiting: int = 0,
        max_retries: int | None = None,
        max_lifetime: float | None = 3600.0,
        max_idle: float | None = 600.0,
        long_hold: float | EllipsisType | None = ...,
        check: Check = "auto",
        configure: Callable[[Connection], object] | None = None,
        reset: Callable[[Connection], object] | None = None,
        credentials: Callable[[], Mapping[str, Any]] | None = None,
        open: bool = True,  # noqa: A002 - the name that psycopg_pool's users know
        observer: PoolObserver | EllipsisType | None = ...,
        **kwargs: Any,
    ) -> None:
        self._config = PoolConfig.of(
            minconn,
            maxconn,
            name=name,
            timeout=timeout,
            max_waiting=max_waiting,
            max_retries=max_retries,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            long_hold=long_hold,
            check=check,
            configure=configure,
            reset=reset,
            credentials=credentials,
        )
        if not isinstance(open, bool):
            raise refuse("open", open, "True or False")
        if observer is not None and observer is not ... and not hasattr(observer, "attached"):
            raise refuse("observer", observer, "a PoolObserver or None")
        renew_here()
        self.last_figures = LastFigures()
        self._reset = reset
        self._target = Target(args, kwargs, credentials)
        self._observer = _default_observer() if observer is ... else observer
        self._inherited: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._name = ""
        self._start_afresh(self._config.minconn, self._config.maxconn)
        self._name = self._core.name = registry.register(self, self._config.name or self._target.name)
        self._guard = Guard(self._name)
        self._tell = self._guard.tell
        if self._observer is not None:
            self._observer.attached(self)  # not guarded: an error here is a misuse, which the caller should see
        if open:
            try:
                self.open()
            except BaseException:
                self.close(0)
                raise

    def _start_afresh(self, minconn: int, maxconn: int) -> None:
        config = self._config
        self._core = Core(
            minconn,
            maxconn,
            max_waiting=config.max_waiting,
            max_retries=config.max_retries,
            long_hold=config.long_hold,
            name=self._name,
        )
        self._core.parked = True  # so that the first checkout starts the maintenance thread
        self._wakeup = Wakeup()
        self._dropped = Dropped(self._wakeup)
        self._deferred: deque[tuple[Checkout, Connection, bool]] = deque()  # returned inside a GC run; True: close
        self._maintenance = Maintenance(self)
        self._connectors = Connectors(self)

    # Checking out and in

    def connection(self, timeout: float | None = None, *, expected_hold: float | EllipsisType | None = ...) -> Block:
        """Check out a connection for a ``with`` block, and return it at the block's end.

        A clean exit commits, an exception rolls back; a connection in autocommit mode is neither committed nor rolled
        back. The object that this method returns can be entered several times, one after the other.

        Args:
            timeout: longest wait in seconds, in place of the pool's ``timeout``.
            expected_hold: hold time in seconds after which this checkout is reported as a long hold, in place of the
                pool's ``long_hold``; None for never. The hold does not count in ``PoolStats.oldest_hold``. For
                listeners and batch jobs.

        Raises:
            ValueError: ``timeout`` or ``expected_hold`` is invalid.
            PoolTimeout: on entering the block, no connection became available in time, or ``max_retries`` is reached.
            TooManyRequests: on entering the block, the queue is full.
            PoolClosed: on entering the block, the pool is closed.
            psycopg2.Error: on leaving the block, the commit failed.
        """
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        frame = _getframe(1)
        block = Block() if expected_hold is ... else self._long_block(expected_hold)
        block._pool = self
        block._timeout = timeout
        block._stack = frame.f_code, frame.f_lasti
        block._checkout = block._conn = None
        return block

    def _long_block(self, hold: object) -> Block:
        block = LongBlock()
        block._expected_hold = validate_expected_hold(hold)
        return block

    def _expect(self, checkout: Checkout, hold: float) -> None:
        """Set the threshold after which this hold is reported as long."""
        checkout.expected_hold = hold
        checkout.slot.review_at = AT_ONCE  # so that even a short hold is compared with its threshold when it ends
        self._wake_maintenance()

    def getconn(
        self, key: object = None, *, timeout: float | None = None, expected_hold: float | EllipsisType | None = ...
    ) -> Connection:
        """Check out a connection, which `putconn` returns.

        Args:
            key: a hashable name for the checkout. As long as the checkout lasts, the same key yields the same
                connection, as in psycopg2's pools.
            timeout: longest wait in seconds, in place of the pool's ``timeout``.
            expected_hold: as for `connection`.

        Raises:
            ValueError: ``timeout`` or ``expected_hold`` is invalid.
            PoolTimeout: no connection became available in time, or ``max_retries`` is reached.
            TooManyRequests: the queue is full.
            PoolClosed: the pool is closed.
        """
        if timeout is not None:
            timeout = seconds("timeout", timeout)
        hold = None if expected_hold is ... else validate_expected_hold(expected_hold)
        if not is_here:
            renew()
        if key is not None:
            lent = self._core.by_key(key)[1]
            if lent is not None:
                return lent
        checkout = begin(monotonic(), stack_of(_getframe(1)))
        try:
            conn = self._check_out(checkout, timeout)
        except BaseException as error:
            fail(self, checkout, None, error)  # completes what an interrupt may have cut short in `_check_out`
            raise
        if hold is not None:
            self._expect(checkout, hold)
        if key is not None:
            lent = self._core.enter_key(key, checkout.slot, conn)
            if lent is not conn:  # another thread has checked out by this key first
                self.putconn(conn)
                return lent
        return conn

    def putconn(self, conn: Connection | None = None, key: object = None, close: bool = False) -> None:  # noqa: FBT001, FBT002 - the stock pool's signature
        """Return a connection that `getconn` checked out; a transaction in progress is rolled back.

        Args:
            conn: the connection; may be omitted if ``key`` is given.
            key: the key under which the connection was checked out.
            close: True to close the connection in place of keeping it.

        Raises:
            PoolError: the connection is not checked out from this pool, or not under this key.
        """
        if not is_here:
            renew()
        core = self._core
        slot: Slot | None
        if conn is None:
            slot, conn = core.by_key(key)
        else:
            slot = core.slots.get(id(conn)) or core.slot_behind(conn)
        checkout = None if slot is None else slot.checkout
        if conn is None or slot is None or checkout is None or not slot.holds(conn):
            if conn is not None and conn in self._inherited:
                return
            raise PoolError(
                f"pool {self._name!r}: trying to put unkeyed connection: it is not checked out from this pool"
            )
        if key is not None and core.by_key(key)[0] is not slot:
            raise PoolError(f"pool {self._name!r}: cannot return this connection: it is not checked out under this key")
        try:
            checkout.outcome = "released"
            if is_collecting_here():
                self._defer(checkout, conn, close=close)
            elif not close and self._reset is None and is_clean(conn, slot):
                self._give_back(checkout, conn)
            else:
                settle(self, checkout, conn, None, close=close)
        except BaseException:
            rescue(self, checkout, conn, close=close)
            raise

    def _check_out(self, checkout: Checkout, timeout: float | None, taken: Connection | None = None) -> Connection:
        """Acquire a connection and notify the observer.

        The slow path, `obtain`, runs only if `Core.take` yields no connection that can be used at once. ``taken`` is a
        connection that the caller has already got from `Core.take` and that has to be checked first.
        """
        observer = self._observer
        conn = None
        try:
            if observer is not None:
                try:
                    observer.started(checkout)
                except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                    self._guard.lament(error)
                checkout.started = monotonic()
            if taken is None:
                conn = self._core.take(checkout)
            if checkout.path is None:
                taken, conn = taken or conn, None
                conn = obtain(self, checkout, taken, self._config.timeout if timeout is None else timeout)
            if observer is not None:
                try:
                    observer.acquired(checkout)
                except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                    self._guard.lament(error)
            return conn  # type: ignore[return-value]  # noqa: TRY300 - not None if a path is set; an interrupt may hit here
        except BaseException as error:
            fail(self, checkout, conn, error)
            raise

    def _give_back(
        self, checkout: Checkout, conn: Connection, reason: str | None = None, cause: BaseException | None = None
    ) -> None:
        now = monotonic()
        verdict = self._core.release(checkout, conn, now, reason)
        self._given_back(checkout, conn, now, verdict, cause)

    def _given_back(
        self,
        checkout: Checkout,
        conn: Connection,
        now: float,
        verdict: str | None,
        cause: BaseException | None = None,
    ) -> None:
        """Act on the core's verdict about a returned connection, and notify the observer."""
        if verdict is not None:
            if verdict is GONE:
                self._abandon(checkout)
                checkout.ended = True
                return
            checkout.slot.conn = conn
            self._discard([checkout.slot], verdict, cause, checkout)
        if self._observer is not None:
            checkout.released = now
            try:
                self._observer.released(checkout)
            except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                self._guard.lament(error)
            checkout.ended = True

    # Shared by acquiring and releasing

    def _defer(self, checkout: Checkout, conn: Connection, *, close: bool = False) -> None:
        """Leave a return to the maintenance thread, because the garbage collector is running in this one."""
        self._deferred.append((checkout, conn, close))
        self._wakeup.ring()

    def _abandon(self, checkout: Checkout) -> None:
        """Notify the observer of a checkout that returns no connection: returned before, or a parent process's."""
        if self._observer is not None:
            self._tell(self._observer.abandoned, checkout)

    def _discard(
        self,
        slots: Sequence[Slot],
        reason: str,
        error: BaseException | None = None,
        checkout: Checkout | None = None,
    ) -> None:
        """Close connections that the core has set aside for closing, and free their slots."""
        if not slots:
            return
        try:
            for slot in slots:
                conn, slot.conn = slot.conn, None
                if conn is not None:
                    _connection.close(conn)
        finally:
            closed = self._core.forget(slots, reason)
        self._connectors.kick()
        if closed and self._observer is not None:
            self._tell(self._observer.discarded, closed, reason, error, checkout)

    def _wake_maintenance(self) -> None:
        self._core.parked = False
        try:
            self._maintenance.wake()
        except BaseException as error:  # the next checkout tries again
            self._core.parked = True
            if not isinstance(error, RuntimeError):
                raise
            log_failure(f"pool {self.name}: the maintenance thread could not be started", error, DEBUG)

    # The whole pool

    @renewed
    def open(self) -> None:
        """Open ``minconn`` connections; do nothing if the pool is open.

        Raises:
            psycopg2.Error: the first attempt to connect failed; the pool is not open then.
            PoolTimeout: the connections could not be opened within the pool's ``timeout``.
            PoolClosed: the pool is closed.
        """
        if self._core.state is State.OPEN:
            return
        try:
            self.wait()
        except BaseException:
            self._discard(self._core.unopen(), "closed")
            self._connectors.stop()
            raise

    @renewed
    def wait(self, timeout: float | None = None) -> None:
        """Wait until ``minconn`` connections are open; open the pool if necessary.

        Args:
            timeout: longest wait in seconds, in place of the pool's ``timeout``.

        Raises:
            ValueError: ``timeout`` is invalid.
            psycopg2.Error: an attempt to connect failed.
            PoolTimeout: the connections could not be opened in time.
            PoolClosed: the pool is closed.
        """
        limit = (self._config.timeout or OPENING) if timeout is None else seconds("timeout", timeout)
        self._begin()
        began = monotonic()
        waiter = self._core.fill()
        if waiter is None:
            return
        self._connectors.kick()
        if not self._connectors.wait_for(waiter.lock, monotonic() + limit):
            self._core.stop_filling(waiter)
            outage = self._core.outage
            cause, text = last_failure(self)
            error = timeout_error(
                f"{self.minconn} connections could not be opened within {limit:.3g} s",
                self.stats(),
                waited=monotonic() - began,
                retries=outage.attempts if outage else 0,
                holders=self.holders(),
                own_holds=0,
                last_failure=text,
            )
            raise error from cause
        try:
            if waiter.error is not None:
                raise waiter.error
        finally:
            del waiter  # breaks a reference cycle: the error's traceback refers to this frame

    def _begin(self) -> None:
        self._core.open()
        self._wake_maintenance()
        self._connectors.kick()

    @renewed
    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: refuse new checkouts, fail the waiters, close idle connections, wait for the holders.

        A connection that is still checked out after ``timeout`` is closed when it is returned. A second call does
        nothing.

        Args:
            timeout: longest wait for the holders in seconds.

        Raises:
            ValueError: ``timeout`` is invalid.
        """
        deadline = monotonic() + seconds("timeout", timeout)
        if self._core.state is State.CLOSED:
            return
        self._shut()
        quiet = self._core.quiet()
        if quiet is not None:
            wait_for(quiet.lock, deadline - monotonic())
        self._wakeup.ring()
        self._connectors.join(deadline - monotonic())
        if not self._core.used:
            self._maintenance.join(max(0.1, deadline - monotonic()))
        if not registry.any_open():
            _deadline.stop_watching()

    @renewed
    def closeall(self) -> None:
        """Close the pool and every connection at once, including those that are checked out, as psycopg2's pools do.

        Raises:
            PoolClosed: the pool is closed already.
        """
        if self._core.state is State.CLOSED:
            raise PoolClosed(f"pool {self._name!r}: connection pool is closed")
        self._shut()
        for slot in list(self._core.slots.values()):
            conn = slot.ref()
            if conn is not None and slot.checkout is not None:
                _connection.close(conn)

    def _shut(self) -> None:
        idle = self._core.close()
        registry.release_name(self._name, self)
        self._connectors.stop()
        self._wakeup.ring()
        self._discard(idle, "closed")

    @renewed
    def drain(self) -> None:
        """Replace every connection: close the idle ones now, and the checked-out ones when they are returned."""
        self._discard(self._core.drain("drained"), "drained")

    @renewed
    def resize(self, minconn: int, maxconn: int) -> None:
        """Change the limits: close surplus idle connections now, and surplus checked-out ones when they are returned.

        Args:
            minconn: the new minimum, as in the constructor.
            maxconn: the new maximum, as in the constructor.

        Raises:
            ValueError: a limit is invalid; nothing is changed then.
        """
        outage = self._core.outage
        self._discard(self._core.resize(*limits(minconn, maxconn)), "resized")
        self._connectors.kick()
        has_ended = outage is not None and not outage.is_refusal and self._core.outage is None
        if outage is not None and has_ended and self._observer is not None:
            self._tell(self._observer.outage_ended, outage.attempts, monotonic() - outage.since)

    @renewed
    def check(self) -> None:
        """Check every idle connection, one by one, by ``check`` or a query; discard those that do not pass in 5 s."""
        check_all(self)

    # State

    @property
    def name(self) -> str:
        """Name of the pool, unique among the live pools of this process."""
        return self._name

    @property
    def minconn(self) -> int:
        """Minimum number of connections, kept open at all times."""
        return self._core.minconn

    @property
    def maxconn(self) -> int:
        """Maximum number of connections at any time."""
        return self._core.maxconn

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._core.state is State.CLOSED

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        return self._target.address

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        return self._target.port

    @property
    def namespace(self) -> str:
        """Name of the database."""
        return self._target.namespace

    @property
    def long_hold(self) -> float:
        """Hold time in seconds after which a checkout is reported as a long hold; infinite if switched off."""
        return self._config.long_hold

    @renewed
    def stats(self) -> PoolStats:
        """Return the pool's levels and totals, read without a lock."""
        core = self._core
        used = max(0, core.used)
        utilization = used / core.maxconn
        return PoolStats(
            name=self._name,
            status=self._status(utilization),
            minconn=core.minconn,
            maxconn=core.maxconn,
            size=len(core.members),
            used=used,
            idle=len(core.idle),
            connecting=len(core.opening),
            waiting=len(core.queue),
            utilization=utilization,
            oldest_hold=core.oldest_hold(monotonic()),
            checkouts=core.checkouts(),
            queued=core.queued,
            timeouts=core.timeouts,
            errors=core.errors,
            retries=core.retries,
            long_holds=core.long_holds,
            created=core.created,
            discarded=dict(core.discarded),
            wait_seconds=core.wait_seconds,
            hold_seconds=core.total_hold(),
        )

    def _status(self, utilization: float) -> str:
        core = self._core
        if core.state is not State.OPEN:
            return str(core.state.value)
        is_reached = core.outage is None or core.outage.is_refusal
        return level_name(utilization) if is_reached else "unreachable"

    @renewed
    def holders(self) -> list[Holder]:
        """Return a `Holder` for each connection that is checked out, the longest hold first."""
        now = monotonic()
        return [checkout.holder(now) for checkout in self._core.holds_now()]

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<ConnectionPool {stats.name!r} {stats.status}: {stats.used} of {stats.maxconn} in use, "
            f"{stats.idle} idle, {stats.connecting} connecting, {stats.waiting} waiting>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_copy(self, *_args: object) -> NoReturn:
        raise TypeError("a ConnectionPool cannot be copied or pickled: make one in each process")

    __copy__ = __deepcopy__ = __reduce_ex__ = _refuse_copy
    __del__ = leave_figures

    def _after_fork(self) -> None:
        """Restart the pool in a forked child, without sending anything over the sockets inherited from the parent."""
        parents = self._core
        for idle in [slot.conn for slot in parents.idle if slot.conn is not None]:
            with suppress(psycopg2.Error, OSError):  # psycopg2 does not close a socket that another process opened
                os.close(idle.fileno())
        for slot in parents.members:
            slot.condemn("forked")
        lent = [slot for slot in parents.members if slot.checkout is not None]
        self._inherited.update(conn for slot in lent if (conn := slot.ref()) is not None)
        self._start_afresh(parents.minconn, parents.maxconn)
        self._core.state = parents.state
        self._core.discarded["forked"] = len(parents.idle) + len(lent)
        if self._observer is not None:
            self._tell(self._observer.attached, self)


def _default_observer() -> PoolObserver:
    from otel_pgpool.telemetry import Telemetry  # noqa: PLC0415 - not needed by a pool with another observer

    return Telemetry()
