"""Log records of the logger ``otel_pgpool``, each written in the context of its checkout."""

from __future__ import annotations

import logging
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach

from otel_pgpool.errors import PoolTimeout, sqlstate
from otel_pgpool.observer import ARGUMENTS
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_external
from otel_pgpool.runtime.text import printable
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.context import detach
from otel_pgpool.types import DiscardReason, LogEvent, UtilizationLevel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.observer import Connect
    from otel_pgpool.pool.checkout import Checkout, Slot
    from otel_pgpool.stats import PoolStats

logger = logging.getLogger("otel_pgpool")

LONGEST_RECORD = 8000
"""Maximum number of characters of a record's text."""

TIMEOUT_INTERVAL = 1.0
"""Minimum number of seconds between two records about timeouts of one pool."""

OF_THE_LOGIN = ("28", "3D")
"""Classes of SQLSTATE with which a server refuses a login or its database. psycopg2 does not pass them on."""

CANNOT_BE_REACHED = "the database cannot be reached with these arguments"
CANNOT_BE_MADE = "no connection can be made"
CANNOT_BE_USED = "a new connection cannot be used"
CANNOT_BE_HANDED_OUT = "a connection cannot be handed out"

REFUSAL_INTERVAL = 60.0
"""Minimum number of seconds between two records about refused connects, or one callback, of pools of one name."""

_logged_again: dict[tuple[str, str], float] = {}
"""When a refusal is logged again, by pool name, and when an error of a callback, by pool name and callback.

Applications that probe for a database create a pool each time.
"""

UTILIZATION_EVENTS = {
    UtilizationLevel.NORMAL: (logging.INFO, LogEvent.UTILIZATION_NORMAL),
    UtilizationLevel.HIGH: (logging.WARNING, LogEvent.UTILIZATION_HIGH),
    UtilizationLevel.CRITICAL: (logging.ERROR, LogEvent.UTILIZATION_CRITICAL),
}
"""Level and event of the record about each utilization level."""


