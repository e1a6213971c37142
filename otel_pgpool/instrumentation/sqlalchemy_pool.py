"""The instrumentation of SQLAlchemy's pools on psycopg2, 1.4 and 2, by SQLAlchemy's public events where possible."""

from __future__ import annotations

import threading
import weakref
from functools import partial, wraps
from sys import _getframe
from time import time
from typing import TYPE_CHECKING, Any

import psycopg2
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.events import DialectEvents
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as QueuePoolTimeout
from sqlalchemy.pool import NullPool, Pool, QueuePool
from sqlalchemy.util.queue import Empty, Queue

from otel_pgpool.driver.dsn import UnknownTarget
from otel_pgpool.errors import error_type
from otel_pgpool.instrumentation.driver import closed_of, own_of, parameters_of
from otel_pgpool.instrumentation.hook import live_instances
from otel_pgpool.instrumentation.kind import Kind
from otel_pgpool.instrumentation.lenient import lenient, pass_over
from otel_pgpool.instrumentation.places import place_of
from otel_pgpool.instrumentation.sqlalchemy_engine import (
    DRIVER,
    is_an_engines,
    name_of,
    name_of_pool,
    owner_of_the_pool,
    read_levels,
    target_of_engine,
)
from otel_pgpool.instrumentation.sqlalchemy_fork import Inherited, empty
from otel_pgpool.pool.call_site import LeftOut, whole_stack_past
from otel_pgpool.pool.checkout import Attempt, Loan
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew, renewed
from otel_pgpool.runtime.gc_state import is_collecting_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_pgpool.instrumentation.hook import Hook
    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.instrumentation.sqlalchemy_engine import Record

DIALECT_EVENTS = [name for name in dir(DialectEvents) if name.startswith(("do_", "handle_"))]
BETWEEN = LeftOut("sqlalchemy", "contextlib", "opentelemetry", "wrapt")
"""Modules to skip between a request and the application's call site: ``with engine.begin()``, a wrapped ``connect``."""


def hook_on(hook: Hook) -> Callable[[], None]:
    """Instrument every engine on psycopg2, including future ones; return the function that undoes it."""
    hooked = Hooked(hook)
    try:
        hooked.begin()
    except BaseException:
        hooked.end()
        raise
    return hooked.end


def harmless(listener: Callable[..., None]) -> Callable[..., None]:
    """Decorate a listener so that its errors are logged and not raised."""

    @wraps(listener)
    def guarded(self: Hooked, *args: Any) -> None:
        try:
            listener(self, *args)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._hook.guard.lament(error)

    return guarded


class Request(Loan):
    """A call of ``Engine.raw_connection`` or ``Pool.connect``, and its connection until that is returned."""

    __slots__ = ("fairy", "ledger")

    ledger: Ledger
    fairy: weakref.ref[Any]
    """SQLAlchemy's ``_ConnectionFairy``, which the caller received; set just before the hand-over."""

    # Defaults of the attributes that few requests set.
    since: float | None = None
    """When the wait for a returned connection ended."""
    connecting: float | None = None
    """When the connect in progress began."""
    connected = False
    """Whether a connection was opened for this request and not lost since."""
    lost: BaseException | None = None
    """The error for which SQLAlchemy replaces the connection; reset afterwards, as an error keeps its frames."""

    @property
    def is_dropped(self) -> bool:
        """Whether the garbage collector returns the connection, because its holder dropped it.

        The return then only takes a note, because the garbage collector may run under any lock, including the
        telemetry's.
        """
        return self.fairy() is None


