"""The adapter of SQLAlchemy's pools: the methods that are wrapped, the engines that are tracked, a pool's state."""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Engine
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.pool import Pool, QueuePool
from sqlalchemy.util.queue import Queue
from wrapt import FunctionWrapper

from otel_pgpool.driver.dsn import UnknownTarget
from otel_pgpool.driver.messages import known
from otel_pgpool.instrumentation.adapters.psycopg2.driver import Psycopg2Driver, parameters_of
from otel_pgpool.instrumentation.adapters.replacements import Replacements
from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import (
    DRIVER,
    engine_name,
    engine_target,
    pool_name,
    pool_owner,
    read_levels,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.events import EventListeners
from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections, reset_pool
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import dialect_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.wrappers import EngineCalls
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.session import find_instances
from otel_pgpool.runtime.fork import is_here, renew
from otel_pgpool.runtime.text import LONGEST_NAME, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.driver.dsn import Target
    from otel_pgpool.instrumentation.adapters.base import Levels, PoolTarget
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker

NUMBER = re.compile(r"\d+(?:\.\d+)?")


class SqlalchemyAdapter(Psycopg2Driver):
    """The adapter of SQLAlchemy's pools on psycopg2, with an engine or without."""

    def __init__(self, session: InstrumentationSession) -> None:
        self._session = session
        self._table = CheckoutTable()
        self._inherited = InheritedConnections()
        self._events = EventListeners(session, self._table, self._inherited, self._engine_disposed)
        self._calls = EngineCalls(session, self._table, self._track_engine, self._track_pool)
        self._engines: weakref.WeakKeyDictionary[Engine, PoolTracker] = weakref.WeakKeyDictionary()
        self._replacements = Replacements()

    @classmethod
    def pool_of(cls, given: Any) -> Any:
        """Return the pool that an object is, or that an engine has."""
        engine = getattr(given, "sync_engine", given)  # of an asynchronous engine
        pool = engine.pool if isinstance(engine, Engine) else given
        return pool if isinstance(pool, Pool) else None

    def install(self) -> None:
        """Add the listeners, wrap the methods, and track the engines that have connections."""
        self._events.add()
        wrap = self._replacements.wrap
        wrap(Engine, "raw_connection", self._calls.wrap_raw_connection)
        wrap(Engine, "dispose", _wrap_dispose)
        wrap(Pool, "connect", self._calls.wrap_pool_connect)
        wrap(Queue, "get", self._calls.wrap_queue_get)
        for engine in find_instances({Engine}):  # so that a pool is reported before its next checkout
            with ignore_errors:  # a dialect of the application may raise
                if isinstance(engine.pool, QueuePool) and any(read_levels(engine.pool)[2:4]):
                    self._track_engine(engine)

    def uninstall(self) -> None:
        """Restore everything, except wrappers that third-party code has wrapped since; these call the originals."""
        self._replacements.restore()
        self._inherited.restore_dialects()
        self._events.remove()

    # Which pools are tracked

    def _track_engine(self, engine: Engine) -> PoolTracker | None:
        """Return the tracker of an engine's pool, which continues that of its previous pool; None on failure."""
        try:
            if not self._session.is_on or getattr(engine.dialect, "driver", None) != DRIVER:
                return None
            engine = pool_owner(engine)
            self._events.add_to_dialect(engine.dialect)
            self._inherited.protect(engine.dialect)
            tracker = self._session.track(
                engine.pool,
                self,
                name=engine_name(engine),
                target=engine_target(engine),
                predecessor=self._engines.get(engine),
            )
            if tracker is not None:
                self._engines[engine] = tracker
                tracker.fast_path_owner = self._calls
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._session.guard.log_error(error)
            return None
        return tracker

    def _track_pool(self, pool: Any, conn: Any) -> PoolTracker | None:
        """Return the tracker of a pool without an engine, known by its first connection."""
        self._inherited.protect(dialect_of(pool))
        target = UnknownTarget(parameters_of(conn))
        return self._session.track(pool, self, name=pool_name(pool, conn), target=target)

    def _engine_disposed(self, engine: Engine) -> None:
        """Track the engine's new pool. Callers that still wait for the old pool stay included in the levels."""
        if pool_owner(engine) in self._engines:
            self._track_engine(engine)

    # The state of a pool

    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool, or those of its tracker if the pool keeps none."""
        return read_levels(pool)

    def target(self, pool: Any) -> Target:  # noqa: ARG002 - only its engine or a connection knows
        """Return an unknown target: a pool has none, only its engine and its connections do."""
        return UnknownTarget()

    def error_text(self, error: BaseException, target: PoolTarget) -> str:
        """Return the known part of a psycopg2 error's text, or SQLAlchemy's own about an exhausted pool."""
        if isinstance(error, QueuePoolTimeout):
            text = text_of(error)
            return known(text, NUMBER.findall(text[:LONGEST_NAME]))
        return super().error_text(error, target)

    def forget_inherited(self, pool: Any) -> int:
        """Remove the parent's connections in a forked child, closing the sockets of idle ones; return their number.

        The pool is reset in place, because the application may keep a reference to it, and a pool without an engine has
        no owner that could get another.
        """
        self._table.leave_held_to_parent(self._inherited)
        idle = reset_pool(pool)
        self._table.leave_to_parent(pool, idle, self._inherited)
        return len(idle)


def _wrap_dispose(original: Callable[..., Any]) -> Any:
    """Wrap ``Engine.dispose``, which must not close a parent's connections in a forked child."""

    def dispose(wrapped: Callable[..., Any], _engine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_here:
            renew()
        return wrapped(*args, **kwargs)

    return FunctionWrapper(original, dispose)
