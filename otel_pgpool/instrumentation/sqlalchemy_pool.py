"""The pools of SQLAlchemy's engines on psycopg2, 1.4 and 2: seen by its public events, as far as these go."""

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

from otel_pgpool._checkout import Attempt, LeftOut, Loan, whole_stack_past
from otel_pgpool._clock import monotonic
from otel_pgpool._collector import is_collecting_here
from otel_pgpool._errors import error_type
from otel_pgpool._fork import is_here, renew, renewed
from otel_pgpool._target import UnknownTarget
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

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from otel_pgpool.instrumentation.hook import Hook
    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.instrumentation.sqlalchemy_engine import Record

DIALECT_EVENTS = [name for name in dir(DialectEvents) if name.startswith(("do_", "handle_"))]
BETWEEN = LeftOut("sqlalchemy", "contextlib", "opentelemetry", "wrapt")
"""Who stands between the program's line and a request: ``with engine.begin()``, an instrumentor of ``connect``."""


def hook_on(hook: Hook) -> Callable[[], None]:
    """Hook every engine on psycopg2, made before or after; returns what undoes it."""
    hooked = Hooked(hook)
    try:
        hooked.begin()
    except BaseException:
        hooked.end()
        raise
    return hooked.end


def harmless(listener: Callable[..., None]) -> Callable[..., None]:
    """Whatever goes wrong in a listener is logged, and goes no further."""

    @wraps(listener)
    def guarded(self: Hooked, *args: Any) -> None:
        try:
            listener(self, *args)
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self._hook.guard.lament(error)

    return guarded


class Request(Loan):
    """A call of ``Engine.raw_connection`` or ``Pool.connect``, and what it was given until that comes back."""

    __slots__ = ("fairy", "ledger")

    ledger: Ledger
    fairy: weakref.ref[Any]
    """What its caller was given, SQLAlchemy's own around the connection; set just before the hand-over."""

    # What few requests need stands on the class.
    since: float | None = None
    """When its wait was over."""
    connecting: float | None = None
    """Since when."""
    connected = False
    """Whether a connection was made for it, and is not lost again."""
    lost: BaseException | None = None
    """Why it is given another; only until then, as an error keeps its frames."""

    @property
    def is_dropped(self) -> bool:
        """Whether the garbage collector gives it back, for its borrower has lost it.

        That is no place to do more than take a note: it may be inside any lock, of the telemetry's too.
        """
        return self.fairy() is None


