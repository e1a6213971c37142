"""The state of a new connection, and a ready-made ``reset``, which restores it on the server and in psycopg2."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from otel_pgpool.driver.proxy import unwrapped
from otel_pgpool.driver.session import roll_back
from otel_pgpool.runtime.text import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg2.extensions import connection

ATTRIBUTE = "_otel_pgpool_initial_state"
"""Name of the attribute of a connection with its initial state."""

LONGEST_NOTICE = 20_000
"""Maximum number of characters of a notice: fifty of them are a megabyte for each connection."""


PROXY_WAIT = "NOTICE:  No server connection available in postgres backend, client being queued\n"
"""The notice of PgBouncer 1.25 or later to a client whose query waits for a server connection.

The whole text is compared. PostgreSQL's own notices differ even with these words if the server's messages are not in
English, or if they have a detail or a hint. psycopg2 shows no other field of a notice.
"""


class Notices(list[str]):
    """A list of notices that keeps the beginning of each, and notes when a proxy lets a query wait.

    Args:
        notices: the notices that the list has at first.
        note_proxy_wait: called with each notice of `PROXY_WAIT`, by psycopg2 at the end of a query: it may only note.
    """

    def __init__(self, notices: Iterable[str] = (), note_proxy_wait: Callable[[], object] | None = None) -> None:
        super().__init__(notices)
        self._note_proxy_wait = note_proxy_wait

    def append(self, notice: str) -> None:
        """Append a notice, shortened. Called by psycopg2, which removes the oldest notice itself."""
        super().append(cut(notice, LONGEST_NOTICE))
        if notice == PROXY_WAIT and self._note_proxy_wait is not None:
            self._note_proxy_wait()

    def emptied(self) -> Notices:
        """Return a new, empty list of the same connection."""
        return Notices((), self._note_proxy_wait)


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


def bound_notices(conn: connection, note_proxy_wait: Callable[[], object] | None = None) -> None:
    """Bound the notices of a connection, unless the connection or the list is of an application's own class.

    ``note_proxy_wait`` is called when a proxy lets a query of the connection wait: see `Notices`.
    """
    is_psycopg2s = type(conn).__module__.partition(".")[0] == "psycopg2"  # an application's class may share its list
    if is_psycopg2s and type(conn.notices) is list:
        conn.notices = Notices(conn.notices, note_proxy_wait)


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
    conn.notices = _new(conn.notices if type(conn.notices) is Notices else initial.notices, Notices)
    conn.notifies = _new(initial.notifies, list)


def _new(kept: Any, kind: type) -> Any:
    """Return a new list, to which the last holder has no reference; or ``kept`` if it is the application's own."""
    if type(kept) is Notices:
        return kept.emptied()
    return kind() if kept is None or type(kept) is list else kept
