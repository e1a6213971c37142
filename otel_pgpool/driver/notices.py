"""A bounded list for a server's notices: psycopg2 keeps the last fifty of a connection, of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.text import cut

if TYPE_CHECKING:
    from psycopg2.extensions import connection

LONGEST_NOTICE = 20_000
"""Maximum number of characters of a notice: fifty of them are a megabyte for each connection."""


class Notices(list[str]):
    """A list of notices that keeps the beginning of each."""

    def append(self, notice: str) -> None:
        """Append a notice, shortened. Called by psycopg2, which removes the oldest notice itself."""
        super().append(cut(notice, LONGEST_NOTICE))


def bound_notices(conn: connection) -> None:
    """Bound the notices of a connection, unless the connection or the list is of an application's own class."""
    is_psycopg2s = type(conn).__module__.partition(".")[0] == "psycopg2"  # an application's class may share its list
    if is_psycopg2s and type(conn.notices) is list:
        conn.notices = Notices(conn.notices)
