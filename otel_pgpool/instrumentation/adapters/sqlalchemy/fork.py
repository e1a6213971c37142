"""SQLAlchemy's pools in a forked child, which drop the parent's connections without sending anything to the server."""

from __future__ import annotations

import weakref
from functools import wraps
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.adapters.sqlalchemy.engine import is_connected
from otel_pgpool.instrumentation.adapters.sqlalchemy.private import driver_connection, pool_records
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR
from otel_pgpool.runtime.fork import is_here, renew

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.instrumentation.adapters.sqlalchemy.drivers.base import EngineDriver
    from otel_pgpool.instrumentation.adapters.sqlalchemy.private import Record

ENDING_METHODS = ("do_rollback", "do_close", "do_terminate")
"""Methods of a dialect by which a pool ends a transaction or a connection at its release."""


class InheritedConnections:
    """The parent's connections that may still be released in a forked child.

    At a release a pool calls its dialect to roll back or to close. The dialect's methods are wrapped so that they leave
    the parent's connections alone. A connection released this way gets a dead socket, because the next commit would
    otherwise commit what should have been rolled back.

    The wrappers are plain functions, because each release calls one: the benchmark ``hooked-sqlalchemy`` measures them.
    """

    def __init__(self) -> None:
        # By id, with the driver; kept alive, so that no id is reused. Never replaced.
        self.conns: dict[int, tuple[Any, EngineDriver]] = {}
        self._uncounted: dict[int, str] = {}  # name of the pool, by id of the connection
        self._kept_alive: list[Record] = []  # because a driver's finalizer may warn, or wake its event loop
        self._dialects: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, record: Record, conn: Any, driver: EngineDriver, pool_name: str) -> None:
        """Keep a record, whose connection was checked out in the parent, from being released to its pool."""
        if id(conn) not in self.conns:
            self._uncounted[id(conn)] = pool_name
        self.conns[id(conn)] = conn, driver
        record.fairy_ref = None

    def count(self, pool_name: str) -> int:
        """Return how many connections of a pool, or of a pool that it has replaced, were added; each counts once."""
        added = [key for key, name in self._uncounted.items() if name == pool_name]
        for key in added:
            del self._uncounted[key]
        return len(added)

    def close_sockets(self, idle: list[Record], driver: EngineDriver) -> None:
        """Close the sockets of the parent's idle connections in this process, and keep the records alive."""
        self._kept_alive += idle
        for record in idle:
            with ignore_errors:  # closed already
                driver.close_socket(driver_connection(record.dbapi_connection))

    def protect(self, dialect: Any) -> None:
        """Wrap the methods of a dialect that a release calls."""
        if dialect not in self._dialects:
            self._dialects.add(dialect)
            for name in ENDING_METHODS:
                original = getattr(dialect, name, None)  # SQLAlchemy before 1.4.42 cannot terminate
                if original is not None:
                    setattr(dialect, name, self._unless_inherited(original, vars(dialect).get(name)))

    def restore_dialects(self) -> None:
        """Restore the dialects' methods, except where third-party code has wrapped them since."""
        for dialect in [*self._dialects]:
            for name in ENDING_METHODS:
                now = vars(dialect).get(name)
                if getattr(now, "inherited", None) is self:
                    if now.before is None:
                        delattr(dialect, name)
                    else:
                        setattr(dialect, name, now.before)

    def _unless_inherited(self, original: Callable[..., Any], before: Any) -> Callable[..., Any]:
        conns = self.conns

        @wraps(original)
        def end(conn: Any) -> Any:
            if not is_here:
                renew()
            if conns:
                own = getattr(conn, "dbapi_connection", conn)
                known = conns.get(id(own))
                if known is not None:
                    with ignore_errors:  # closed already
                        known[1].cut_off(driver_connection(own))
                    return None
            return original(conn)

        end.inherited, end.before = self, before  # type: ignore[attr-defined]  # read in `restore_dialects`
        return end


def reset_pool(pool: Any) -> list[Record]:
    """Replace a pool's state by that of a new pool; return the former idle records."""
    idle = [record for record in pool_records(pool) if is_connected(record) and not record.in_use]
    own = vars(pool)
    own.pop("connection", None)  # of a StaticPool
    own.update({name: value for name, value in vars(pool.recreate()).items() if name not in ("dispatch", TRACKER_ATTR)})
    return idle
