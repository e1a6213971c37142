"""Log records of the logger ``otel_pgpool``, each written in the context of its checkout."""

from __future__ import annotations

import logging
import re
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from opentelemetry.context import attach

from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import is_asynchronous
from otel_pgpool.runtime.text import printable
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.context import detach

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context

    from otel_pgpool.errors import PoolTimeout
    from otel_pgpool.observer import Connect
    from otel_pgpool.pool.checkout import Checkout, Slot
    from otel_pgpool.stats import PoolStats

logger = logging.getLogger("otel_pgpool")

LONGEST_RECORD = 8000
"""Maximum number of characters of a record's text."""

_CONTINUED = re.compile("\n(?!  )")

TIMEOUT_INTERVAL = 1.0
"""Minimum number of seconds between two records about timeouts of one pool."""

CANNOT_BE_REACHED = "the database cannot be reached with these arguments"

REFUSAL_INTERVAL = 60.0
"""Minimum number of seconds between two records about refused connects of pools of one name."""

_refused_again: dict[str, float] = {}
"""When a refusal is logged again, by pool name: applications that probe for a database create a pool each time."""

LOST = ("broken", "reset_failed", "check_failed", "read_only")
"""Reasons of a discard that are logged as a warning."""

UTILIZATION_LEVELS = {"normal": logging.INFO, "high": logging.WARNING, "critical": logging.ERROR}