class Hooked:
    """The listeners to SQLAlchemy's pool events, and a few wrapped methods.

    SQLAlchemy has no event for a request nor for a failed one, so that events cannot tell how long a caller waited.
    Every connection of an engine is requested by ``Engine.raw_connection``, which also knows the URL: this method is
    wrapped. ``Pool.connect`` is wrapped too, for pools without an engine, which are recognised by their first
    connection. Neither method distinguishes a wait for a return from a slow check of an idle connection
    (``pool_pre_ping``, a listener of the application). A pool waits in the ``get`` of its queue and nowhere else, so
    that is wrapped too.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._requests: dict[int, Request] = {}  # by thread
        self._held: dict[int, Request] = {}  # by id of the connection
        self._bereft: dict[int, Request] = {}  # whose connection was closed while checked out, by id of the record
        self._records: weakref.WeakKeyDictionary[Record, Ledger] = weakref.WeakKeyDictionary()
        self._engines: weakref.WeakKeyDictionary[Engine, Ledger] = weakref.WeakKeyDictionary()
        self._wrapped: list[tuple[type, str, Any, Any]] = []  # class, attribute, original, wrapper
        self._dialects: weakref.WeakSet[Any] = weakref.WeakSet()  # those with a listener for connects
        self._inherited = Inherited()
        self._kind = Kind(read_levels, self._abandon)
        self._listeners: list[tuple[Any, str, Callable[..., None]]] = [
            (Engine, "engine_disposed", self._disposed),
            (Pool, "connect", self._connected),
            (Pool, "checkin", self._checked_in),
            (Pool, "invalidate", self._invalidated),
            (Pool, "detach", self._detached),
            (Pool, "close", self._closing),
        ]

    def begin(self) -> None:
        """Add the listeners and wrap the methods."""
        had_events = Engine._has_events
        for target, name, listener in self._listeners:
            event.listen(target, name, listener)
        Engine._has_events = had_events  # True would slow down each statement; ``dispose`` does not need it
        self._wrap(Engine, "raw_connection", self._raw_connection)
        self._wrap(Engine, "dispose", renewed)
        self._wrap(Pool, "connect", self._pool_connect)
        self._wrap(Queue, "get", self._get)
        for engine in live_instances({Engine}):  # so that a pool is reported before its next checkout
            with lenient:  # a dialect of the application may raise
                if isinstance(engine.pool, QueuePool) and any(read_levels(engine.pool)[2:4]):
                    self._adopt(engine)

    def _wrap(self, owner: type, name: str, wrapper: Callable[[Any], Any]) -> None:
        before = getattr(owner, name)
        now = wrapper(before)
        self._wrapped.append((owner, name, before, now))
        setattr(owner, name, now)

    def end(self) -> None:
        """Restore everything, except for wrappers that third-party code has wrapped since, which pass calls through."""
        for owner, name, before, now in self._wrapped:
            if getattr(owner, name) is now:
                setattr(owner, name, before)
        for target, name, listener in self._listeners:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)
        self._inherited.leave()
        for dialect in [*self._dialects]:
            event.remove(dialect, "do_connect", self._connecting)
            if not any(getattr(dialect.dispatch, name, ()) for name in DIALECT_EVENTS):
                dialect.__dict__.pop("_has_events", None)

    # A request

    def _raw_connection(self, original: Callable[..., Any]) -> Callable[..., Any]:
        hooked = self

        @wraps(original)
        def raw_connection(engine: Engine, *args: Any, **kwargs: Any) -> Any:
            if not is_here:
                renew()
            try:
                ledger: Ledger | None = engine.pool._otel_pgpool  # type: ignore[attr-defined]  # set by `Ledger`
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                ledger = None
            except Exception as error:  # noqa: BLE001 - an engine that the application has built itself
                pass_over(error)
                ledger = None
            if ledger is None or ledger.usual is not hooked:
                ledger = hooked._adopt(engine)
                if ledger is None:
                    return hooked._pass_by(partial(original, engine, *args, **kwargs))
            try:
                frame = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                frame = _getframe()
            if args or kwargs:  # of SQLAlchemy 1.4
                return hooked._check_out(ledger, frame, lambda engine: original(engine, *args, **kwargs), engine)
            return hooked._check_out(ledger, frame, original, engine)

        return raw_connection

    def _pool_connect(self, original: Callable[..., Any]) -> Callable[..., Any]:
        hooked, by_thread = self, self._requests

        @wraps(original)
        def connect(pool: Any) -> Any:
            try:
                ledger: Ledger | None = pool._otel_pgpool
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                ledger = None
            except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
                pass_over(error)
                ledger = None
            if ledger is not None and ledger.usual is hooked:  # ``raw_connection`` of its engine tracks this checkout
                return original(pool)
            request = by_thread.get(threading.get_ident())
            if (request is not None and request.ledger is ledger) or is_an_engines(pool):
                return original(pool)
            if not is_here:
                renew()
            try:
                frame = _getframe(1)
            except ValueError:
                frame = _getframe()
            if ledger is None:
                return hooked._meet(pool, original, frame)
            return hooked._check_out(ledger, frame, original, pool)

        return connect

    def _check_out(self, ledger: Ledger, frame: FrameType, ask: Callable[[Any], Any], asked: Any) -> Any:
        by_thread, held = self._requests, self._held
        request = Request()
        ledger.begin(request, whole_stack_past(frame, BETWEEN))
        request.ledger = ledger
        thread = threading.get_ident()
        outer = by_thread.get(thread)
        by_thread[thread] = request
        try:
            try:
                fairy = ask(asked)
            finally:
                if outer is None:
                    by_thread.pop(thread, None)
                else:
                    by_thread[thread] = outer
            try:
                conn, request.fairy = fairy.dbapi_connection, weakref.ref(fairy)
            except Exception as error:  # noqa: BLE001 - third-party code may return any object
                pass_over(error)
                conn = None
            key = id(conn)
            if conn is None or key in held:
                self._lend_once_more(request, fairy, conn)
            else:
                held[key] = request
                ledger.lend(request, conn)
        except BaseException as error:
            self._refuse(request, error)
            raise
        return fairy

    def _meet(self, pool: Any, ask: Callable[[Any], Any], frame: FrameType) -> Any:
        """Check out from an unknown pool without an engine; track the pool if its connections are psycopg2's."""
        started, at = monotonic(), time()
        fairy = ask(pool)
        try:
            conn = fairy.dbapi_connection
            ledger = self._adopt_pool(pool, conn) if own_of(conn) is not None and self._hook.is_on else None
            if ledger is not None:
                record = fairy._connection_record
                self._records[record] = ledger
                if record.starttime >= at:
                    ledger.connected(started, conn)
                self._check_out(ledger, frame, lambda _pool: fairy, pool)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._hook.guard.lament(error)
        return fairy

    def _lend_once_more(self, request: Request, fairy: Any, conn: Any) -> None:
        """Record a checkout of a connection that is checked out already, or is not one of SQLAlchemy's."""
        ledger, before = request.ledger, self._held.get(id(conn))
        if conn is None or (before is not None and before.fairy() is fairy):
            # No return will be seen for the former; a thread returns its own connection only once.
            ledger.lend(request, fairy if conn is None else conn)
            ledger.give_back(request)
            return
        if before is not None:  # a StaticPool hands out its only connection any number of times
            before.ledger.give_back(before)
        self._held[id(conn)] = request
        ledger.lend(request, conn)

    def _pass_by(self, ask: Callable[[], Any]) -> Any:
        """Check out from an engine that is not instrumented.

        The request in progress is hidden meanwhile, so that the other engine's pool events are not attributed to it.
        """
        thread = threading.get_ident()
        outer = self._requests.pop(thread, None)
        try:
            return ask()
        finally:
            if outer is not None:
                self._requests[thread] = outer

    def _get(self, original: Callable[..., Any]) -> Callable[..., Any]:
        by_thread = self._requests

        @wraps(original)
        def get(queue: Any, block: Any = True, timeout: float | None = None) -> Any:  # noqa: FBT002 - its signature
            if not block:
                return original(queue, block, timeout)
            request = by_thread.get(threading.get_ident())
            if request is None or request.queued is not None:
                return original(queue, block, timeout)
            try:
                return original(queue, False)  # noqa: FBT003 - its signature
            except Empty:  # without a context manager, which would cost a tenth of the whole checkout
                pass
            request.ledger.queue(request)
            try:
                return original(queue, block, timeout)
            finally:
                request.since = monotonic()

        return get

    @harmless
    def _refuse(self, request: Request, error: BaseException) -> None:
        """Record a failed request. The driver's error is recorded without SQLAlchemy's wrapper around it."""
        if hasattr(request, "acquired"):  # an interrupt hit after the hand-over; the return will be recorded
            return
        ledger = request.ledger
        cause = getattr(error, "orig", None) or error
        connecting = request.connecting
        if (
            connecting is None
            and not request.connected
            and isinstance(cause, psycopg2.Error)
            and cause is not request.lost
        ):
            connecting = request.since or request.started  # a creator of the application, for which there is no event
        if connecting is not None:
            ledger.connect_failed(connecting, cause)
            ledger.connects.under_way.discard(threading.get_ident())
        timed_out = isinstance(error, QueuePoolTimeout)
        if timed_out and request.queued is None:
            ledger.queue_since(request, request.started)
        ledger.refuse(request, cause, "timeout" if timed_out else None)

    # Listeners; each has the arguments of SQLAlchemy's event

    @harmless
    def _disposed(self, engine: Engine) -> None:
        """Track the engine's new pool. Callers that still wait for the old pool stay included in the levels."""
        if owner_of_the_pool(engine) in self._engines:
            self._adopt(engine)

    @harmless
    def _connecting(self, _dialect: Any, _record: Record, args: Any, parameters: Any) -> None:
        request = self._requests.get(threading.get_ident())
        if request is not None:
            request.ledger.leads_to(
                place_of(tuple(args), parameters)
            )  # these include connect_args, which are not in the URL
            request.connecting = monotonic()
            request.ledger.connects.under_way.add(threading.get_ident())

    @harmless
    def _connected(self, conn: Any, record: Record) -> None:
        before = self._bereft.pop(id(record), None)
        if before is not None:  # a StaticPool has replaced its connection: no return of the former will be seen
            before.ledger.give_back(before, "discarded")
        request = self._requests.get(threading.get_ident())
        if request is not None:
            began, request.connecting, request.connected, request.lost = request.connecting, None, True, None
            if began is None:
                began = request.since or request.started
                request.ledger.leads_to(UnknownTarget(parameters_of(conn)))
            request.ledger.connects.under_way.discard(threading.get_ident())
            request.ledger.connected(began, conn)
            self._records[record] = request.ledger

    def _checked_in(self, conn: Any, record: Record) -> None:
        try:
            if not is_here:
                renew()
            request = self._held.pop(id(conn), None) or self._bereft.pop(id(record), None)
            if request is None:
                if conn in self._inherited:  # such a connection must not return to the pool
                    record.dbapi_connection = None
            elif request.fairy() is None:  # `is_dropped`
                request.ledger.hook.later(partial(request.ledger.give_back, request, "reclaimed"))
            else:
                request.ledger.give_back(request, "discarded" if conn is None or closed_of(conn) else "released")
        except Exception as error:  # noqa: BLE001 - as in `harmless`, which would cost another call
            self._hook.guard.lament(error)

    @harmless
    def _invalidated(self, conn: Any, record: Record, error: BaseException | None) -> None:
        held, request = self._held.get(id(conn)), self._requests.get(threading.get_ident())
        cause = getattr(error, "orig", None) or error
        reason = "broken"
        if cause is None:  # the application asked to close it
            reason = "returned_closed"
        elif type(cause) is DisconnectionError or (
            held is None and not isinstance(cause, (psycopg2.Error, DisconnectionError))
        ):  # raised by a listener of the application that checks connections
            reason = "check_failed"
        if held is not None:
            self._bereave(held, conn, record)
            slot = held.ledger.slot_of(conn)
            held.ledger.slots.pop(slot.key, None)
            discard = partial(held.ledger.discard, slot, reason, cause, held)
            held.ledger.hook.later(discard) if held.is_dropped else discard()
        elif request is not None:
            if cause is not None:
                request.connected, request.lost, request.since = False, cause, monotonic()
            if isinstance(cause, DisconnectionError):  # only after this error SQLAlchemy tries another connection
                request.retried(Attempt(monotonic(), error_type(cause), 0.0), None)
                request.ledger.retries += 1
            request.ledger.discard(request.ledger.slot_of(conn), reason, cause, request)

    def _bereave(self, held: Request, conn: Any, record: Record) -> None:
        """Note that a connection is closed while checked out; from now on its checkout is looked up by the record."""
        self._bereft[id(record)] = held
        self._held.pop(id(conn), None)

    @harmless
    def _detached(self, conn: Any, _record: Record) -> None:
        held = self._held.pop(id(conn), None)
        if held is not None:
            held.ledger.give_back(held, "discarded")
            held.ledger.discard(held.ledger.slot_of(conn), "returned_closed", None, held)

    @harmless
    def _closing(self, conn: Any, record: Record) -> None:
        held = self._held.get(id(conn))
        if held is not None:  # a StaticPool may close a connection that is checked out
            self._bereave(held, conn, record)
        ledger = self._records.get(record)
        slot = None if ledger is None else ledger.slots.get(id(conn))
        if ledger is None or slot is None:  # discarded as broken before
            return
        discard = partial(ledger.discard, slot, self._why_closed(ledger.pool, record))
        ledger.hook.later(discard) if is_collecting_here() else discard()

    def _why_closed(self, pool: Any, record: Record) -> str:
        if isinstance(pool, NullPool) or (isinstance(pool, QueuePool) and 0 < pool.size() <= pool.checkedin()):
            return "idle"  # returned to a pool that was full
        if threading.get_ident() not in self._requests:
            return "drained"  # by ``dispose``
        return "drained" if record._is_hard_or_soft_invalidated() else "expired"

    # Engines

    def _adopt(self, engine: Engine) -> Ledger | None:
        """Create a ledger for an engine's pool, which continues that of the engine's previous pool; None on failure."""
        try:
            if not self._hook.is_on or getattr(engine.dialect, "driver", None) != DRIVER:
                return None
            engine = owner_of_the_pool(engine)
            if engine.dialect not in self._dialects:
                event.listen(engine.dialect, "do_connect", self._connecting)
                self._dialects.add(engine.dialect)
            self._inherited.watch_over(engine.dialect)
            ledger = self._hook.adopt(
                engine.pool, self._kind, name_of(engine), target_of_engine(engine), before=self._engines.get(engine)
            )
            if ledger is not None:
                self._engines[engine] = ledger
                ledger.usual = self
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self._hook.guard.lament(error)
            return None
        return ledger

    def _adopt_pool(self, pool: Any, conn: Any) -> Ledger | None:
        """Create a ledger for a pool without an engine, from its first connection."""
        self._inherited.watch_over(pool._dialect)
        return self._hook.adopt(pool, self._kind, name_of_pool(pool, conn), UnknownTarget(parameters_of(conn)))

    # Fork

    def _abandon(self, pool: Any) -> int:
        """Drop the parent's connections in a forked child, closing the sockets of idle ones; return their number."""
        for request in self._held.values():
            with lenient:
                fairy: Any = request.fairy()
                self._inherited.add(fairy._connection_record, fairy.dbapi_connection)
        for known in (self._requests, self._held, self._bereft):
            known.clear()
        idle = empty(pool)
        for record, ledger in [*self._records.items()]:
            if ledger.pool is pool and record not in idle and record.dbapi_connection is not None:
                self._inherited.add(record, record.dbapi_connection)  # was being checked out or returned at the fork
        return len(idle)
