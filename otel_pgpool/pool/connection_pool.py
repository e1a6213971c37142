"""The public class `ConnectionPool`."""

from __future__ import annotations

import os
import weakref
from functools import cache
from inspect import signature
from sys import _getframe
from typing import TYPE_CHECKING, Any, Generic

from otel_pgpool.config import PoolConfig, validate_expected_hold
from otel_pgpool.driver.connect_target import ConnectTarget
from otel_pgpool.driver.dsn import merge
from otel_pgpool.errors import PoolError
from otel_pgpool.pool.call_site import call_sites
from otel_pgpool.pool.checkout import Slot, begin
from otel_pgpool.pool.context import CheckoutContext, ConnectionT_co, LongCheckoutContext
from otel_pgpool.pool.from_env import arguments_from, warn_of_unknown
from otel_pgpool.pool.live_options import check_assignment
from otel_pgpool.pool.parts import Parts
from otel_pgpool.pool.psycopg_pool_names import PsycopgPoolNames
from otel_pgpool.pool.reentrant import ReentrantContext
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.thread_cache import reset_thread_cache
from otel_pgpool.validation import validate_bool, validate_observer, validate_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import EllipsisType
    from typing import Literal

    from psycopg2.extensions import connection as Connection  # noqa: N812 - `connection` is a method of the pool
    from psycopg2.extensions import cursor
    from typing_extensions import Self

    from otel_pgpool.observer import PoolObserver
    from otel_pgpool.pool.monitor_source import PoolHolds


