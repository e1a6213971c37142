"""Connections inside a proxy, such as those of agents that trace queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def unwrapped(conn: connection) -> connection:
    """Return psycopg2's own connection, without the proxies around it.

    The agents use the proxies of wrapt, which ``isinstance`` cannot distinguish from the object inside.
    """
    while hasattr(type(conn), "__wrapped__"):
        conn = conn.__wrapped__  # type: ignore[attr-defined]  # an attribute of wrapt's proxies
    return conn