class Logs:
    """The log records of one pool."""

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name
        self._next_timeout = float("-inf")
        self._left_out = 0

    def _write(
        self, level: int, event: str, text: str, attributes: Mapping[str, Any], context: Context | None = None
    ) -> None:
        if not logger.isEnabledFor(level):
            return
        extra = {names.EVENT: event, names.POOL_NAME: self._pool_name, **attributes}
        shown = _CONTINUED.sub("\n  ", printable(text, LONGEST_RECORD, keep="\n"))
        try:
            copy_context().run(self._log, level, shown, extra, context)  # whatever is raised inside, ours is as before
        except Exception as failure:  # a handler that raises costs its record, and nothing else
            if is_asynchronous(failure):
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
            f"connection held for {attributes[names.HELD]:.3f} s by thread {attributes[names.THREAD_NAME]!r} "
            f"({attributes[names.TRANSACTION_STATUS]}), checked out at {attributes[names.CHECKED_OUT_AT]}"
        )
        self._write(logging.WARNING, "long_hold", text, attributes, context)

    def long_hold_returned(self, checkout: Checkout, context: Context | None) -> None:
        """Log the end of a long hold."""
        held = round(checkout.released - checkout.acquired, names.DIGITS)
        attributes = {names.HOLD_TIME: held, names.CONNECTION_PID: checkout.slot.pid}
        text = f"connection came back after {held:.3f} s"
        self._write(logging.INFO, "long_hold_returned", text, attributes, context)

    def reclaimed(self, attributes: Mapping[str, Any], context: Context | None) -> None:
        """Log that a dropped connection was reclaimed."""
        text = (
            f"connection dropped without being given back by thread {attributes[names.THREAD_NAME]!r} after "
            f"{attributes[names.HELD]:.3f} s, checked out at {attributes[names.CHECKED_OUT_AT]}"
        )
        self._write(logging.WARNING, "reclaimed", text, attributes, context)

    def timeout_is_due(self) -> bool:
        """Return whether a timeout would be logged now."""
        return monotonic() >= self._next_timeout

    def timeout(self, error: PoolTimeout, context: Context | None) -> None:
        """Log that a checkout timed out, at most once a second, and only with its diagnosis."""
        if not self.timeout_is_due() or not hasattr(error, "waited"):
            self._left_out += 1
            return
        self._next_timeout = monotonic() + TIMEOUT_INTERVAL
        left_out, self._left_out = self._left_out, 0
        attributes = {
            names.WAIT_TIME: error.waited,
            names.RETRIES: error.retries,
            names.SIZE: error.size,
            names.USED: error.used,
            names.IDLE: error.idle,
            names.CONNECTING: error.connecting,
            names.WAITING: error.waiting,
            names.MAXIMUM: error.maxconn,
            names.UTILIZATION: error.utilization,
            names.OLDEST_HOLD: error.oldest_hold,
            names.HOLDERS: tuple(str(holder) for holder in error.holders),
            names.LEFT_OUT: left_out,
        }
        unsaid = f" ({left_out} more timeouts since the last such record)" if left_out else ""
        self._write(logging.ERROR, "timeout", f"{error}{unsaid}", attributes, context)

    def discarded(
        self,
        slots: Sequence[Slot],
        reason: str,
        error_type: str | None,
        context: Context | None,
        message: str = "",
    ) -> None:
        """Log that connections were closed together."""
        is_lost = reason in LOST
        if not logger.isEnabledFor(logging.WARNING if is_lost else logging.DEBUG):  # a pid may have to be asked for
            return
        pids = [slot.pid for slot in slots]
        attributes: dict[str, Any] = {
            names.REASON: reason,
            names.CONNECTION_PID: pids[0] if len(pids) == 1 else pids,
            names.CONNECTIONS: len(pids),
        }
        if error_type is not None:
            attributes[names.ERROR_TYPE] = error_type
        cause = f" ({message or error_type})" if error_type else ""
        shown = ", ".join(map(str, pids))
        if is_lost:
            text = f"{len(pids)} connection{'s' if len(pids) > 1 else ''} lost: {reason}{cause}, pid {shown}"
            self._write(logging.WARNING, "connection_lost", text, attributes, context)
        else:
            self._write(logging.DEBUG, "discarded", f"discarded as {reason}: pid {shown}", attributes, context)

    def connected(self, connect: Connect) -> None:
        """Log a successful attempt to connect."""
        text = f"connected in {connect.ended - connect.began:.3f} s"
        self._write(logging.DEBUG, "connected", text, {names.ATTEMPT: connect.attempt})

    def connect_failed(self, connect: Connect, error_type: str) -> None:
        """Log a failed attempt to connect."""
        attributes = {names.ATTEMPT: connect.attempt, names.ERROR_TYPE: error_type}
        text = f"attempt {connect.attempt} to connect failed: {error_type}"
        self._write(logging.DEBUG, "connect_failed", text, attributes)

    def connect_refused(self, connect: Connect, error_type: str) -> None:
        """Log that the server is up and refuses the connection, at most once a minute for all pools of one name."""
        now = monotonic()
        if now < _refused_again.get(self._pool_name, now):
            return
        for name in [name for name, due in _refused_again.copy().items() if due <= now]:
            _refused_again.pop(name, None)
        _refused_again[self._pool_name] = now + REFUSAL_INTERVAL
        is_connected = sqlstate(connect.error) is not None  # `configure` was refused something then
        what = "a new connection cannot be used" if is_connected else CANNOT_BE_REACHED
        text = f"{what}: {connect.message or error_type}"
        self._write(logging.WARNING, "connect_refused", text, {names.ERROR_TYPE: error_type})

    def outage_started(self, connect: Connect, error_type: str) -> None:
        """Log that no connection can be opened."""
        attributes = {names.ERROR_TYPE: error_type, names.ATTEMPTS: connect.attempt, names.DURATION: 0.0}
        text = f"no connection can be made: {connect.message or error_type}"
        self._write(logging.ERROR, "outage_started", text, attributes)

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Log that the server was reached again."""
        attributes = {names.ATTEMPTS: attempts, names.DURATION: round(duration, names.DIGITS)}
        text = f"connections can be made again after {duration:.1f} s; attempts that failed: {attempts}"
        self._write(logging.INFO, "outage_ended", text, attributes)

    def utilization(self, level: str, stats: PoolStats) -> None:
        """Log that the utilization crossed a threshold."""
        attributes = {
            names.UTILIZATION: stats.utilization,
            names.USED: stats.used,
            names.MAXIMUM: stats.maxconn,
            names.WAITING: stats.waiting,
        }
        text = f"utilization {level}: {stats.used} of {stats.maxconn} in use, {stats.waiting} waiting"
        self._write(UTILIZATION_LEVELS[level], f"utilization_{level}", text, attributes)
