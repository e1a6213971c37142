"""The one query of a monitor: what PostgreSQL says of some sessions, and of those that block them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.database_state import MOST_BLOCKERS
from otel_pgpool.runtime.text import LONGEST_NAME, TRACEPARENT, printable

if TYPE_CHECKING:
    from collections.abc import Collection

STATEMENT = """
WITH RECURSIVE activity AS (
  SELECT pid, coalesce(nullif(application_name, ''), nullif(backend_type, 'client backend')) AS application_name,
    state, wait_event_type, wait_event, xact_start, query_start, backend_start, client_port
  FROM pg_catalog.pg_stat_activity
), locks AS (
  SELECT pid, mode, granted, relation, database
  FROM pg_catalog.pg_locks
  WHERE NOT granted OR locktype = 'tuple'
), chain(pid, blockers) AS (
  SELECT pid, CASE WHEN pid IN (SELECT pid FROM locks WHERE NOT granted)
    THEN (pg_catalog.pg_blocking_pids(pid))[1:%(most)s] ELSE '{}'::int[] END
  FROM activity
  WHERE pid = ANY ('{%(pids)s}'::int[]) OR application_name = ANY ('{%(names)s}'::text[])
UNION
  SELECT pid, CASE WHEN pid IN (SELECT pid FROM locks WHERE NOT granted)
    THEN (pg_catalog.pg_blocking_pids(pid))[1:%(most)s] ELSE '{}'::int[] END
  FROM (SELECT DISTINCT unnest(blockers) AS pid FROM chain) AS blocker
), waits AS (
  SELECT DISTINCT ON (wanted.pid) wanted.pid, wanted.mode, coalesce(wanted.relation, taken.relation) AS relation,
    coalesce(wanted.database, taken.database) AS database
  FROM locks AS wanted
    LEFT JOIN locks AS taken ON taken.pid = wanted.pid AND taken.granted AND wanted.relation IS NULL
  WHERE NOT wanted.granted
  ORDER BY wanted.pid, wanted.relation, taken.relation
), sessions AS (
  SELECT pid, blockers, application_name, state, wait_event_type, wait_event, client_port,
    extract(epoch FROM clock_timestamp() - backend_start) AS session_age,
    extract(epoch FROM clock_timestamp() - xact_start) AS transaction_age,
    CASE WHEN state = 'active' THEN extract(epoch FROM clock_timestamp() - query_start) END AS query_age,
    mode AS lock_mode,
    CASE WHEN database IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())) THEN (
      SELECT CASE nspname WHEN 'public' THEN '' ELSE quote_ident(nspname) || '.' END || quote_ident(relname)
      FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
      WHERE pg_class.oid = relation
    ) END AS lock_relation
  FROM chain LEFT JOIN activity USING (pid) LEFT JOIN waits USING (pid)
)
SELECT json_build_object(
  'backend', pg_catalog.pg_backend_pid(),
  'client_port', (SELECT client_port FROM activity WHERE pid = pg_catalog.pg_backend_pid()),
  'sessions', (SELECT coalesce(json_agg(row_to_json(sessions)), '[]') FROM sessions)
)::text
"""
"""The statement, which returns one JSON text, so that each driver returns the same.

It must run with a ``search_path`` of ``pg_catalog``: its functions and operators must not be those of another schema.
Each list is one literal, so that ``pg_stat_statements`` keeps one entry whatever their lengths.

Whether a session waits is read from its locks. `wait_event_type` changes while a session that waits for a lock wakes to
look for a deadlock, for instance.

A row lock is waited for as the lock of a transaction, which names no relation. The session then has the lock of the row
itself, which does. A relation of another database has no name here.
"""


class Session(NamedTuple):
    """One session as ``pg_stat_activity`` and ``pg_locks`` show it. Ages are in seconds; None if there is none."""

    pid: int
    blockers: tuple[int, ...]
    """Process ids of the sessions that hold or precede the lock that this session waits for."""
    application_name: str
    state: str
    """Empty if the monitor's login may not see it."""
    wait_event_type: str
    wait_event: str
    transaction_age: float | None
    query_age: float | None
    """Age of the statement that runs."""
    lock_mode: str
    lock_relation: str
    session_age: float | None = None
    client_port: int = 0
    """Port of the client's end as the server knows it; -1 for a Unix socket, 0 if unknown."""

    @property
    def trace_id(self) -> str:
        """Trace that the session's ``application_name`` contains; empty if it contains none."""
        found = TRACEPARENT.fullmatch(self.application_name)
        return found[1] if found else ""


class Answer(NamedTuple):
    """The answer to the query."""

    backend: int
    """Process id of the session that has answered."""
    sessions: dict[int, Session]
    """The sessions that were asked for and those that block them, by process id."""
    client_port: int = 0
    """Port of the monitor's end as the server knows it; -1 for a Unix socket, 0 if unknown."""


def statement_for(pids: Collection[int], names: Collection[str]) -> str:
    """Return the statement that asks for sessions by process id, or by a traceparent as ``application_name``."""
    listed = ",".join(name for name in names if TRACEPARENT.fullmatch(name))
    return STATEMENT % {"pids": ",".join(str(int(pid)) for pid in pids if pid), "names": listed, "most": MOST_BLOCKERS}


def read_answer(text: str) -> Answer:
    """Read the answer.

    Raises:
        ValueError, KeyError, TypeError: the text is not the answer to this query.
    """
    found = json.loads(text)
    sessions = {row["pid"]: _session_of(row) for row in found["sessions"]}
    return Answer(int(found["backend"]), sessions, found["client_port"] or 0)


def _session_of(row: dict[str, Any]) -> Session:
    def text(key: str) -> str:
        return printable(row[key] or "", LONGEST_NAME)

    def age(key: str) -> float | None:
        return None if row[key] is None else max(0.0, float(row[key]))

    return Session(
        pid=int(row["pid"]),
        blockers=tuple(dict.fromkeys(row["blockers"] or ())),
        application_name=text("application_name"),
        state=text("state"),
        wait_event_type=text("wait_event_type"),
        wait_event=text("wait_event"),
        transaction_age=age("transaction_age"),
        query_age=age("query_age"),
        lock_mode=text("lock_mode"),
        lock_relation=text("lock_relation"),
        session_age=age("session_age"),
        client_port=row["client_port"] or 0,
    )
