"""The state of a new connection, and a ready-made ``reset``, which restores it on the server and in psycopg2."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.session import roll_back
from otel_pgpool.runtime.text import cut

if TYPE_CHECKING:
    from psycopg2.extensions import connection

ATTRIBUTE = "_otel_pgpool_initial_state"
"""Name of the attribute of a connection with its initial state."""

LONGEST_NOTICE = 20_000
"""Maximum number of characters of a notice: fifty of them are a megabyte for each connection."""


class Notices(list[str]):
    """A list of notices that keeps the beginning of each."""

    def append(self, notice: str) -> None:
        """Append a notice, shortened. Called by psycopg2, which removes the oldest notice itself."""
        super().append(cut(notice, LONGEST_NOTICE))


OWN_LISTS = (list, Notices)


class InitialState(NamedTuple):
    """The state of a new connection that psycopg2 keeps and ``connection.reset`` does not restore."""

    cursor_factory: Any = None
    string_types: dict[int, Any] | None = None
    binary_types: dict[int, Any] | None = None
    notices: Any = None
    notifies: Any = None


_initial_states: WeakKeyDictionary[connection, InitialState] = WeakKeyDictionary()
"""Initial states of connections on which no attribute can be set.

Of the connection's objects only a class is kept here: others, which an application has registered, may refer to the
connection and would keep it alive.
"""


def bound_notices(conn: connection) -> None:
    """Bound the notices of a connection, unless the connection or the list is of an application's own class."""
    is_psycopg2s = type(conn).__module__.partition(".")[0] == "psycopg2"  # an application's class may share its list
    if is_psycopg2s and type(conn.notices) is list:
        conn.notices = Notices(conn.notices)


def store_initial_state(conn: connection) -> None:
    """Store the initial state of a connection, which its arguments and the application's connection class determine."""
    conn = unwrapped(conn)
    factory, strings, binaries = conn.cursor_factory, {**conn.string_types}, {**conn.binary_types}
    try:
        setattr(conn, ATTRIBUTE, InitialState(factory, strings, binaries, conn.notices, conn.notifies))
    except Exception:  # noqa: BLE001 - psycopg2's own class refuses attributes, an application's may raise anything
        with suppress(TypeError):  # the connection does not allow weak references
            _initial_states[conn] = InitialState(factory if isinstance(factory, type) else None)


def reset_session(conn: connection) -> None:
    """Restore a connection to its state after the connect. Pass this function to the pool as ``reset=reset_session``.

    It takes one round trip to the server, or two if the login's ``DateStyle`` is not ISO.

    On the server, ``DISCARD ALL`` resets role, session authorization and all settings, and drops temporary tables,
    prepared statements, ``WITH HOLD`` cursors, ``LISTEN`` registrations and advisory locks. In psycopg2, autocommit,
    isolation level, read only, deferrable, client encoding, cursor factory, typecasters, notices and notifies are
    restored. Objects that an application's own connection class has put in their place remain, and so do its other
    attributes. A transaction in progress is rolled back, including a two-phase one that is not prepared. Settings that
    a connection factory makes on the server are lost too; they belong in ``configure``.

    Args:
        conn: a connection of a pool, or any other one, which gets the state of a connection made without options.

    Raises:
        PoolError: a two-phase transaction is prepared, which only its coordinator may end.
        psycopg2.Error: the server did not reset the session, or the connection is closed or asynchronous. Close the
            connection then.
    """
    roll_back(conn)
    # DISCARD ALL, and psycopg2's settings: after a DISCARD ALL alone, its encoding and DateStyle would be wrong.
    conn.reset()
    conn = unwrapped(conn)
    initial: InitialState = getattr(conn, ATTRIBUTE, None) or _initial_states.get(conn) or InitialState()
    conn.cursor_factory = initial.cursor_factory
    for types, kept in ((conn.string_types, initial.string_types), (conn.binary_types, initial.binary_types)):
        types.clear()
        types.update(kept or {})
    conn.notices = _new(initial.notices, Notices)
    conn.notifies = _new(initial.notifies, list)


def _new(kept: Any, kind: type) -> Any:
    """Return a new list, to which the last holder has no reference; or ``kept`` if it is the application's own."""
    return kind() if kept is None or type(kept) in OWN_LISTS else kept
