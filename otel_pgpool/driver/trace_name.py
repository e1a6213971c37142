"""The name of a session during a checkout: the trace of its span, as ``application_name`` on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg2
from psycopg2.extensions import QuotedString

from otel_pgpool.driver import session
from otel_pgpool.driver.deadline import Deadline, NoAnswer
from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.runtime.failures import is_external
from otel_pgpool.runtime.text import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

PARAMETER = "application_name"


def is_traceparent(name: str) -> bool:
    """Return whether a name is a ``traceparent``, which the server keeps as it is."""
    return TRACEPARENT.fullmatch(name) is not None


class Renamed(NamedTuple):
    """The baseline of a session that has the name of a checkout's trace.

    It takes the place of the settings in `Slot.baseline`. No settings equal it, so each comparison at a release finds
    that the session has to be restored, and the release of other sessions needs no test of its own.
    """

    settings: tuple[Any, ...]
    """psycopg2's settings, which the release restores."""
    former: str
    """The name before."""
    name: str
    """The name during the checkout."""

    @classmethod
    def of(cls, conn: connection, settings: tuple[Any, ...], name: str) -> Renamed | None:
        """Return the baseline of a session that is about to be renamed; None if the server does not report its name.

        libpq knows the name from the server's reports, so no statement is sent.
        """
        former = conn.get_parameter_status(PARAMETER)
        return None if former is None else cls(settings, former, name)

    def apply(self, conn: connection, seconds: float) -> None:
        """Rename the session. If the server refuses, it keeps its name, which costs nothing else.

        Args:
            conn: an idle connection.
            seconds: time limit.

        Raises:
            psycopg2.Error: the connection cannot be used.
        """
        error: Exception | None = None
        with Deadline(conn, seconds) as deadline:
            try:
                session.execute_alone(conn, f"SET {PARAMETER} TO '{self.name}'")
            except Exception as failure:  # whatever was raised, the connection decides
                if is_external(failure):
                    raise
                error = failure
        if deadline.expired:
            raise NoAnswer.within(seconds)
        if conn.closed and error is not None:
            raise error.with_traceback(None)
        if not session.is_clean(conn, self.settings):
            raise psycopg2.OperationalError("the connection could not be reset") from error

    def undo(self, conn: connection, settings: tuple[Any, ...]) -> None:
        """Restore the name before, unless the holder, a ``reset`` or ``configure`` has changed the name.

        Args:
            conn: an idle connection.
            settings: psycopg2's settings of the connection.

        Raises:
            psycopg2.Error: the name could not be restored.
        """
        if conn.get_parameter_status(PARAMETER) != self.name:
            return
        quoted = QuotedString(self.former)
        quoted.prepare(unwrapped(conn))
        with Deadline(conn) as deadline:
            session.execute_alone(conn, f"SET {PARAMETER} TO {quoted}")
        is_restored = not conn.closed and conn.get_parameter_status(PARAMETER) != self.name
        if deadline.expired or not is_restored or not session.is_clean(conn, settings):
            raise psycopg2.OperationalError("the connection could not be reset")


def restore(
    conn: connection,
    baseline: tuple[Any, ...],
    origin: tuple[Any, ...],
    reset: Callable[[connection], object] | None,
    prepare: Callable[[connection], object] | None,
) -> tuple[Any, ...]:
    """Restore a released connection as `session.restore` does, and the name of its session."""
    if not isinstance(baseline, Renamed):
        return session.restore(conn, baseline, origin, reset, prepare)
    settings = session.restore(conn, baseline.settings, origin, reset, prepare)
    baseline.undo(conn, settings)
    return settings
