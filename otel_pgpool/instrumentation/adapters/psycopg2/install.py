"""The adapter of the pools of ``psycopg2.pool``: the classes and methods that are wrapped, and a pool's state."""

from __future__ import annotations

from functools import partial
from logging import DEBUG
from types import FunctionType
from typing import TYPE_CHECKING, Any

from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

from otel_pgpool.driver.session import close_inherited
from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.adapters.psycopg2 import fast_path, private
from otel_pgpool.instrumentation.adapters.psycopg2.arguments import runs_later
from otel_pgpool.instrumentation.adapters.psycopg2.driver import Psycopg2Driver
from otel_pgpool.instrumentation.adapters.psycopg2.failures import EXHAUSTED, is_exhausted
from otel_pgpool.instrumentation.adapters.psycopg2.monitor import connector
from otel_pgpool.instrumentation.adapters.psycopg2.target import target_of_arguments
from otel_pgpool.instrumentation.adapters.psycopg2.wrappers import PoolCalls
from otel_pgpool.instrumentation.adapters.replacements import Replacements
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.session import find_instances, subclasses_of
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.driver.target import Target
    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker

    Method = Callable[..., Any]

OWN_CLASSES = (SimpleConnectionPool, ThreadedConnectionPool)
ROLES = ("getconn", "putconn", "closeall")


class Psycopg2Adapter(Psycopg2Driver):
    """The adapter of psycopg2's pools.

    If a class defines its own ``getconn``, that is wrapped too, so that the span covers its whole wait and no code of
    this package runs under the pool's lock. Aliases of psycopg2's methods are wrapped as well. A subclass of
    ``AbstractConnectionPool`` without ``getconn`` is wrapped at ``_getconn`` and ``_putconn``.
    """

    def __init__(self, session: InstrumentationSession) -> None:
        self._session = session
        self._calls = PoolCalls(session, self._track)
        self._roles = {getattr(cls, role): role for cls in OWN_CLASSES for role in ROLES}  # by unwrapped method
        self._replacements = Replacements()

    @classmethod
    def pool_of(cls, given: Any) -> Any:
        """Return the pool that an object is."""
        return given if isinstance(given, AbstractConnectionPool) else None

    def track_selected(self, pool: Any) -> None:
        """Start to track a pool."""
        self._calls.tracker_of(pool)

    # Which methods are wrapped

    def install(self) -> None:
        """Wrap the present and future classes, and track the present pools."""
        wrap = self._replacements.wrap
        wrap(AbstractConnectionPool, "__init__", self._calls.wrap_init)
        wrap(AbstractConnectionPool, "_connect", self._calls.wrap_connect)
        self._replacements.set(AbstractConnectionPool, "__init_subclass__", self._make_init_subclass())
        classes = dict.fromkeys(subclasses_of(AbstractConnectionPool))  # each once, bases first
        for owner in classes:
            self._wrap(owner)
        for pool in find_instances(classes):  # so that a pool is reported before its next checkout, or a fork
            with ignore_errors:
                if not getattr(pool, "closed", True):
                    self._calls.tracker_of(pool)

    def uninstall(self) -> None:
        """Restore the original methods.

        The wrappers may still be called: by third-party wrappers put around them since, or through a ``pool.getconn``
        that the application stored.
        """
        self._replacements.restore()

    def _wrap(self, owner: type) -> None:
        """Wrap the methods that a class defines. If the class refuses, only psycopg2's methods are observed."""
        try:
            self._wrap_methods(owner)
        except Exception as error:  # noqa: BLE001 - whatever a metaclass raises
            log_failure(f"failed to instrument {owner.__qualname__}; it stays uninstrumented", error, DEBUG)

    def _wrap_methods(self, owner: type) -> None:
        wrappers, wrap = self._wrappers_for(owner), self._replacements.wrap
        for name, method in list(vars(owner).items()):
            if isinstance(method, FunctionType) and not runs_later(method):
                role = name if name in wrappers else self._roles.get(method)
                if role is not None:
                    wrap(owner, name, wrappers[role])
        if "__getattr__" in vars(owner):  # it may delegate to another pool, whose tracker is not this pool's
            self._replacements.set(owner, TRACKER_ATTR, None)
        for role in ROLES:
            step = f"_{role}"
            if not hasattr(owner, role) and (step in vars(owner) or getattr(owner, step) in self._roles):
                wrap(owner, step, wrappers[role])

    def _wrappers_for(self, owner: type) -> dict[str, Callable[[Method], Any]]:
        """Return the functions that wrap a class's methods, by the method's role."""
        calls = self._calls
        wrappers: dict[str, Callable[[Method], Any]] = {
            "getconn": calls.wrap_getconn,
            "putconn": calls.wrap_putconn,
            "closeall": calls.wrap_closeall,
            "_connect": calls.wrap_connect,
        }
        if owner not in OWN_CLASSES:
            return wrappers
        getconn, putconn = fast_path.wrap_getconn, fast_path.wrap_putconn
        if self._session.options.telemetry.spans == "off":
            getconn, putconn = fast_path.wrap_getconn_lightly, fast_path.wrap_putconn_lightly
        return wrappers | {"getconn": partial(getconn, calls), "putconn": partial(putconn, calls, owner)}

    def _make_init_subclass(self) -> Any:
        """Return a method that wraps future classes."""
        session, wrap = self._session, self._wrap

        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:  # noqa: N807 - replaces the class's own
            super(AbstractConnectionPool, cls).__init_subclass__(**kwargs)  # type: ignore[misc]  # cls is one of them
            if session.is_on:
                wrap(cls)

        return classmethod(__init_subclass__)

    def _track(self, pool: Any) -> PoolTracker | None:
        """Create the tracker of a pool that was not tracked before."""
        if not private.is_initialized(pool):
            return None
        tracker = self._session.track(pool, self)
        if tracker is not None and tracker.queue is None and type(pool) in OWN_CLASSES:
            tracker.fast_path_owner = self._calls
        return tracker

    # The state of a pool

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool. A closed pool has no connections, but lists those that were checked out."""
        used, idle = (0, 0) if pool.closed else private.counts(pool)
        return Levels(pool.minconn, pool.maxconn, used, idle, pool.minconn, closed=bool(pool.closed))

    def target(self, pool: Any) -> Target:
        """Return the target of a pool's connects."""
        return target_of_arguments(*private.connect_arguments(pool))

    def monitor_connect(self, pool: Any) -> MonitorConnect:
        """Return the function that opens monitoring connections."""
        return connector(*private.connect_arguments(pool))

    def is_idle(self, pool: Any, conn: Any) -> bool:
        """Return whether a connection is idle: a subclass may release by a method that is not wrapped."""
        return any(each is conn for each in private.idle_connections(pool))

    def can_wait(self, pool: Any) -> bool:
        """Return whether callers may wait for a pool: only where another thread may release a connection."""
        return isinstance(pool, ThreadedConnectionPool)

    def is_exhausted(self, error: BaseException) -> bool:
        """Return whether the pool raised an error because all of its connections are held."""
        return is_exhausted(error)

    def exhausted_error(self) -> Exception:
        """Create the error of an exhausted pool."""
        return PoolError(EXHAUSTED)

    def forget_inherited(self, pool: Any) -> int:
        """Remove the parent's connections from a pool in a forked child; return their number."""
        idle, used = private.remove_all(pool)
        self._calls.reset_after_fork(used)
        for conn in idle:
            close_inherited(conn)
        return len(idle) + len(used)
