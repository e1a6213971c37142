"""Connections that an agent has put a proxy around, as those do that trace a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def unwrapped(conn: connection) -> connection:
    """Return psycopg2's own connection.

    The agents' proxies are wrapt's. Each passes itself off as what it wraps, so ``isinstance`` does not tell them.
    """
    while hasattr(type(conn), "__wrapped__"):
        conn = conn.__wrapped__  # type: ignore[attr-defined]  # that of wrapt
    return conn
