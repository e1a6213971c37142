"""A ready-made ``reset``: the session as connecting left it, on the server and in psycopg2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from otel_pgpool._connection import roll_back
from otel_pgpool._notices import Notices
from otel_pgpool._proxy import unwrapped

if TYPE_CHECKING:
    from psycopg2.extensions import connection

ATTRIBUTE = "_otel_pgpool_made"
OF_OURS = (list, Notices)


class Made(NamedTuple):
    """What psycopg2 keeps on a connection and ``connection.reset`` leaves there, as connecting made it."""

    cursor_factory: Any = None
    string_types: dict[int, Any] | None = None
    binary_types: dict[int, Any] | None = None
    notices: Any = None
    notifies: Any = None


_made: WeakKeyDictionary[connection, Made] = WeakKeyDictionary()
"""Of connections that have no attributes of their own."""


def remember(conn: connection) -> None:
    """Keep what the arguments of connecting, and the program's connection factory, made of a new connection.

    On the connection itself where that can be: a factory's own objects may refer to it, and would keep it alive.
    """
    conn = unwrapped(conn)
    made = Made(conn.cursor_factory, {**conn.string_types}, {**conn.binary_types}, conn.notices, conn.notifies)
    try:
        setattr(conn, ATTRIBUTE, made)
    except AttributeError:
        _made[conn] = made._replace(notices=None, notifies=None)


def reset_session(conn: connection) -> None:
    """Leave a connection as connecting made it: to be given as ``reset=reset_session``. One round trip.

    On the server, with ``DISCARD ALL``: role, session authorization, all settings, temporary tables, prepared
    statements, ``WITH HOLD`` cursors, ``LISTEN``, advisory locks. In psycopg2: autocommit, isolation level, read only,
    deferrable, client encoding, cursor factory, typecasters, notices and notifies. A transaction still open is rolled
    back, one of two phases too. What a connection factory asks the server for goes as well: that belongs in
    ``configure``.

    Args:
        conn: a connection of a pool; or another one, which is left as psycopg2 makes it without arguments.

    Raises:
        PoolError: its two-phase transaction is prepared: only who coordinates it may end it.
        psycopg2.Error: the server did not do it, or the connection is closed or asynchronous. Close it then.
    """
    roll_back(conn)
    conn.reset()  # DISCARD ALL, and psycopg2's settings; a DISCARD ALL alone leaves it a wrong encoding and DateStyle
    conn = unwrapped(conn)
    made = getattr(conn, ATTRIBUTE, None) or _made.get(conn) or Made()
    conn.cursor_factory = made.cursor_factory
    for types, kept in ((conn.string_types, made.string_types), (conn.binary_types, made.binary_types)):
        types.clear()
        types.update(kept or {})
    conn.notices = _emptied(made.notices)
    conn.notifies = _emptied(made.notifies)


def _emptied(kept: Any) -> Any:
    """A new list, which the last borrower does not have; or the program's own object, emptied where it can be."""
    if kept is None or type(kept) in OF_OURS:
        return type(kept or [])()
    if hasattr(kept, "clear"):
        kept.clear()
    return kept
