"""An attempt to open a connection: how long its present step may take, and what ends the attempt."""

from __future__ import annotations

import math
import select
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from otel_pgpool.driver.deadline import shutdown_socket
from otel_pgpool.driver.error_text import Quotable, describe
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection


CONNECT = "the connect"
"""Name of the step in which libpq connects; in the other steps the application's code runs."""


class ConnectAttempt:
    """An attempt to open a connection, made by one thread and watched by another.

    libpq's ``connect_timeout`` does not bound the lookup of a host's name, nor a connect under a wait callback, as
    psycogreen and eventlet set one. The application's own code, such as ``credentials``, has no bound at all. An
    attempt whose step takes longer than allowed is therefore abandoned: its thread is left alone, and a connection that
    it opens later is closed.

    Args:
        number: number of the attempt since the server became unreachable; otherwise 1.
        limit: seconds that the caller has if it connects in its own thread; None in a thread of the pool.
        warn: called before credentials are sent over a connection that may not be encrypted.
        delays_fork: seconds that the connect delays a fork at most.
    """

    def __init__(
        self,
        number: int = 1,
        limit: float | None = None,
        warn: Callable[[], None] = lambda: None,
        delays_fork: float = math.inf,
    ) -> None:
        self.number = number
        self.began = monotonic()
        self.thread = threading.current_thread()
        self.limit = limit
        self.warn = warn
        self.delays_fork = delays_fork
        self._step = ""
        self._allowed = math.inf
        self._due = math.inf
        self._host_seconds = math.inf
        self._next_cut = math.inf
        self._polled: connection | None = None
        self.was_cut = False
        self._overdue: psycopg2.Error | None = None

    def allow(self, step: str, seconds: float) -> None:
        """Begin a step that may take ``seconds``; errors contain its name ``step``."""
        self._step = step
        self._allowed = seconds
        self._due = monotonic() + seconds

    def is_overdue(self, now: float) -> bool:
        """Return whether the present step takes longer than allowed."""
        return now >= self._due

    def overdue_error(self) -> psycopg2.OperationalError:
        """Return the error of an attempt that was abandoned or cut."""
        self._overdue = psycopg2.OperationalError(f"{self._step} did not end within {self._allowed:.3g} s")
        return self._overdue

    def message_of(self, error: BaseException, target: Quotable) -> str:
        """Return the text of the error that ended the attempt, free of secrets.

        The text is empty if the application's code raised the error.
        """
        if error is self._overdue:
            return str(error)
        return describe(target, error) if self._step == CONNECT else ""

    def watch_polled(self, factory: Any, host_seconds: float) -> Callable[..., connection]:
        """Return a connection factory for a connect under a wait callback, which lets `cut` end the connect.

        Args:
            factory: the application's factory, or None.
            host_seconds: seconds that the connect to each host may take.
        """
        kind: Any = extensions.connection if factory is None else factory
        self._host_seconds = host_seconds
        self._next_cut = monotonic() + host_seconds
        if not isinstance(kind, type) or type(kind).__call__ is not type.__call__:
            return kind  # type: ignore[no-any-return]  # a function returns its connection only once it is connected

        def make(*args: Any, **kwargs: Any) -> Any:
            self._polled = conn = kind.__new__(kind, *args, **kwargs)
            conn.__init__(*args, **kwargs)
            self._polled = None
            return conn

        return make

    @contextmanager
    def poll_within(self, seconds: float) -> Iterator[None]:
        """Bound the connects of this thread under a wait callback, where no other thread can cut them.

        Raises:
            psycopg2.OperationalError: from the connect, if it is polled for longer than ``seconds``.
        """
        callback: Any = extensions.get_wait_callback()
        due = monotonic() + seconds
        has_ended = False

        def wait(conn: connection) -> None:
            if has_ended or threading.current_thread() is not self.thread:
                callback(conn)
                return
            while (state := conn.poll()) != extensions.POLL_OK:
                poll = select.poll()
                poll.register(conn.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
                if not poll.poll(max(0.0, due - monotonic()) * 1000):
                    raise self.overdue_error()

        extensions.set_wait_callback(wait)
        try:
            yield
        finally:
            has_ended = True  # because a callback that another thread has set meanwhile may call this one
            if extensions.get_wait_callback() is wait:
                extensions.set_wait_callback(callback)

    def cut(self, now: float) -> None:
        """Cut a polled connect that waits too long for its present host; libpq then tries the next host, or fails."""
        if now >= self._next_cut and (conn := self._polled) is not None:
            self._next_cut = now + self._host_seconds
            self.was_cut = True
            shutdown_socket(conn)
