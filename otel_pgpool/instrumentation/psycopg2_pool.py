"""The instrumentation of the pools of ``psycopg2.pool`` and of their subclasses."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import partial, wraps
from logging import DEBUG
from sys import _getframe
from types import FunctionType
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.pool import AbstractConnectionPool, PoolError, SimpleConnectionPool, ThreadedConnectionPool

from otel_pgpool.instrumentation.driver import closed_of
from otel_pgpool.instrumentation.hook import live_instances
from otel_pgpool.instrumentation.kind import Kind, Levels
from otel_pgpool.instrumentation.ledger import LEDGER
from otel_pgpool.instrumentation.lenient import lenient, pass_over
from otel_pgpool.instrumentation.places import place_of
from otel_pgpool.instrumentation.psycopg2_arguments import closes, is_lent, named, runs_later, takes_key
from otel_pgpool.instrumentation.psycopg2_outcomes import discard, end_request, end_return, refuse, return_unused
from otel_pgpool.instrumentation.psycopg2_quiet import quiet_getconn, quiet_putconn, with_defaults_of
from otel_pgpool.instrumentation.psycopg2_request import Request
from otel_pgpool.instrumentation.turns import is_exhausted
from otel_pgpool.pool.call_site import stack_around, whole_stack_of
from otel_pgpool.pool.checkout import Loan
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import log_failure
from otel_pgpool.runtime.fork import is_here, renew, renewed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from otel_pgpool.instrumentation.hook import Hook
    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.instrumentation.turns import Turns
    from otel_pgpool.pool.checkout import Slot

    Method = Callable[..., Any]

STOCK = (SimpleConnectionPool, ThreadedConnectionPool)
ROLES = ("getconn", "putconn", "closeall")


def hook_on(hook: Hook) -> Callable[[], None]:
    """Instrument every class of pools, including future ones; return the function that undoes it."""
    hooked = Hooked(hook)
    try:
        hooked.begin()
    except BaseException:
        hooked.end()
        raise
    return hooked.end


def read_levels(pool: Any) -> Levels:
    """Return the levels of a pool, whose attributes are read directly, as it has no methods for them.

    A closed pool has no connections, but still lists those that were checked out.
    """
    if pool.closed:
        return Levels(pool.minconn, pool.maxconn, 0, 0, pool.minconn, closed=True)
    return Levels(pool.minconn, pool.maxconn, len(pool._used), len(pool._pool), pool.minconn, closed=pool.closed)


def is_back(pool: Any, slot: Slot) -> bool:
    """Return whether a connection is idle in the pool: a subclass may return it by a method that is not wrapped."""
    return any(conn is slot.ref() for conn in pool._pool)


class Hooked:
    """The wrapped methods of the pool classes.

    If a class defines its own ``getconn``, that is wrapped too, so that the span covers its whole wait and no code of
    this package runs under the stock pool's lock. Aliases of a stock method are wrapped as well. A subclass of
    ``AbstractConnectionPool`` without ``getconn`` is wrapped at ``_getconn`` and ``_putconn``.
    """

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self._roles = {getattr(cls, role): role for cls in STOCK for role in ROLES}  # by unwrapped method
        self._replaced: list[
            tuple[type, str, Any, Any]
        ] = []  # class, attribute, original or None if inherited, wrapper
        # Checked out in a parent process, by id. Kept alive, because an application's own class may close a connection
        # when it is collected.
        self._inherited: dict[int, Any] = {}
        self._requests: dict[tuple[int, int], Request] = {}  # by pool and thread
        self._kind = Kind(read_levels, self._abandon, is_back, lambda pool: isinstance(pool, ThreadedConnectionPool))

    def begin(self) -> None:
        """Wrap the present and future classes, and create ledgers for the present pools."""
        self._replace(AbstractConnectionPool, "__init__", self._init)
        self._replace(AbstractConnectionPool, "_connect", self._connect)
        self._replace(AbstractConnectionPool, "__init_subclass__", self._init_subclass)
        classes = dict.fromkeys(_subclasses(AbstractConnectionPool))  # each once, bases first
        for owner in classes:
            self._wrap(owner)
        for pool in live_instances(classes):  # so that a pool is reported before its next checkout, or a fork
            with lenient:
                if not getattr(pool, "closed", True):
                    self._ledger(pool)

    def end(self) -> None:
        """Restore the original methods.

        The wrappers may still be called: by third-party wrappers put around them since, or through a ``pool.getconn``
        that the application stored. They only pass calls through then, also during a later instrumentation.
        """
        for owner, name, before, now in reversed(self._replaced):
            if owner.__dict__.get(name) is not now:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _wrap(self, owner: type) -> None:
        """Wrap the methods that a class defines. If the class refuses, only the methods that it calls are seen."""
        try:
            self._wrap_methods(owner)
        except Exception as error:  # noqa: BLE001 - whatever a metaclass raises
            log_failure(f"failed to instrument {owner.__qualname__}; it stays uninstrumented", error, DEBUG)

    def _wrap_methods(self, owner: type) -> None:
        wrappers: dict[str, Callable[[type, Method], Any]] = {
            "getconn": self._getconn,
            "putconn": self._putconn,
            "closeall": self._closeall,
            "_connect": self._connect,
        }
        if owner in STOCK:
            wrappers |= {"getconn": self._getconn_of_the_stock, "putconn": self._putconn_of_the_stock}
            if self.hook.settings.telemetry.spans == "off":
                wrappers |= {"getconn": partial(quiet_getconn, self), "putconn": partial(quiet_putconn, self)}
        for name, method in list(vars(owner).items()):
            if isinstance(method, FunctionType) and not runs_later(method):
                role = name if name in wrappers else self._roles.get(method)
                if role is not None:
                    self._replace(owner, name, wrappers[role])
        if "__getattr__" in vars(owner):  # it may delegate to another pool, whose ledger is not this pool's
            self._replaced.append((owner, LEDGER, None, None))
            setattr(owner, LEDGER, None)
        for role in ROLES:
            step = f"_{role}"
            if not hasattr(owner, role) and (step in vars(owner) or getattr(owner, step) in self._roles):
                self._replace(owner, step, wrappers[role])

    def _replace(self, owner: type, name: str, wrapper: Callable[[type, Any], Any]) -> None:
        now = wrapper(owner, getattr(owner, name))
        before = owner.__dict__.get(name)
        setattr(owner, name, now)
        self._replaced.append((owner, name, before, now))

    def _ledger(self, pool: Any) -> Ledger | None:
        """Return the ledger of a pool; None if there is none, or one of a later instrumentation."""
        try:
            ledger: Ledger | None = getattr(pool, LEDGER, None) or self._adopt(pool)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.hook.guard.lament(error)
            return None
        return ledger if ledger is not None and ledger.hook is self.hook else None

    def _adopt(self, pool: Any) -> Ledger | None:
        """Create the ledger of a pool that was not tracked before."""
        if not hasattr(pool, "_kwargs"):  # its constructor has not set them yet
            return None
        target = place_of(pool._args, pool._kwargs)
        ledger = self.hook.adopt(pool, self._kind, target.name, target)
        if ledger is not None and ledger.turns is None and type(pool) in STOCK:
            ledger.usual = self
        return ledger

    # Checking out

    def _getconn_of_the_stock(self, _owner: type, original: Method) -> Method:
        """Wrap ``getconn`` of psycopg2's two classes: the fast path, without what few other pools need."""
        hooked, slowly = self, self.check_out_of_the_stock

        @wraps(original)
        def getconn(self: Any, key: Any = None) -> Any:
            if not is_here:
                renew()
            try:
                ledger: Ledger | None = self._otel_pgpool
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                ledger = None
            except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
                pass_over(error)
                ledger = None
            if ledger is None or key is not None or ledger.usual is not hooked:
                return slowly(self, original, key, _getframe())
            loan = conn = None
            try:
                try:
                    frame = _getframe(1)
                except ValueError:  # no Python caller, as for a greenlet's first function
                    frame = _getframe()
                loan = Loan()
                ledger.begin(loan, whole_stack_of(frame))
                conn = original(self, None)
                ledger.lend(loan, conn)
            except BaseException as error:
                end_request(ledger, self, loan, conn, error)
                raise
            return conn

        return getconn

    def check_out_of_the_stock(self, pool: Any, original: Method, key: Any, frame: FrameType) -> Any:
        """Check out from one of psycopg2's two classes off the fast path."""
        ask = partial(original, pool, key)
        ledger = self._ledger(pool)
        if ledger is None:
            return ask()
        request = self._requests.get((id(pool), threading.get_ident())) if self._requests else None
        again = key is not None and is_lent(pool, key)
        if request is not None:
            return request.ask_inside(ask, again=again)
        if again:
            return ask()
        return self._check_out(ledger, pool, frame, ask)

    def _getconn(self, _owner: type, original: Method) -> Method:
        around = self._check_out_around
        keyed = takes_key(original)

        @wraps(original)
        def getconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_here:
                renew()
            again = keyed and is_lent(self, *args, **kwargs)
            return around(self, partial(original, self, *args, **kwargs), _getframe(), again=again)

        return getconn

    def _check_out_around(self, pool: Any, ask: Callable[[], Any], frame: FrameType, *, again: bool) -> Any:
        ledger = self._ledger(pool)
        if ledger is None:
            return ask()
        asking = id(pool), threading.get_ident()
        outer = self._requests.get(asking)
        if outer is not None:
            return outer.ask_inside(ask, again=again)
        if again:
            return ask()
        request = Request(pool, ledger)
        try:
            self._requests[asking] = request
            return self._check_out(ledger, pool, frame, ask, request)
        finally:
            self._requests.pop(asking, None)
            request.error = None  # breaks a reference cycle: the error's frames refer to the request

    def _check_out(
        self, ledger: Ledger, pool: Any, frame: FrameType, ask: Callable[[], Any], request: Request | None = None
    ) -> Any:
        loan = result = None
        try:
            loan = Loan()
            ledger.begin(loan, stack_around(frame))
            if request is not None:
                request.loan = loan
            # A subclass's own getconn is called again as a whole, because it may hold a lock while it calls the stock
            # method, and a wait inside would keep that lock.
            result = ask() if ledger.turns is None else _take_turns(ledger, pool, ledger.turns, loan, ask)
            conn = result if request is None else request.lent(result)
            if conn is not None:
                ledger.lend(loan, conn)
            elif request is not None and request.error is not None:
                refuse(ledger, pool, loan, request.error)
            elif request is None or not request.again:
                ledger.pass_on(loan, result)
        except BaseException as error:
            cause = None if request is None else request.error
            told = cause if cause and is_exhausted(cause) else error  # a subclass may raise an error of its own instead
            end_request(ledger, pool, loan, result, told)
            raise
        return result

    # Returning

    def _putconn_of_the_stock(self, owner: type, original: Method) -> Method:
        hooked, slowly = self, self.give_back

        @wraps(original)
        def putconn(self: Any, conn: Any = None, key: Any = None, close: Any = False) -> None:  # noqa: FBT002 - its signature
            if not is_here:
                renew()
            try:
                ledger: Ledger | None = self._otel_pgpool
            except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
                ledger = None
            except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
                pass_over(error)
                ledger = None
            slot = None
            if ledger is not None and key is None and ledger.usual is hooked:
                slot = ledger.slots.get(id(conn))
            loan: Any = None if slot is None else slot.checkout
            if ledger is None or slot is None or loan is None:
                slowly(self, original, (conn, key, close), {})
                return
            try:
                was_closed = conn.closed
            except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
                pass_over(error)
                was_closed = 0
            try:
                original(self, conn, None, close)
                if closed_of(conn):
                    discard(ledger, slot, was_closed, close=close, loan=loan)
                else:
                    ledger.give_back(loan)
            except BaseException as error:
                end_return(ledger, self, conn, loan, error)
                raise

        return with_defaults_of(owner, putconn)

    def _putconn(self, _owner: type, original: Method) -> Method:
        given_back = self.give_back

        @wraps(original)
        def putconn(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_here:
                renew()
            return given_back(self, original, args, kwargs)

        return putconn

    def give_back(self, pool: Any, original: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a connection off the fast path."""
        ledger = self._ledger(pool)
        conn = named(pool, *args, **kwargs)
        if id(conn) in self._inherited:
            return None
        if ledger is None:
            return original(pool, *args, **kwargs)
        slot = ledger.slots.get(id(conn))
        try:
            if slot is None:  # an unknown connection, or none
                return original(pool, *args, **kwargs)
            return _take_back(ledger, slot, conn, partial(original, pool, *args, **kwargs))
        finally:
            if ledger.turns is not None:
                ledger.turns.call()

    def _closeall(self, _owner: type, original: Method) -> Method:
        hooked = self

        @renewed
        @wraps(original)
        def closeall(self: Any, *args: Any, **kwargs: Any) -> Any:
            ledger = hooked._ledger(self)
            if ledger is None or closed_of(self):
                return original(self, *args, **kwargs)
            try:
                return original(self, *args, **kwargs)
            finally:
                if closed_of(self) and not ledger._retired:  # otherwise an inner closeall has done this
                    with lenient:
                        for conn in self._pool:
                            ledger.discard(ledger.slot_of(conn), "closed")
                    ledger.end("discarded", "closed")
                if ledger.turns is not None:
                    ledger.turns.call()

        return closeall

    # Connecting

    def _connect(self, _owner: type, original: Method) -> Method:
        hooked = self

        @renewed
        @wraps(original)
        def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
            ledger = hooked._ledger(self)
            thread = threading.get_ident()
            if ledger is None or thread in ledger.connects.under_way:
                return original(self, *args, **kwargs)
            ledger.connects.under_way.add(thread)
            began = monotonic()
            try:
                conn = original(self, *args, **kwargs)
            except BaseException as error:
                ledger.connect_failed(began, error)
                raise
            finally:
                ledger.connects.under_way.discard(thread)
            ledger.connected(began, conn)
            return conn

        return _connect

    def _init(self, _owner: type, original: Method) -> Method:
        hooked = self

        @wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - replaces the class's ``__init__``
            try:
                original(self, *args, **kwargs)
            except BaseException:
                ledger = hooked._ledger(self)
                if ledger is not None:
                    ledger.end("discarded", "closed")  # an error's traceback may keep the unusable pool alive
                raise
            ledger = hooked._ledger(self)
            if ledger is not None:
                ledger.tell_connects()

        return __init__

    def _init_subclass(self, _owner: type, _original: Method) -> Any:
        hooked = self

        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:  # noqa: N807 - replaces the class's own
            super(AbstractConnectionPool, cls).__init_subclass__(**kwargs)  # type: ignore[misc]  # cls is one of them
            if hooked.hook.is_on:
                hooked._wrap(cls)

        return classmethod(__init_subclass__)

    # Fork

    def _abandon(self, pool: Any) -> int:
        """Drop the parent's connections from a pool in a forked child; return their number.

        The sockets are closed here, because psycopg2 closes only those that its own process has opened.
        """
        idle, used = list(pool._pool), list(pool._used.values())
        for conn in idle:
            with suppress(psycopg2.Error, OSError):
                os.close(conn.fileno())
        self._requests.clear()
        pool._pool.clear()
        pool._used.clear()
        pool._rused.clear()
        self._inherited.update((id(conn), conn) for conn in used)
        for kind in (threading.Lock, threading.RLock):  # another thread of the parent may have held the lock
            if type(getattr(pool, "_lock", None)) is type(kind()):
                pool._lock = kind()
        return len(idle) + len(used)


def _subclasses(cls: type) -> Iterator[type]:
    derived: type
    for derived in cls.__subclasses__():
        yield derived
        yield from _subclasses(derived)


def _take_back(ledger: Ledger, slot: Slot, conn: Any, give_back: partial[Any]) -> Any:
    """Return a connection by a subclass's putconn. If that calls another putconn, only the inner call is recorded."""
    loan: Any = slot.checkout or ledger.speak_up(conn)
    was_closed = closed_of(conn)
    try:
        given_back = give_back()
        if closed_of(conn):
            discard(ledger, slot, was_closed, close=closes(*give_back.args, **give_back.keywords), loan=loan)
        elif loan is not None:
            ledger.give_back(loan)
    except BaseException as error:
        if loan is not None:
            end_return(ledger, ledger.pool, conn, loan, error)
        raise
    return given_back


def _take_turns(ledger: Ledger, pool: Any, turns: Turns, loan: Loan, ask: Callable[[], Any]) -> Any:
    """Ask an exhausted pool again until the timeout, after those callers that came first."""
    if not turns:
        try:
            return ask()
        except PoolError as error:
            if not is_exhausted(error):
                raise
    ledger.queue(loan)
    timeout = ledger.hook.settings.wait_timeout or 0.0
    return turns.wait_for(ask, loan.started + timeout - monotonic(), partial(return_unused, pool))
