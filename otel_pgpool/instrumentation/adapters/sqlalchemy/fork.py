"""SQLAlchemy's pools in a forked child, which drop the parent's connections without sending anything to the server."""

from __future__ import annotations

import os
import socket
import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import is_connected
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import idle_records
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record

ENDING = ("do_rollback", "do_close", "do_terminate")
"""Methods of a dialect by which a pool ends a transaction or a connection at its release."""


class InheritedConnections:
    """The parent's connections that may still be released in a forked child.

    At a release a pool calls its dialect to roll back or to close. The dialect's methods are wrapped so that they leave
    the parent's connections alone. A connection released this way gets a dead socket, because the next commit would
    otherwise commit what should have been rolled back.

    The wrappers are plain functions, because each release calls one: the benchmark ``hooked-sqlalchemy`` measures them.
    """

    def __init__(self) -> None:
        self._conns: dict[int, Any] = {}  # by id; kept alive, so that no id is reused
        self._dialects: weakref.WeakSet[Any] = weakref.WeakSet()

    def __contains__(self, conn: object) -> bool:
        """Return whether a connection is the parent's."""
        return id(conn) in self._conns

    def add(self, record: Record, conn: Any) -> None:
        """Keep a record, whose connection was checked out in the parent, from being released to its pool."""
        self._conns[id(conn)] = conn
        record.fairy_ref = None

    def protect(self, dialect: Any) -> None:
        """Wrap the methods of a dialect."""
        if dialect not in self._dialects:
            self._dialects.add(dialect)
            for name in ENDING:
                original = getattr(dialect, name, None)  # SQLAlchemy before 1.4.42 cannot terminate
                if original is not None:
                    setattr(dialect, name, self._unless_inherited(original, vars(dialect).get(name)))

    def restore_dialects(self) -> None:
        """Restore the dialects' methods, except where third-party code has wrapped them since."""
        for dialect in [*self._dialects]:
            for name in ENDING:
                now = vars(dialect).get(name)
                if getattr(now, "inherited", None) is self:
                    if now.before is None:
                        delattr(dialect, name)
                    else:
                        setattr(dialect, name, now.before)

    def _unless_inherited(self, original: Callable[..., Any], before: Any) -> Callable[..., Any]:
        conns = self._conns

        @wraps(original)
        def end(conn: Any) -> Any:
            if not is_here:
                renew()
            if conns:
                own = getattr(conn, "dbapi_connection", conn)
                if id(own) in conns:
                    _replace_socket(own)
                    return None
            return original(conn)

        end.inherited, end.before = self, before  # type: ignore[attr-defined]  # read in `restore_dialects`
        return end


def reset_pool(pool: Any) -> list[Record]:
    """Replace a pool's state by that of a new pool; return the former idle records, whose sockets are closed here."""
    idle = [record for record in idle_records(pool) if is_connected(record)]
    own = vars(pool)
    single = own.pop("connection", None)  # of a StaticPool
    own.update({name: value for name, value in vars(pool.recreate()).items() if name not in ("dispatch", TRACKER_ATTR)})
    _close_here(record.dbapi_connection for record in idle)
    return [*idle, single] if is_connected(single) else idle


def _close_here(conns: Iterable[Any]) -> None:
    for conn in conns:
        with ignore_errors:  # closed already
            os.close(conn.fileno())


def _replace_socket(conn: Any) -> None:
    """Replace a connection's socket, in this process, by one that is not connected."""
    with ignore_errors, socket.socket() as dead:
        os.dup2(dead.fileno(), conn.fileno(), inheritable=False)
