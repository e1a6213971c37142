"""The light path: checkouts of a stock pool that leave neither span nor record, in as few steps as possible."""

from __future__ import annotations

from functools import wraps
from sys import _getframe
from typing import TYPE_CHECKING, Any

from psycopg2.pool import SimpleConnectionPool

from otel_pgpool.instrumentation.driver import closed_of
from otel_pgpool.instrumentation.lenient import pass_over
from otel_pgpool.instrumentation.psycopg2_outcomes import discard, goes_on, refuse, return_unused
from otel_pgpool.pool.call_site import stack_around
from otel_pgpool.runtime import thread_cache
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.ledger import Ledger
    from otel_pgpool.instrumentation.psycopg2_pool import Hooked

    Method = Callable[..., Any]


def quiet_getconn(hooked: Hooked, _owner: type, original: Method) -> Method:  # noqa: C901 - a call would cost it 4 %
    """Wrap ``getconn`` of psycopg2's two classes if spans are off: the fast path as long as nothing is recorded."""
    slowly, hook = hooked.check_out_of_the_stock, hooked.hook

    @wraps(original)
    def getconn(self: Any, key: Any = None) -> Any:  # noqa: C901 - a call would cost it 4 %
        if not is_here:
            renew()
        try:
            ledger: Ledger | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            ledger = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            pass_over(error)
            ledger = None
        if (
            ledger is None
            or key is not None
            or ledger.usual is not hooked
            or ledger.silence._real_instrument is not None
        ):
            return slowly(self, original, key, _getframe())
        conn: Any = None
        started = monotonic()
        try:
            conn = original(self, None)  # passing None explicitly is faster than the default
            if ledger.untold and ledger.tell_connects():
                started = monotonic()
                ledger.new_checkouts += 1
            else:
                ledger.idle_checkouts += 1
            try:
                place = _getframe(1)
            except ValueError:  # no Python caller, as for a greenlet's first function
                place = _getframe()
            if (caller := place.f_back) is None:
                caller = place
            if (further := caller.f_back) is None:
                further = caller
            connection_key = id(conn)
            if connection_key not in ledger.slots:
                ledger.enter(conn)
            ledger.quiet[connection_key] = (
                started,
                thread_cache.here.thread,
                place.f_code,
                place.f_lasti,
                caller.f_code,
                caller.f_lasti,
                further.f_code,
                further.f_lasti,
            )
            if hook.parked:
                hook.wake()
        except BaseException as error:
            _end_quietly(ledger, self, conn, started, error)
            raise
        return conn

    return getconn


def quiet_putconn(hooked: Hooked, owner: type, original: Method) -> Method:  # noqa: C901 - a call would cost it 4 %
    """Wrap ``putconn`` for connections checked out on the light path."""
    slowly = hooked.give_back

    @wraps(original)
    def putconn(self: Any, conn: Any = None, key: Any = None, close: Any = False) -> None:  # noqa: FBT002, C901 - its signature; a call would cost 4 %
        if not is_here:
            renew()
        try:
            ledger: Ledger | None = self._otel_pgpool
        except AttributeError:  # the pool is not tracked yet, or the instrumentation has ended
            ledger = None
        except Exception as error:  # noqa: BLE001 - a class of the application may raise anything
            pass_over(error)
            ledger = None
        if ledger is None or key is not None or (quiet := ledger.quiet.pop(id(conn), None)) is None:
            slowly(self, original, (conn, key, close), {})
            return
        try:
            was_closed = conn.closed
        except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
            pass_over(error)
            was_closed = 0
        try:
            original(self, conn, None, close)
        except BaseException as error:
            if not closed_of(self):
                ledger.quiet[id(conn)] = quiet
                if not goes_on(self, conn, error) and (loan := ledger.speak_up(conn)) is not None:
                    ledger.give_back(loan, "discarded", error)
            raise
        try:
            is_closed = conn.closed
        except Exception as error:  # noqa: BLE001 - a connection of an application's factory may raise anything
            pass_over(error)
            return
        if is_closed:
            discard(ledger, ledger.slot_of(conn), was_closed, close=close)

    return with_defaults_of(owner, putconn)


def _end_quietly(ledger: Ledger, pool: Any, conn: Any, started: float, error: BaseException) -> None:
    """Clean up after a failed `quiet_getconn`: record the failure, or return the connection that was not delivered."""
    if conn is None:
        loan = ledger.ask(stack_around(_getframe(1)))
        loan.started = started
        refuse(ledger, pool, loan, error)
    else:
        return_unused(pool, conn)


def with_defaults_of(owner: type, putconn: Any) -> Method:
    """Give a wrapper of ``putconn`` the defaults of its class: in one of the two, ``conn`` is required."""
    if owner is SimpleConnectionPool:
        putconn.__defaults__ = (None, False)
    return putconn  # type: ignore[no-any-return]