class Logs:
    """The log records of one pool."""

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name
        self._next_timeout = float("-inf")
        self._suppressed = 0

    def _write(
        self, level: int, event: LogEvent, text: str, attributes: Mapping[str, Any], context: Context | None = None
    ) -> None:
        if not logger.isEnabledFor(level):
            return
        extra = {**event.attributes, names.ATTR_POOL_NAME: self._pool_name, **attributes}
        shown = printable("; ".join(map(str.strip, text.split("\n"))), LONGEST_RECORD)
        try:
            copy_context().run(self._log, level, shown, extra, context)  # an error leaves the present context as is
        except Exception as failure:  # a handler that raises costs its record, and nothing else
            if is_external(failure):
                raise

    def _log(self, level: int, text: str, extra: Mapping[str, Any], context: Context | None) -> None:
        token = None if context is None else attach(context)
        try:
            logger.log(level, "pool %s: %s", self._pool_name, text, extra=extra)
        finally:
            if token is not None:
                detach(token, context)

    def long_hold(self, attributes: Mapping[str, Any], context: Context | None) -> None:
        """Log that a hold has passed its threshold and continues."""
        text = (
            f"connection held for {_duration_in(attributes)} by {_holder_in(attributes)} "
            f"({attributes[names.ATTR_TRANSACTION_STATUS]}), checked out at {attributes[names.ATTR_CHECKED_OUT_AT]}"
        )
        self._write(logging.WARNING, LogEvent.LONG_HOLD, text, attributes, context)

    def database_state(
        self, state: DatabaseState, where: str, attributes: Mapping[str, Any], context: Context | None
    ) -> None:
        """Log what the server says of the session of a long hold, whose checkout has the call site ``where``."""
        text = (
            f"connection held for {_duration_in(attributes)} by {_holder_in(attributes)}, checked out at {where}, "
            f"in the database: {state}"
        )
        self._write(logging.WARNING, LogEvent.DATABASE_STATE, text, attributes, context)

    def long_hold_returned(self, checkout: Checkout, context: Context | None) -> None:
        """Log the end of a long hold."""
        held, pid = round(checkout.released - checkout.acquired, names.DIGITS), checkout.slot.pid
        attributes = {names.ATTR_HOLD_TIME: held, names.ATTR_CONNECTION_PID: pid}
        text = f"connection released after {_duration(held, pid)}"
        self._write(logging.INFO, LogEvent.LONG_HOLD_RETURNED, text, attributes, context)

    def proxy_wait(self, attributes: Mapping[str, Any], context: Context | None) -> None:
        """Log that PgBouncer let a query of a checkout wait for a connection to the server."""
        text = (
            f"PgBouncer let a query of {_holder_in(attributes)} wait for longer than its query_wait_notify, because "
            "all its connections to the server were in use; shorten the transactions of its clients, or raise its "
            f"default_pool_size; the connection was checked out at {attributes[names.ATTR_CHECKED_OUT_AT]}"
        )
        self._write(logging.WARNING, LogEvent.PROXY_WAIT, text, attributes, context)

    def reclaimed(self, attributes: Mapping[str, Any], context: Context | None) -> None:
        """Log that a dropped connection was reclaimed."""
        text = (
            f"connection dropped without a release by {_holder_in(attributes)} after {_duration_in(attributes)}, "
            f"checked out at {attributes[names.ATTR_CHECKED_OUT_AT]}"
        )
        self._write(logging.WARNING, LogEvent.RECLAIMED, text, attributes, context)

    def will_log_timeout(self) -> bool:
        """Return whether a timeout would be logged now."""
        return monotonic() >= self._next_timeout

    def timeout(self, error: PoolTimeout, context: Context | None) -> None:
        """Log that a checkout timed out, at most once a second, and only with its diagnosis."""
        if not self.will_log_timeout() or not hasattr(error, "waited"):
            self._suppressed += 1
            return
        self._next_timeout = monotonic() + TIMEOUT_INTERVAL
        suppressed, self._suppressed = self._suppressed, 0
        attributes = {
            names.ATTR_WAIT_TIME: error.waited,
            names.ATTR_RETRIES: error.retries,
            names.ATTR_SIZE: error.size,
            names.ATTR_USED: error.used,
            names.ATTR_IDLE: error.idle,
            names.ATTR_CONNECTING: error.connecting,
            names.ATTR_WAITING: error.waiting,
            names.ATTR_MAX: error.maxconn,
            names.ATTR_UTILIZATION: error.utilization,
            names.ATTR_OLDEST_HOLD: error.oldest_hold,
            names.ATTR_HOLDERS: tuple(str(holder) for holder in error.holders),
            names.ATTR_LEFT_OUT: suppressed,
        }
        more = f" ({suppressed} more timeouts since the last such record)" if suppressed else ""
        self._write(logging.ERROR, LogEvent.TIMEOUT, f"{error}{more}", attributes, context)

    def discarded(
        self, slots: Sequence[Slot], reason: str, error_type: str | None, context: Context | None, message: str = ""
    ) -> None:
        """Log that connections were closed together."""
        is_loss = DiscardReason(reason).is_loss
        if not logger.isEnabledFor(logging.WARNING if is_loss else logging.DEBUG):  # to read a pid may need a call
            return
        pids = [slot.pid for slot in slots]
        attributes: dict[str, Any] = {
            names.ATTR_REASON: DiscardReason(reason).value,
            names.ATTR_CONNECTIONS: len(pids),
        }
        # An attribute has one type: many backends of telemetry refuse a second one.
        if len(pids) == 1:
            attributes[names.ATTR_CONNECTION_PID] = pids[0]
        else:
            attributes[names.ATTR_CONNECTION_PIDS] = pids
        if error_type is not None:
            attributes[names.ATTR_ERROR_TYPE] = error_type
        cause = f" ({message or error_type})" if error_type else ""
        shown = ", ".join(map(str, pids))
        if is_loss:
            text = f"{len(pids)} connection{'s' if len(pids) > 1 else ''} lost: {reason}{cause}, pid {shown}"
            self._write(logging.WARNING, LogEvent.CONNECTION_LOST, text, attributes, context)
        else:
            self._write(logging.DEBUG, LogEvent.DISCARDED, f"discarded as {reason}: pid {shown}", attributes, context)

    def connected(self, connect: Connect) -> None:
        """Log a successful attempt to connect."""
        text = f"connected in {connect.ended - connect.began:.3f} s"
        self._write(logging.DEBUG, LogEvent.CONNECTED, text, {names.ATTR_ATTEMPT: connect.attempt})

    def connect_failed(self, connect: Connect, error_type: str) -> None:
        """Log a failed attempt to connect."""
        attributes = {names.ATTR_ATTEMPT: connect.attempt, names.ATTR_ERROR_TYPE: error_type}
        text = f"attempt {connect.attempt} to connect failed: {error_type}"
        self._write(logging.DEBUG, LogEvent.CONNECT_FAILED, text, attributes)

    def connect_refused(self, connect: Connect, error_type: str) -> None:
        """Log that the server is up and refuses the connection, at most once a minute for all pools of one name."""
        if not self._is_due(""):
            return
        state = sqlstate(connect.error)
        is_connected = state is not None and not state.startswith(OF_THE_LOGIN)  # a query of `configure` was refused
        what = CANNOT_BE_USED if is_connected else CANNOT_BE_REACHED
        text = f"{what}: {connect.message or error_type}"
        self._write(logging.WARNING, LogEvent.CONNECT_REFUSED, text, {names.ATTR_ERROR_TYPE: error_type})

    def program_error(
        self, effect: str, callback: str, error_type: str, message: str, context: Context | None = None
    ) -> None:
        """Log an error of the program, at most once a minute for each callback of all pools of one name.

        Args:
            effect: the first words of the record: what the error prevents.
            callback: name of the callback that raised; `ARGUMENTS` if the connect's arguments are wrong.
            error_type: type of the error.
            message: text of the error, free of secrets.
            context: the context of the checkout, if there is one.
        """
        if not self._is_due(callback):
            return
        error = f"{error_type} ({message})" if message else error_type
        if callback == ARGUMENTS:
            cause = f"the connect raised {error} before it reached a server; correct its arguments"
        else:
            cause = f"the callback {callback} raised {error}; correct the callback"
        attributes = {names.ATTR_CALLBACK: callback, names.ATTR_ERROR_TYPE: error_type}
        self._write(logging.ERROR, LogEvent.PROGRAM_ERROR, f"{effect}: {cause}", attributes, context)

    def _is_due(self, callback: str) -> bool:
        """Return whether a refusal, or an error of a callback, is to be logged again, and note that it is logged."""
        now, key = monotonic(), (self._pool_name, callback)
        if now < _logged_again.get(key, now):
            return False
        for each in [each for each, due in _logged_again.copy().items() if due <= now]:
            _logged_again.pop(each, None)
        _logged_again[key] = now + REFUSAL_INTERVAL
        return True

    def outage_started(self, connect: Connect, error_type: str) -> None:
        """Log that no connection can be opened."""
        attributes = {names.ATTR_ERROR_TYPE: error_type, names.ATTR_ATTEMPTS: connect.attempt, names.ATTR_DURATION: 0.0}
        text = f"{CANNOT_BE_MADE}: {connect.message or error_type}"
        self._write(logging.ERROR, LogEvent.OUTAGE_STARTED, text, attributes)

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Log that the server was reached again."""
        attributes = {names.ATTR_ATTEMPTS: attempts, names.ATTR_DURATION: round(duration, names.DIGITS)}
        text = f"connections can be made again after {duration:.3f} s; attempts that failed: {attempts}"
        self._write(logging.INFO, LogEvent.OUTAGE_ENDED, text, attributes)

    def utilization(self, level: str, stats: PoolStats) -> None:
        """Log that the utilization crossed a threshold."""
        attributes = {
            names.ATTR_UTILIZATION: stats.utilization,
            names.ATTR_USED: stats.used,
            names.ATTR_MAX: stats.maxconn,
            names.ATTR_WAITING: stats.waiting,
        }
        text = f"utilization {level}: {stats.used} of {stats.maxconn} in use, {stats.waiting} waiting"
        severity, event = UTILIZATION_EVENTS[UtilizationLevel(level)]
        self._write(severity, event, text, attributes)


def _duration_in(attributes: Mapping[str, Any]) -> str:
    return _duration(attributes[names.ATTR_HELD], attributes[names.ATTR_CONNECTION_PID])


def _duration(held: float, pid: int) -> str:
    """Return the duration of a hold and the connection's process id, by which the records of a hold are found."""
    return f"{held:.3f} s (pid {pid})" if pid else f"{held:.3f} s"


def _holder_in(attributes: Mapping[str, Any]) -> str:
    task = attributes.get(names.ATTR_TASK_NAME)
    return f"thread {attributes[names.ATTR_THREAD_NAME]!r}" if task is None else f"task {task!r}"
