"""The distinction between a server that is up and refuses a connection, and one that cannot serve anyone."""

from __future__ import annotations

import psycopg2

from otel_pgpool.driver.refusal_texts import refuses_by_state, refuses_by_text
from otel_pgpool.errors import sqlstate
from otel_pgpool.runtime.text import text_of


def is_refusal(error: BaseException | None) -> bool:
    """Return whether the server is up and refused this connection, as for a wrong password or an unknown database.

    An answer of a server that is starting, stopping or out of slots is not a refusal, because the server is not
    available. psycopg2 provides no SQLSTATE for a failed connect, so this reads the message.
    """
    if not isinstance(error, psycopg2.Error):
        return False
    state = sqlstate(error)
    return refuses_by_text(text_of(error)) if state is None else refuses_by_state(state)
