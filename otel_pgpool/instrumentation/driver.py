"""Look at psycopg2's connections by its own code alone.

A program may have put its own over a connection: a subclass, a fake of its tests, an agent's proxy. Of these nothing is
asked, so that they see no call which their pool did not make.
"""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection

from otel_pgpool._proxy import unwrapped
from otel_pgpool._slot import Slot
from otel_pgpool._texts import printable
from otel_pgpool.instrumentation.lenient import lenient, pass_over


def own_of(conn: Any) -> connection | None:
    """Return psycopg2's connection, behind the proxies of agents; None for what is none."""
    own = unwrapped(conn)
    return own if issubclass(type(own), connection) else None


def pid_of(conn: Any) -> int:
    """Return the process id of a connection's backend; 0 where it has none any more, or is not psycopg2's."""
    with lenient:
        own = own_of(conn)
        return 0 if own is None else connection.get_backend_pid(own)
    return 0


def place_of(conn: Any) -> tuple[str | None, int | None]:
    """Return the host and port that a connection was made to."""
    with lenient:
        info = _info_of(conn)
        if info is not None:
            return printable(info.host), info.port
    return None, None


def parameters_of(conn: Any) -> dict[str, Any]:
    """Return a connection's parameters, as libpq knows them, without the password."""
    with lenient:
        info = _info_of(conn)
        if info is not None:
            return {**info.dsn_parameters}
    return {}


def _info_of(conn: Any) -> Any:
    own = own_of(conn)
    return None if own is None else connection.info.__get__(own)


def closed_of(conn: Any) -> int:
    """Return a connection's ``closed``, which pools read too; 0 for what does not say it."""
    try:
        return conn.closed  # type: ignore[no-any-return]  # a number or a truth
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        pass_over(error)
        return 0


class SeenSlot(Slot):
    """The slot of an instrumented pool's connection, whose pid is asked for late where it is not psycopg2's."""

    __slots__ = ("_pid",)

    _pid: int

    @property
    def pid(self) -> int:
        """Process id of its backend; 0 where it cannot be known."""
        if not self._pid:
            with lenient:
                conn: Any = self.ref()
                self._pid = 0 if conn is None else int(conn.get_backend_pid())
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid
