"""Access to psycopg2's connections by psycopg2's own code only.

An application may have put its own code around a connection: a subclass, a fake in its tests, an agent's proxy. None of
that is called, so that it sees no call that the pool itself did not make.
"""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.instrumentation.lenient import lenient, pass_over
from otel_pgpool.pool.checkout import Slot
from otel_pgpool.runtime.text import printable


def own_of(conn: Any) -> connection | None:
    """Return psycopg2's connection inside the proxies of agents; None if there is none."""
    own = unwrapped(conn)
    return own if issubclass(type(own), connection) else None


def pid_of(conn: Any) -> int:
    """Return the process id of a connection's backend; 0 if it has none any more, or is not psycopg2's."""
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
    """Return a connection's ``closed``, which pools read too; 0 if it has none."""
    try:
        return conn.closed  # type: ignore[no-any-return]  # a number or a truth
    except Exception as error:  # noqa: BLE001 - the hot path, hence no context manager
        pass_over(error)
        return 0


class SeenSlot(Slot):
    """The slot of an instrumented pool's connection; the pid of one that is not psycopg2's is read on demand."""

    __slots__ = ("_pid",)

    _pid: int

    @property
    def pid(self) -> int:
        """Process id of the backend; 0 if it cannot be determined."""
        if not self._pid:
            with lenient:
                conn: Any = self.ref()
                self._pid = 0 if conn is None else int(conn.get_backend_pid())
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid
