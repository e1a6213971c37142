"""Between a pool and its observer: whatever an observer raises is logged, and costs nobody a connection."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool._clock import monotonic

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

        As text: a record that kept the error would keep its frames, and so the pool's connections; and the places
        alone, as source lines may hold SQL.
        """
        if is_asynchronous(error):
            raise error
        now = monotonic()
        if now < self._next_lament:
            return
        self._next_lament = now + LAMENT_INTERVAL
        places = "".join(
            f'\n  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'
            for frame, line in traceback.walk_tb(error.__traceback__)
        )
        try:
            what = type(error).__name__ if isinstance(error, psycopg2.Error) else f"{type(error).__name__}: {error}"
            logger.error(
                "pool %s: its observer raised %s; the pool goes on, and telemetry is being lost%s",
                self._pool_name,
                what,
                places,
            )
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