class ConnectionPool(PsycopgPoolNames, Generic[ConnectionT_co]):
    """A pool of psycopg2 connections in which every checkout is an OpenTelemetry span.

    The first arguments are those of ``psycopg2.pool.ThreadedConnectionPool``: ``minconn``, ``maxconn``, then the
    arguments of ``psycopg2.connect``. The pool opens ``minconn`` connections at once and more on demand. Callers get
    connections in the order in which they asked, and wait where psycopg2's pools raise. Threads may share a pool. A
    forked child opens connections of its own.

    The class is generic in the class of its connections, which ``connection_factory`` decides.

    Args:
        minconn: minimum number of connections, kept open at all times; at least 0.
        maxconn: maximum number of connections at any time; 1 to 262143, PostgreSQL's bound on ``max_connections``.
        dsn: for ``psycopg2.connect``: a URL or ``key=value`` string.
        connection_factory: for ``psycopg2.connect``: a subclass of ``psycopg2.extensions.connection``, or a function
            that returns a connection.
        cursor_factory: for ``psycopg2.connect``.
        min_size: another name of ``minconn``, as in psycopg_pool.
        max_size: another name of ``maxconn``, as in psycopg_pool.
        name: name of the pool in telemetry, by default ``host:port/dbname``. If a live pool of this process has the
            name already, `` #2``, `` #3`` and so on is added.
        timeout: longest wait for a connection in seconds; by default ``OTEL_PGPOOL_TIMEOUT``, or else
            ``DB_CONNECTION_TIMEOUT``, or else 30. With 0, a checkout gets an idle connection or raises at once.
        max_waiting: maximum number of waiters; a further checkout raises `TooManyRequests`. 0 for no limit.
        max_attempts: failed attempts after which a checkout gives up before its timeout; None for no limit.
        max_retries: an older name of ``max_attempts``; 0 counts as 1.
        max_lifetime: maximum age of a connection in seconds, shortened by up to 10 % at random; None for no limit.
        max_idle: seconds after which an idle connection above ``minconn`` is closed; None for never.
        keepalive: seconds, shortened by up to 20 % at random, after which an idle connection is pinged; None for never.
        long_hold: hold time in seconds after which a checkout is reported as a long hold; by default
            ``OTEL_PGPOOL_LONG_HOLD``, or 1 if that is not set; None or 0 for never.
        check: how an idle connection is checked before it is handed out. ``"auto"``: by polling its socket, and by a
            ``SELECT 1`` after 30 s without use. A callable: called with the connection if that was idle for more than
            50 ms; raises if the connection must not be used. None: not at all.
        configure: callable that prepares each new connection, and each released one after ``reset``. The server has 5 s
            to answer all its queries and to commit.
        reset: callable that cleans up each released connection, such as `reset_session`. The same bound of 5 s applies.
        credentials: callable that returns a mapping of keyword arguments to merge into those of ``psycopg2.connect``,
            called before each connect. With it, and libpq 16 or later, a password is sent in clear text over TLS only,
            unless libpq's parameter ``require_auth`` is given.
        evict_on: which errors of a ``with pool.connection()`` block, the outermost one, cost the connection its place:
            SQLSTATEs (``"57014"``) and classes of them (``"XX"``), or a callable that gets the error and returns True.
            None: only those after which the session has ended or cannot be reset.
        reentrant: True to let a ``with pool.connection()`` block inside another one of the same thread, greenlet or
            task use the same connection. The outermost block commits or rolls back; a block inside has a savepoint.
        reconnect_timeout: seconds for which every attempt to connect has failed when ``reconnect_failed`` is called.
        reconnect_failed: callable that is called with the pool if no connection could be opened for
            ``reconnect_timeout``, once until one can be opened again. It runs in a thread of its own; the pool goes on
            to connect, and logs an error that it raises.
        open: False to open no connection before `open` or the first checkout, for pre-fork servers.
        observer: a `PoolObserver` to notify of the pool's events. By default `Telemetry`, which reports to
            OpenTelemetry; None for no telemetry.
        connect_kwargs: mapping of further arguments for ``psycopg2.connect``, also of those that are named as an
            option of the pool.
        **kwargs: for ``psycopg2.connect``.

    Raises:
        ValueError: an option, an environment variable or the DSN is invalid; the message contains its name and what is
            accepted.
        psycopg2.Error: the first attempt to connect failed.
        PoolTimeout: ``minconn`` connections could not be opened within ``timeout``.
    """

    def __init__(
        self,
        minconn: int | EllipsisType = ...,
        maxconn: int | EllipsisType = ...,
        dsn: str | None = None,
        connection_factory: Callable[..., ConnectionT_co] | None = None,
        cursor_factory: Callable[..., cursor] | None = None,
        *,
        min_size: int | EllipsisType = ...,
        max_size: int | EllipsisType = ...,
        name: str | None = None,
        timeout: float | None = None,
        max_waiting: int = 0,
        max_attempts: int | None = None,
        max_retries: int | None = None,
        max_lifetime: float | None = 3600.0,
        max_idle: float | None = 600.0,
        keepalive: float | None = None,
        long_hold: float | EllipsisType | None = ...,
        check: Callable[[ConnectionT_co], object] | Literal["auto"] | None = "auto",
        configure: Callable[[ConnectionT_co], object] | None = None,
        reset: Callable[[ConnectionT_co], object] | None = None,
        credentials: Callable[[], Mapping[str, Any]] | None = None,
        evict_on: Callable[[BaseException], object] | Iterable[str] | None = None,
        reentrant: bool = False,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[ConnectionPool[ConnectionT_co]], object] | None = None,
        open: bool = True,  # noqa: A002 - the name that psycopg_pool's users know
        observer: PoolObserver | EllipsisType | None = ...,
        connect_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = PoolConfig.of(
            minconn,
            maxconn,
            min_size=min_size,
            max_size=max_size,
            name=name,
            timeout=timeout,
            max_waiting=max_waiting,
            max_attempts=max_attempts,
            max_retries=max_retries,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            keepalive=keepalive,
            long_hold=long_hold,
            check=check,
            configure=configure,
            reset=reset,
            credentials=credentials,
            evict_on=evict_on,
            reentrant=reentrant,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
        )
        validate_bool("open", open)
        validate_observer(observer)
        reset_thread_cache()
        self._context: type[CheckoutContext[ConnectionT_co]]
        self._long_context: type[LongCheckoutContext[ConnectionT_co]]
        self._context, self._long_context = CheckoutContext, LongCheckoutContext
        if config.reentrant:
            self._context = self._long_context = ReentrantContext
        self._inherited: weakref.WeakSet[Connection] = weakref.WeakSet()
        named = {"dsn": dsn, "connection_factory": connection_factory, "cursor_factory": cursor_factory}
        arguments = {name: value for name, value in named.items() if value is not None} | kwargs
        target = ConnectTarget((), merge(connect_kwargs, arguments, _options()), credentials)
        super().__init__(Parts(config, target, _default() if observer is ... else observer))
        self._parts.register(self, type(self)._reset_after_fork, type(self)._holds)  # noqa: SLF001 - methods of this class
        if self._parts.observer is not None:
            self._parts.observer.attached(self)  # not guarded: an error here is a misuse, which the caller should see
        if open:
            try:
                self.open()
            except BaseException:
                self.close(0)
                raise

    @classmethod
    def from_env(cls, *, connection_factory: Callable[..., ConnectionT_co] | None = None, **options: Any) -> Self:
        """Create a pool from the environment, for programs whose platform configures them by variables.

        ``DATABASE_URL`` is the DSN; if it is not set, libpq reads its own variables, such as ``PGHOST``. A URL of
        SQLAlchemy may name the driver, as in ``postgresql+psycopg2://``. The options come from variables such as
        ``OTEL_PGPOOL_MAXCONN``; without them, ``minconn`` is 1 and ``maxconn`` is 10.

        A warning names each other variable that begins with ``OTEL_PGPOOL_``.

        Args:
            connection_factory: as for the constructor.
            **options: arguments of the constructor, which override the environment.

        Raises:
            ValueError: a variable is invalid, or the environment names no database; the message contains the name of
                the variable, but nothing that may be a password.
            Exception: as for the constructor.
        """
        if connection_factory is not None:
            options["connection_factory"] = connection_factory
        warn_of_unknown(os.environ)
        return cls(**arguments_from(os.environ, options))

    # Checkout and release

    def connection(
        self, timeout: float | None = None, *, expected_hold: float | EllipsisType | None = ...
    ) -> CheckoutContext[ConnectionT_co]:
        """Check out a connection for a ``with`` block, and release it at the block's end.

        A clean exit commits, an exception rolls back; a connection in autocommit mode is neither committed nor rolled
        back. The object that this method returns can be entered several times, one after the other.

        Args:
            timeout: longest wait in seconds, in place of the pool's ``timeout``.
            expected_hold: hold time in seconds after which this checkout is reported as a long hold, in place of the
                pool's ``long_hold``; None for never. The hold does not count in ``PoolStats.oldest_hold``. For
                listeners and batch jobs.

        Raises:
            ValueError: ``timeout`` or ``expected_hold`` is invalid.
            PoolTimeout: on entering the block, no connection became available in time.
            ConnectionFailed: on entering the block, ``max_attempts`` is reached.
            TooManyRequests: on entering the block, the queue is full.
            PoolClosed: on entering the block, the pool is closed.
            psycopg2.Error: on leaving the block, the commit failed.
        """
        if timeout is not None:
            timeout = validate_seconds("timeout", timeout)
        frame = _getframe(1)
        context: CheckoutContext[ConnectionT_co]
        context = self._context() if expected_hold is ... else self._long_context.expecting(expected_hold)
        context.owner = self
        context.parts = self._parts
        context.timeout = timeout
        context.stack = frame.f_code, frame.f_lasti
        context.checkout = context.conn = None
        return context

    def getconn(
        self, key: object = None, *, timeout: float | None = None, expected_hold: float | EllipsisType | None = ...
    ) -> ConnectionT_co:
        """Check out a connection, which `putconn` releases.

        Args:
            key: a hashable name for the checkout. As long as the checkout lasts, the same key yields the same
                connection, as in psycopg2's pools.
            timeout: longest wait in seconds, in place of the pool's ``timeout``.
            expected_hold: as for `connection`.

        Raises:
            ValueError: ``timeout`` or ``expected_hold`` is invalid.
            PoolTimeout: no connection became available in time.
            ConnectionFailed: ``max_attempts`` is reached.
            TooManyRequests: the queue is full.
            PoolClosed: the pool is closed.
        """
        if timeout is not None:
            timeout = validate_seconds("timeout", timeout)
        hold = None if expected_hold is ... else validate_expected_hold(expected_hold)
        if not is_here:
            renew()
        parts = self._parts
        if key is not None and (held := parts.core.by_key(key)[1]) is not None:
            return held  # type: ignore[return-value]  # made by `connection_factory`
        checkout = begin(monotonic(), call_sites(_getframe(1)))
        checkout.expected_hold = hold
        try:
            conn = parts.acquirer.acquire(checkout, timeout)
        except BaseException as error:
            parts.acquirer.record_failure(checkout, None, error)  # completes what an interrupt may have cut short
            raise
        if hold is not None:
            parts.expect_hold(checkout)
        if key is not None:
            held = parts.core.enter_key(key, checkout.slot, conn)
            if held is not conn:  # another thread has checked out by this key first
                self.putconn(conn)
                return held  # type: ignore[return-value]  # as above
        return conn  # type: ignore[return-value]  # as above

    def putconn(self, conn: Connection | None = None, key: object = None, close: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of psycopg2's pools
        """Release a connection that `getconn` checked out; a transaction in progress is rolled back.

        Args:
            conn: the connection; may be omitted if ``key`` is given.
            key: the key under which the connection was checked out.
            close: True to close the connection instead of keeping it.

        Raises:
            PoolError: the connection is not checked out from this pool, or not under this key, or belongs to a
                ``with pool.connection()`` block, which alone releases it.
        """
        if not is_here:
            renew()
        core = self._parts.core
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
                f"pool {core.name!r}: trying to put unkeyed connection: it is not checked out from this pool"
            )
        if key is not None and core.by_key(key)[0] is not slot:
            raise PoolError(f"pool {core.name!r}: cannot release this connection: it is not checked out under this key")
        if checkout.block:
            raise PoolError(
                f"pool {core.name!r}: cannot release this connection: a `with pool.connection()` block has it, and "
                "releases it at its end; leave out putconn(), or call conn.close() if the connection has to go"
            )
        self._parts.releaser.release_by_hand(checkout, conn, close=close)

    if not TYPE_CHECKING:  # a type checker would accept every name

        def __setattr__(self, name: str, value: object) -> None:
            if type(self) is ConnectionPool:
                check_assignment(ConnectionPool, name, _options())
            super().__setattr__(name, value)

    def _holds(self) -> PoolHolds:
        return self._parts.holds()

    def _reset_after_fork(self) -> None:
        """Restart the pool in a forked child, without sending anything over the sockets inherited from the parent."""
        self._inherited.update(self._parts.reset_after_fork())
        if self._parts.observer is not None:
            self._parts.notifier.notify(self._parts.observer.attached, self)


@cache
def _options() -> frozenset[str]:
    """Return the names of the constructor's options."""
    return frozenset(signature(ConnectionPool).parameters)


def _default() -> PoolObserver:
    """Return the default observer."""
    from otel_pgpool.telemetry import Telemetry  # noqa: PLC0415 - not needed by a pool with another observer

    return Telemetry()
