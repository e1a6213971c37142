"""The adapter of SQLAlchemy's pools: the methods that are wrapped, the engines that are tracked, a pool's state."""

from __future__ import annotations

import weakref
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool, QueuePool, SingletonThreadPool
from sqlalchemy.util.queue import AsyncAdaptedQueue, Queue
from wrapt import FunctionWrapper

from otel_pgpool.instrumentation.adapters.base import Installation
from otel_pgpool.instrumentation.adapters.replacements import Replacements
from otel_pgpool.instrumentation.adapters.sqlalchemy import light
from otel_pgpool.instrumentation.adapters.sqlalchemy.checkouts import CheckoutTable, current_call_key, is_light
from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers import DATABASE, driver_of_dialect
from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import (
    engine_name,
    engine_of,
    engine_target,
    pool_name,
    pool_owner,
    read_levels,
)
from otel_pgpool.instrumentation.adapters.sqlalchemy.events import EventListeners
from otel_pgpool.instrumentation.adapters.sqlalchemy.fork import InheritedConnections
from otel_pgpool.instrumentation.adapters.sqlalchemy.pool_reader import EnginePoolReader
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import dialect_of
from otel_pgpool.instrumentation.adapters.sqlalchemy.wrappers import EngineCalls
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.session import find_instances, subclasses_of
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.session import InstrumentationSession
    from otel_pgpool.instrumentation.tracker import PoolTracker


