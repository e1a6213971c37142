"""Notices of a server, which psycopg2 keeps with the connection: the last fifty, of any length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool._texts import cut

if TYPE_CHECKING:
    from psycopg2.extensions import connection

LONGEST_NOTICE = 20_000
"""Characters of a notice: a megabyte for each connection that lies idle."""


class Notices(list[str]):
    """Keeps of each notice its beginning."""

    def append(self, notice: str) -> None:
        """Called by psycopg2, which takes the oldest away itself."""
        super().append(cut(notice, LONGEST_NOTICE))


def bound_notices(conn: connection) -> None:
    """Keep the notices of a connection from growing without bound, unless it is of a program's own class."""
    is_psycopg2s = type(conn).__module__.partition(".")[0] == "psycopg2"  # a class of the program's may share its list
    if is_psycopg2s and type(conn.notices) is list:
        conn.notices = Notices(conn.notices)
