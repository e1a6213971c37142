"""Protection of the application from errors of others, such as an observer's: they are logged, not raised."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.text import MOST_FRAMES, class_of, place_of, printable

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("otel_pgpool")

ERROR_LOG_INTERVAL = 60.0
"""Minimum number of seconds between two log records about an observer that raises."""


class ObserverGuard:
    """A protected way to call the observer of one pool."""

    def __init__(self, pool_name: str) -> None:
        self.pool_name = pool_name
        self._next_log = 0.0

    def notify(self, method: Callable[..., None], *args: object) -> None:
        """Notify the observer by calling one of its methods."""
        try:
            method(*args)
        except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
            self.log_error(error)

    def log_error(self, error: Exception) -> None:
        """Log that the observer raised, at most once a minute.

        An exception that a signal handler raised during the call, as Celery's does at the soft time limit, is not the
        observer's and is raised again.
        """
        if is_external(error):
            raise error
        now = monotonic()
        if now < self._next_log:
            return
        self._next_log = now + ERROR_LOG_INTERVAL
        log_failure(
            f"pool {self.pool_name}: the observer raised an error; telemetry is lost, but the pool is not affected",
            error,
        )


def log_failure(what: str, error: BaseException, level: int = logging.ERROR) -> None:
    """Log a failure of this package in one line, with the class of its error and the call sites of its traceback.

    The record has neither the error's text nor source lines, because both may contain SQL or a secret. It does not have
    the error object either: a record may be kept, and the frames of the error's traceback would keep the pool's
    connections.

    Args:
        what: the failure and its consequence.
        error: the error, which is not raised again.
        level: level of the record.
    """
    frames = [*traceback.walk_tb(error.__traceback__)][-MOST_FRAMES:]
    places = "".join(f"; {place_of(frame.f_code, line)}" for frame, line in frames)
    log_safely(level, "%s: %s%s", printable(what), class_of(error), places)


def log_safely(level: int, message: str, *args: object, **options: Any) -> None:
    """Write a log record. A log handler that raises costs its record, and nothing else.

    Args:
        level: level of the record.
        message: text of the record.
        *args: arguments of the text.
        **options: for ``logging.Logger.log``.
    """
    try:
        logger.log(level, message, *args, **options)
    except Exception as failure:
        if is_external(failure):
            raise


def is_external(error: BaseException) -> bool:
    """Return whether an error is not an ``Exception``, or was raised by a signal handler.

    Signal handlers run in the main thread only.
    """
    if not isinstance(error, Exception):
        return True
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _line in traceback.walk_tb(error.__traceback__))


def _code_of(handler: object) -> object:
    """Return the code of a function, a method or a callable object, or None if Python calls nothing."""
    if handler is None or isinstance(handler, signal.Handlers):
        return None
    function = handler if hasattr(handler, "__code__") else getattr(type(handler), "__call__", None)  # noqa: B004 - the method itself is needed
    return getattr(function, "__code__", None)