class SqlalchemyAdapter(Installation):
    """The adapter of SQLAlchemy's pools on drivers of PostgreSQL, with an engine or without."""

    def __init__(self, session: InstrumentationSession) -> None:
        self._session = session
        self._table = CheckoutTable()
        self._inherited = InheritedConnections()
        self._events = EventListeners(session, self._table, self._inherited, self._engine_disposed)
        self._calls = EngineCalls(session, self._table, self._track_engine, self._track_pool)
        self._readers: dict[EngineDriver, EnginePoolReader] = {}
        self._engines: weakref.WeakKeyDictionary[Engine, PoolTracker] = weakref.WeakKeyDictionary()
        self._replacements = Replacements()

    @classmethod
    def pool_of(cls, given: Any) -> Any:
        """Return the pool that an object is, or that an engine has."""
        engine = engine_of(given)
        pool = given if engine is None else engine.pool
        return pool if isinstance(pool, Pool) else None

    @classmethod
    def check_observable(cls, given: Any) -> None:
        """Raise an error if an engine, or a pool, is one of another database.

        A pool without an engine may be accepted although its database is unknown.
        """
        engine, database = engine_of(given), None
        with ignore_errors:  # a dialect of the application may raise
            database = getattr(dialect_of(given) if engine is None else engine.dialect, "name", None)
        if database not in (None, DATABASE):
            raise TypeError(f"expected a pool or an engine of {DATABASE}, not {type(given).__qualname__} of {database}")

    @classmethod
    def owner_of(cls, given: Any) -> Any:
        """Return the engine that an object is, or that has a pool; None if no engine has the pool."""
        engine = engine_of(given)
        if engine is None:
            engine = next((each for each in find_instances({Engine}) if vars(each).get("pool") is given), None)
        return None if engine is None else pool_owner(engine)

    def track_selected(self, pool: Any) -> None:
        """Start to track the pool of an engine; one without an engine is only known by its first connection."""
        if isinstance(pool, Engine):
            self._track_engine(pool)

    def install(self) -> None:
        """Add the listeners, wrap the methods, and track the engines that have connections."""
        self._events.add()
        wrap = self._replacements.wrap
        wrap_lightly = partial(light.wrap_raw_connection, self._calls)
        wrap(Engine, "raw_connection", wrap_lightly if is_light(self._session) else self._calls.wrap_raw_connection)
        wrap(Engine, "dispose", _wrap_dispose)
        self._replacements.set(Pool, "__init_subclass__", self._make_init_subclass())
        for owner in dict.fromkeys(subclasses_of(Pool)):
            self._separate(owner)
        wrap(Pool, "connect", self._calls.wrap_pool_connect)
        wrap(SingletonThreadPool, "connect", self._calls.wrap_pool_connect)  # it has its own
        wrap(Queue, "get", partial(self._calls.wrap_queue_get, key=get_ident))
        wrap(
            AsyncAdaptedQueue, "get", partial(self._calls.wrap_queue_get, key=partial(current_call_key, is_async=True))
        )
        for engine in find_instances({Engine}):  # so that a pool is reported before its next checkout
            with ignore_errors:  # a dialect of the application may raise
                if isinstance(engine.pool, QueuePool) and any(read_levels(engine.pool)[2:4]):
                    self._track_engine(engine)

    def uninstall(self) -> None:
        """Restore everything, except wrappers that third-party code has wrapped since; these call the originals."""
        self._replacements.restore()
        self._inherited.restore_dialects()
        self._events.remove()

    def _separate(self, owner: type) -> None:
        """Let pools of a class with a ``__getattr__``, which may delegate to another pool, not show its tracker."""
        if any("__getattr__" in vars(base) for base in owner.__mro__):
            with ignore_errors:  # whatever a metaclass raises
                self._replacements.set(owner, TRACKER_ATTR, None)

    def _make_init_subclass(self) -> Any:
        """Return a method that separates the pools of future classes."""
        session, separate = self._session, self._separate

        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:  # noqa: N807 - replaces the class's own
            super(Pool, cls).__init_subclass__(**kwargs)  # type: ignore[misc]  # cls is one of them
            if session.is_on:
                separate(cls)

        return classmethod(__init_subclass__)

    # Which pools are tracked

    def _track_engine(self, engine: Engine) -> PoolTracker | None:
        """Return the tracker of an engine's pool, which continues that of the previous pool; None on failure."""
        try:
            engine = pool_owner(engine)
            pool, predecessor = engine.pool, self._engines.get(engine)
            driver = driver_of_dialect(engine.dialect)
            if driver is None:
                self._session.ignore(pool)
                return None
            if not self._session.observes(pool, self.kind, predecessor, engine):
                return None
            self._events.add_to_dialect(engine.dialect)
            self._inherited.protect(engine.dialect)
            tracker = self._session.track(
                pool,
                self._reader_on(driver),
                name=engine_name(engine),
                target=engine_target(engine),
                predecessor=predecessor,
                owner=engine,
            )
            if tracker is not None:
                self._engines[engine] = tracker
                tracker.fast_path_owner = self._calls.async_owner if engine.dialect.is_async else self._calls
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._session.guard.log_error(error)
            return None
        return tracker

    def _track_pool(self, pool: Any, conn: Any, driver: EngineDriver) -> PoolTracker | None:
        """Return the tracker of a pool without an engine, known by its first connection."""
        if not self._session.observes(pool, self.kind):
            return None
        self._inherited.protect(dialect_of(pool))
        target = driver.target_of_connection(conn)
        return self._session.track(pool, self._reader_on(driver), name=pool_name(pool, target), target=target)

    def _reader_on(self, driver: EngineDriver) -> EnginePoolReader:
        """Return the reader for the trackers of pools on a driver."""
        return self._readers.setdefault(driver, EnginePoolReader(driver, self._table, self._inherited))

    def _engine_disposed(self, engine: Engine) -> None:
        """Track the engine's new pool. Callers that still wait for the old pool stay included in the levels."""
        if pool_owner(engine) in self._engines:
            self._track_engine(engine)


def _wrap_dispose(original: Callable[..., Any]) -> Any:
    """Wrap ``Engine.dispose``, which must not close a parent's connections in a forked child."""

    def dispose(wrapped: Callable[..., Any], _engine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not is_here:
            renew()
        return wrapped(*args, **kwargs)

    return FunctionWrapper(original, dispose)
