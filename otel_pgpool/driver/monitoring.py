"""The properties of every monitoring connection, whatever its driver; independent of any driver."""

from __future__ import annotations

APPLICATION_NAME = "otel_pgpool monitor"

TIME_LIMIT = 2.0
"""Seconds for a connect to each host, and for a query."""

NO_ANSWER = f"no answer within {TIME_LIMIT:g} s"

NO_RIGHTS = "the login may not read pg_stat_activity or pg_locks; the role pg_monitor may"

FORK_DELAY = 0.1
"""Seconds that a connect delays a fork at most: afterwards libpq only waits for the server, and holds no lock."""

MODES = "ISOLATION LEVEL READ COMMITTED, READ ONLY, NOT DEFERRABLE"
"""The modes of a query's transaction. A deferrable one might wait for others."""

SETTINGS = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL statement_timeout = 1000"
"""The settings of a query's transaction. With this ``search_path``, no function of another schema can be called.

They set nothing for the session, which a proxy may share with other clients.
"""

READ_ONLY = f"SET TRANSACTION {MODES}; {SETTINGS}; "
"""The beginning of a query that is sent as one message, which the server runs in one transaction."""