class Hooked:
    """Listeners to the pools' events, and a few wraps.

    SQLAlchemy has no event for a request, nor for one that fails, so that no event can tell how long anybody waited.
    Every connection of an engine comes through ``Engine.raw_connection``, which also knows the URL: it is wrapped, and
    so is ``Pool.connect`` for pools that no engine has, which are known by their first connection. Neither can tell a
    wait for somebody's return from a slow look at an idle connection (``pool_pre_ping``, a listener of the program's):
    a pool waits in the ``get`` of its queue and nowhere else, so that is wrapped too.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._requests: dict[int, Request] = {}  # by thread
        self._held: dict[int, Request] = {}  # by id of the connection
        self._bereft: dict[int, Request] = {}  # whose connection was closed under them, by id of the record
        self._records: weakref.WeakKeyDictionary[Record, Ledger] = weakref.WeakKeyDictionary()
        self._engines: weakref.WeakKeyDictionary[Engine, Ledger] = weakref.WeakKeyDictionary()
        self._wrapped: list[tuple[type, str, Any, Any]] = []  # class, name, what stood there, what stands now
        self._dialects: weakref.WeakSet[Any] = weakref.WeakSet()  # whose connects are listened to
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
        """Listen, and wrap."""
        had_events = Engine._has_events
        for target, name, listener in self._listeners:
            event.listen(target, name, listener)
        Engine._has_events = had_events  # else each statement of every engine is slower; a dispose does not ask for it
        self._wrap(Engine, "raw_connection", self._raw_connection)
        self._wrap(Engine, "dispose", renewed)
        self._wrap(Pool, "connect", self._pool_connect)
        self._wrap(Queue, "get", self._get)
        for engine in live_instances({Engine}):  # what is seen of it must not wait for its next checkout
            with lenient:  # a dialect of the program's own
                if isinstance(engine.pool, QueuePool) and any(read_levels(engine.pool)[2:4]):
                    self._adopt(engine)

    def _wrap(self, owner: type, name: str, wrapper: Callable[[Any], Any]) -> None:
        before = getattr(owner, name)
        now = wrapper(before)
        self._wrapped.append((owner, name, before, now))
        setattr(owner, name, now)

    def end(self) -> None:
        """Leave everything as it was, but for a wrap that somebody else has wrapped since: that passes through."""
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
                ledger: Ledger | None = engine.pool._otel_pgpool  # type: ignore[attr-defined]  # ours
            except AttributeError:  # it is met for the first time, or the hook is off
                ledger = None
            except Exception as error:  # noqa: BLE001 - an engine that the program has put together itself
                pass_over(error)
                ledger = None
            if ledger is None or ledger.usual is not hooked:
                ledger = hooked._adopt(engine)
                if ledger is None:
                    return hooked._pass_by(partial(original, engine, *args, **kwargs))
            try:
                frame = _getframe(1)
            except ValueError:  # called by no function of Python, as a greenlet's first is
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
            except AttributeError:  # it is met for the first time, or the hook is off
                ledger = None
            except Exception as error:  # noqa: BLE001 - a class of the program's own
                pass_over(error)
                ledger = None
            if ledger is not None and ledger.usual is hooked:  # its engine has asked
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
            except Exception as error:  # noqa: BLE001 - somebody else's
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
        """A request to a pool that no engine has shown: it is ours if what it lends is psycopg2's."""
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
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self._hook.guard.lament(error)
        return fairy

    def _lend_once_more(self, request: Request, fairy: Any, conn: Any) -> None:
        """What is lent already, or is no connection of SQLAlchemy's."""
        ledger, before = request.ledger, self._held.get(id(conn))
        if conn is None or (before is not None and before.fairy() is fairy):
            # Nobody will tell of its return; or its thread had it, and gives it back but once.
            ledger.lend(request, fairy if conn is None else conn)
            ledger.give_back(request)
            return
        if before is not None:  # a StaticPool lends its one connection as often as it is asked
            before.ledger.give_back(before)
        self._held[id(conn)] = request
        ledger.lend(request, conn)

    def _pass_by(self, ask: Callable[[], Any]) -> Any:
        """Of an engine that is none of ours no event is heard, though a listener ask it in the middle of a request."""
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
                return original(queue, False)  # noqa: FBT003 - likewise
            except Empty:  # not suppressed by a context manager: that costs a tenth of the whole checkout
                pass
            request.ledger.queue(request)
            try:
                return original(queue, block, timeout)
            finally:
                request.since = monotonic()

        return get

    @harmless
    def _refuse(self, request: Request, error: BaseException) -> None:
        """What the pool raises is its own; SQLAlchemy's wrapping of a driver's error is taken off."""
        if hasattr(request, "acquired"):  # an interrupt came after the hand-over, and the return is seen
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
            connecting = request.since or request.started  # a creator of the program's own, of which no event tells
        if connecting is not None:
            ledger.connect_failed(connecting, cause)
            ledger.connects.under_way.discard(threading.get_ident())
        timed_out = isinstance(error, QueuePoolTimeout)
        if timed_out and request.queued is None:
            ledger.queue_since(request, request.started)
        ledger.refuse(request, cause, "timeout" if timed_out else None)

    # Events; each is SQLAlchemy's, with its arguments

    @harmless
    def _disposed(self, engine: Engine) -> None:
        """It has another pool now: the levels are that one's from here on, but for who still waits for the old one."""
        if owner_of_the_pool(engine) in self._engines:
            self._adopt(engine)

    @harmless
    def _connecting(self, _dialect: Any, _record: Record, args: Any, parameters: Any) -> None:
        request = self._requests.get(threading.get_ident())
        if request is not None:
            request.ledger.leads_to(place_of(tuple(args), parameters))  # with connect_args, which are not in the URL
            request.connecting = monotonic()
            request.ledger.connects.under_way.add(threading.get_ident())

    @harmless
    def _connected(self, conn: Any, record: Record) -> None:
        before = self._bereft.pop(id(record), None)
        if before is not None:  # a StaticPool has made itself another one: nobody will tell of that return
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
                if conn in self._inherited:  # and it must not come back
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
        if cause is None:  # the program wants it closed
            reason = "returned_closed"
        elif type(cause) is DisconnectionError or (
            held is None and not isinstance(cause, (psycopg2.Error, DisconnectionError))
        ):  # a listener of the program's has looked at it
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
            if isinstance(cause, DisconnectionError):  # after anything else it is not given another
                request.retried(Attempt(monotonic(), error_type(cause), 0.0), None)
                request.ledger.retries += 1
            request.ledger.discard(request.ledger.slot_of(conn), reason, cause, request)

    def _bereave(self, held: Request, conn: Any, record: Record) -> None:
        """Its connection goes before it comes back: from here on it is found by the record."""
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
        if held is not None:  # a StaticPool may close what it has lent
            self._bereave(held, conn, record)
        ledger = self._records.get(record)
        slot = None if ledger is None else ledger.slots.get(id(conn))
        if ledger is None or slot is None:  # discarded as broken before
            return
        discard = partial(ledger.discard, slot, self._why_closed(ledger.pool, record))
        ledger.hook.later(discard) if is_collecting_here() else discard()

    def _why_closed(self, pool: Any, record: Record) -> str:
        if isinstance(pool, NullPool) or (isinstance(pool, QueuePool) and 0 < pool.size() <= pool.checkedin()):
            return "idle"  # it came back, and there was one too many
        if threading.get_ident() not in self._requests:
            return "drained"  # by dispose()
        return "drained" if record._is_hard_or_soft_invalidated() else "expired"

    # Engines

    def _adopt(self, engine: Engine) -> Ledger | None:
        """Open a ledger for an engine's pool; it goes on where that of a pool before it ended."""
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
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            self._hook.guard.lament(error)
            return None
        return ledger

    def _adopt_pool(self, pool: Any, conn: Any) -> Ledger | None:
        """Open one for a pool that has no engine, by its first connection."""
        self._inherited.watch_over(pool._dialect)
        return self._hook.adopt(pool, self._kind, name_of_pool(pool, conn), UnknownTarget(parameters_of(conn)))

    # Fork

    def _abandon(self, pool: Any) -> int:
        """In a forked child: what lay in the pool is closed here, and what was lent ends here without a word."""
        for request in self._held.values():
            with lenient:
                fairy: Any = request.fairy()
                self._inherited.add(fairy._connection_record, fairy.dbapi_connection)
        for known in (self._requests, self._held, self._bereft):
            known.clear()
        idle = empty(pool)
        for record, ledger in [*self._records.items()]:
            if ledger.pool is pool and record not in idle and record.dbapi_connection is not None:
                self._inherited.add(record, record.dbapi_connection)  # just now on its way in or out
        return len(idle)
