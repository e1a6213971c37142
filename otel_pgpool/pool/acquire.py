"""The steps of an acquire: check an idle connection, or wait in the queue, or fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.driver.error_text import describe
from otel_pgpool.driver.trace_name import Renamed, is_traceparent
from otel_pgpool.errors import ConnectionFailed, PoolClosed, PoolTimeout, TooManyRequests, error_type
from otel_pgpool.pool.base import Common, Part
from otel_pgpool.pool.core import NOT_HELD, State
from otel_pgpool.pool.liveness import CHECK_BUDGET, MIN_FIRST_CHECK, LivenessCheck, check_seconds
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import printable
from otel_pgpool.types import DiscardReason, Outcome, PoolErrorType

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.pool.connect import Connectors
    from otel_pgpool.pool.discard import Discarder
    from otel_pgpool.pool.keepalive import Keepalive

ERROR_TYPES: dict[type[BaseException], str] = {
    PoolTimeout: PoolErrorType.TIMEOUT.value,
    PoolClosed: PoolErrorType.CLOSED.value,
    TooManyRequests: PoolErrorType.TOO_MANY_REQUESTS.value,
}
"""Values of ``error.type`` for the pool's own errors."""


class Acquirer(Part):
    """Acquires connections for checkouts."""

    def __init__(
        self,
        common: Common,
        discarder: Discarder,
        connectors: Connectors,
        liveness: LivenessCheck,
        keepalive: Keepalive,
    ) -> None:
        super().__init__(common)
        self._keepalive = keepalive
        self._discarder = discarder
        self._connectors = connectors
        self._liveness = liveness
        observer = common.notifier.observer
        self._traceparent = getattr(observer, "traceparent", None) if common.config.names_traces else None

    def acquire(self, checkout: Checkout, timeout: float | None, unchecked: connection | None = None) -> connection:
        """Acquire a connection and notify the observer.

        The slow path runs only if `Core.try_acquire_idle` yields no connection that can be used at once.

        Args:
            checkout: the record of the checkout.
            timeout: longest wait in seconds; None for the pool's.
            unchecked: a connection from `Core.try_acquire_idle` that has to be checked first.

        Raises:
            PoolTimeout: no connection became available in time.
            ConnectionFailed: ``max_attempts`` is reached.
            TooManyRequests: the queue is full.
            PoolClosed: the pool is closed.
        """
        observer = self._notifier.observer
        conn, is_renamed = None, False
        try:
            if observer is not None:
                try:
                    observer.started(checkout)
                except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                    self._notifier.log_error(error)
                checkout.started = monotonic()
                if self._traceparent is not None:
                    is_renamed = self._choose_name(checkout, self._traceparent)
            if unchecked is None:
                conn = self._core.try_acquire_idle(checkout, is_renamed)
            if checkout.path is None:
                unchecked, conn = (conn if unchecked is None else unchecked), None
                conn = self._acquire_slowly(checkout, unchecked, timeout)
            if observer is not None:
                try:
                    observer.acquired(checkout)
                except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                    self._notifier.log_error(error)
            return conn  # type: ignore[return-value]  # noqa: TRY300 - not None if a path is set; an interrupt may hit here
        except BaseException as error:
            self.record_failure(checkout, conn, error)
            raise

    def record_failure(self, checkout: Checkout, conn: connection | None, error: BaseException) -> None:
        """Record a failed checkout once; a second call completes a first that an interrupt cut short."""
        if self._core.parked:
            self._maintenance_thread.wake()  # to collect a slot that an interrupt has orphaned
        if checkout.is_reported:
            return
        if conn is not None:
            self._release_unused(checkout, conn)
        if not checkout.has_outcome:
            checkout.released = monotonic()
            gave_up = self._core.has_exhausted_attempts(checkout)
            timed_out = isinstance(error, PoolTimeout) and not gave_up
            if gave_up and checkout.error is not None:
                checkout.fail(error_type(checkout.error), checkout.attempts[-1].message)
            else:
                own = ERROR_TYPES.get(type(error))
                text = describe(self._target, error) if own is None else printable(str(error), keep="\n")
                checkout.fail(own or error_type(error), text)
            checkout.outcome = Outcome.TIMEOUT.value if timed_out else Outcome.ERROR.value
            self._core.count_failure(checkout.released - checkout.started, timed_out=timed_out)
        if self._notifier.observer is not None:
            self._notifier.notify(self._notifier.observer.failed, checkout, error)
        checkout.end_reported = True

    def _choose_name(self, checkout: Checkout, traceparent: Callable[[Checkout], str | None]) -> bool:
        """Choose the name that the session gets for the checkout; return False if it keeps its own."""
        try:
            name = traceparent(checkout)
            checkout.trace_name = name if name is None or is_traceparent(name) else None
        except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
            self._notifier.log_error(error)
        return checkout.trace_name is not None

    def ensure_open(self) -> None:
        """Open the pool if it is not open yet, and start to fill it.

        Raises:
            PoolClosed: the pool is closed.
        """
        self._core.open()
        self._maintenance_thread.wake()
        self._connectors.start_if_needed()

    def _acquire_slowly(self, checkout: Checkout, conn: connection | None, timeout: float | None) -> connection:
        """Check idle connections or wait in the queue, until a connection can be handed out."""
        core = self._core
        try:
            while True:
                if conn is None:
                    conn = self._wait_in_queue(checkout, timeout)
                limit = max(self._deadline_of(checkout, timeout), checkout.started + CHECK_BUDGET)
                if checkout.path is not None or self._liveness.is_alive(checkout, conn, limit):
                    break
                conn = None
                if core.has_exhausted_attempts(checkout):
                    raise self._connection_failed(checkout)  # noqa: TRY301 - the handler below raises it again
                if monotonic() < limit:
                    conn = core.try_acquire_idle(checkout, slow=True)
            if core.parked:
                self._maintenance_thread.wake()
        except BaseException:
            if conn is not None and checkout.is_held and checkout.slot.holds(conn):
                self._release_unused(checkout, conn)
            raise
        return conn

    def _deadline_of(self, checkout: Checkout, timeout: float | None, least: float = 0.0) -> float:
        """Return when a checkout times out, ``least`` seconds after its start at the earliest."""
        return checkout.started + max(least, self._durations.timeout if timeout is None else timeout)

    def _wait_in_queue(self, checkout: Checkout, timeout: float | None) -> connection:
        """Wait in the queue until the checkout is served."""
        core = self._core
        if core.state is State.NEW:
            self.ensure_open()
        now = monotonic()
        least = CHECK_BUDGET if core.has_check_for_caller() else 0.0
        deadline = self._deadline_of(checkout, timeout, least)
        if now >= deadline and core.state is State.OPEN:
            core.request_growth(checkout)
            self._connectors.start_if_needed()
            raise self._unserved(checkout, None, deadline)
        waiter = None
        try:
            waiter = core.join(checkout, now)
            if core.parked:
                self._maintenance_thread.wake()  # to watch for long holds, which this checkout may wait for
            if core.remaining < core.maxconn:
                self._connectors.start_if_needed()
            is_woken = True
            while is_woken and waiter.is_waiting:  # woken without either if the pool's timeout has changed
                deadline = self._deadline_of(checkout, timeout, least)
                is_woken = self._wait_for(waiter.lock, deadline)
            conn = core.leave(checkout, waiter) if waiter.conn is None else waiter.conn
        except BaseException:
            conn = core.leave(checkout, waiter)
            if conn is not None:
                self._release_unused(checkout, conn)
            raise
        if conn is None:
            raise self._unserved(checkout, waiter.error, deadline)
        return conn

    def _wait_for(self, lock: threading.Lock, deadline: float) -> bool:
        """Wait until the caller is woken or the deadline passes; return whether it was woken.

        A ping that is in progress may take as long as a check at a checkout.
        """
        if self._core.checking:
            now = monotonic()
            if self._connectors.wait_for(lock, now + min(deadline - now, check_seconds(deadline, now))):
                return True
            self._keepalive.cut_after(MIN_FIRST_CHECK)
        return self._connectors.wait_for(lock, deadline)

    def _unserved(self, checkout: Checkout, error: BaseException | None, deadline: float) -> BaseException:
        """Return the error of a checkout that has waited in vain; ``error`` is the one that ended the wait, if any."""
        if isinstance(error, PoolClosed):
            return error
        if error is not None:
            return self._connection_failed(checkout)
        if checkout.queued is None:
            return self._timed_out(
                checkout, "no connection at once" if self._core.is_suspended else "no connection is idle"
            )
        return self._timed_out(checkout, f"no connection within {deadline - checkout.started:.3g} s")

    def _release_unused(self, checkout: Checkout, conn: connection) -> None:
        """Release a connection that was handed to a waiter but did not reach the caller."""
        core, now = self._core, monotonic()
        reason = DiscardReason.RESET_FAILED if isinstance(checkout.slot.baseline, Renamed) else None
        release = core.release_unused if checkout.path is None else core.release
        verdict = release(checkout, conn, now, reason)
        if verdict is not None and verdict is not NOT_HELD:
            checkout.slot.conn = conn
            self._discarder.discard([checkout.slot], verdict, None, checkout)

    def _connection_failed(self, checkout: Checkout) -> PoolTimeout:
        return self._timed_out(checkout, f"gave up after max_attempts={self._core.max_attempts}", ConnectionFailed)

    def _timed_out(self, checkout: Checkout, reason: str, kind: type[PoolTimeout] = PoolTimeout) -> PoolTimeout:
        return self._connectors.diagnose(reason, checkout.started, checkout.retries, checkout, kind)
