"""What fails beside a program's own work, as an observer does, is logged, and costs nobody a connection."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from typing import TYPE_CHECKING

from otel_pgpool._clock import monotonic
from otel_pgpool._texts import MOST_FRAMES, class_of, place_of, printable

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("otel_pgpool")

LAMENT_INTERVAL = 60.0
"""Seconds between two records of an observer that raises."""


class Guard:
    """Calls the observer of one pool."""

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name
        self._next_lament = 0.0

    def tell(self, method: Callable[..., None], *args: object) -> None:
        """Call a method of the observer."""
        try:
            method(*args)
        except Exception as error:  # noqa: BLE001 - an observer costs nobody a connection
            self.lament(error)

    def lament(self, error: Exception) -> None:
        """Log that the observer raised, at most once a minute.

        What a signal handler of the program's raised meanwhile, as Celery does at its soft time limit, is not the
        observer's, and goes on to the program.
        """
        if is_asynchronous(error):
            raise error
        now = monotonic()
        if now < self._next_lament:
            return
        self._next_lament = now + LAMENT_INTERVAL
        what = f"pool {self._pool_name}: its observer raised; the pool goes on, and telemetry is being lost"
        log_failure(what, error)


def log_failure(what: str, error: BaseException, level: int = logging.ERROR) -> None:
    """Log that something of ours has failed, with the class of its error and the places that it came through.

    Not with the error's text, nor with the source lines that Python would add: both may hold SQL or a secret. Nor with
    the error itself, as a record may be kept: its frames would keep the pool's connections.

    Args:
        what: has failed, and what follows from it.
        error: which is not raised again.
        level: of the record.
    """
    frames = [*traceback.walk_tb(error.__traceback__)][-MOST_FRAMES:]
    places = "".join(f"\n  {place_of(frame.f_code, line)}" for frame, line in frames)
    try:
        logger.log(level, "%s: %s%s", printable(what), class_of(error), places)
    except Exception as failure:  # the handlers of the log may be what has raised
        if is_asynchronous(failure):
            raise


def is_asynchronous(error: BaseException) -> bool:
    """Whether it is no ``Exception``, or came out of a signal handler: those run in the main thread alone."""
    if not isinstance(error, Exception):
        return True
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _line in traceback.walk_tb(error.__traceback__))


def _code_of(handler: object) -> object:
    """Of a function or method, or of an object that is called like one; None where Python calls nothing."""
    if handler is None or isinstance(handler, signal.Handlers):
        return None
    function = handler if hasattr(handler, "__code__") else getattr(type(handler), "__call__", None)  # noqa: B004 - it itself is wanted
    return getattr(function, "__code__", None)
