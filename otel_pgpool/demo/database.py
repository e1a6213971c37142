"""The demo's part of a database: a scratch schema, and control over the demo's own sessions only.

The database may be a user's.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from otel_pgpool.cli.errors import CommandError
from otel_pgpool.driver.dsn import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection, cursor

ACCEPTED = "postgresql://user@host:port/dbname or libpq's key=value pairs"
CONNECT_TIMEOUT = 5
STATEMENT_TIMEOUT_MS = 5000

_TABLES = """
CREATE TABLE customer (id integer PRIMARY KEY);
CREATE TABLE product (id integer PRIMARY KEY, name text NOT NULL, stock integer NOT NULL CHECK (stock >= 0));
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customer DEFERRABLE INITIALLY DEFERRED,
    product_id integer NOT NULL REFERENCES product,
    placed_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO customer SELECT generate_series(1, 50);
INSERT INTO product SELECT id, 'product ' || id, CASE id WHEN 1 THEN 0 ELSE 1000000 END FROM generate_series(1, 200) id;
INSERT INTO orders (customer_id, product_id) SELECT 1 + i % 50, 2 + i % 199 FROM generate_series(1, 1000) i;
"""
_KILL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = %s AND coalesce(state, '') LIKE %s AND query LIKE %s
"""


class Database:
    """A database for the demo, whose tables are in a schema with a unique name."""

    def __init__(self, dsn: str, *, option: str = "--dsn") -> None:
        """Check that ``dsn`` can be parsed; do not connect yet.

        Raises:
            CommandError: the DSN cannot be parsed; the message contains ``option``, the source of the DSN.
        """
        try:
            parameters = parse_dsn(dsn)
            parse((dsn,), {})
        except psycopg2.ProgrammingError:
            # Without libpq's text, which quotes the part that it could not read: it may be the password.
            raise CommandError(f"{option} cannot be read: expected {ACCEPTED}") from None
        except ValueError as error:
            raise CommandError(f"{option}: {error}") from None
        if not parameters:
            raise CommandError(f"{option} is empty: expected {ACCEPTED}")
        self.dsn = dsn
        self.schema = f"otel_pgpool_demo_{secrets.token_hex(4)}"
        self.connect_options: dict[str, Any] = {"application_name": self.schema}
        """Arguments of the pool's connects beside the DSN; ``application_name`` identifies the demo's sessions."""
        if "connect_timeout" not in parameters:
            self.connect_options["connect_timeout"] = CONNECT_TIMEOUT
        self.server_version = ""
        self._option = option
        self._password = parameters.get("password")

    def configure(self, conn: connection) -> None:
        """Set the search path of a new connection of the pool to the shop's tables."""
        with conn.cursor() as cur:
            cur.execute(self._with_schema("SET search_path TO {}"))
        conn.commit()

    def connect(self) -> None:
        """Connect once, in a separate thread, so that Ctrl-C does not have to wait for libpq.

        Raises:
            CommandError: the server cannot be reached, or refuses.
        """
        connected: Future[None] = Future()

        def try_connect() -> None:
            try:
                with self._session(self._option) as cur:
                    version = cur.connection.info.parameter_status("server_version") or ""
                    self.server_version = version.partition(" ")[0]
                connected.set_result(None)
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                connected.set_exception(error)

        threading.Thread(target=try_connect, daemon=True, name="connect").start()
        connected.result()

    def make_tables(self) -> None:
        """Create the schema with the shop's tables.

        Raises:
            CommandError: the role is not allowed to.
        """
        with self._session(f"{self._option}: the shop's tables cannot be made") as cur:
            cur.execute(self._with_schema("CREATE SCHEMA {0}; SET search_path TO {0};"))
            cur.execute(_TABLES)

    def drop_tables(self) -> None:
        """Drop the schema.

        Raises:
            CommandError: the schema could not be dropped; the message contains its name.
        """
        with self._session(f"schema {self.schema} could not be dropped") as cur:
            cur.execute(self._with_schema("DROP SCHEMA IF EXISTS {} CASCADE"))

    def kill(self, *, state: str = "%", query: str = "%") -> int:
        """End the pool's sessions in a state and with a last query, both patterns of LIKE; return their number.

        Raises:
            CommandError: the sessions cannot be ended.
        """
        with self._session(f"{self._option}: sessions cannot be ended") as cur:
            cur.execute(_KILL, (self.schema, state, query))
            return cur.rowcount

    def end_sessions(self) -> None:
        """End all sessions of the pool, if the server can be reached."""
        with suppress(CommandError):
            self.kill()

    def count_sessions(self) -> int:
        """Return the number of sessions that the pool has at the server."""
        with self._session(self._option) as cur:
            cur.execute("SELECT FROM pg_stat_activity WHERE application_name = %s", (self.schema,))
            return cur.rowcount

    @contextmanager
    def _session(self, failure: str) -> Iterator[cursor]:
        """Open a session of its own, so that no earlier failure matters.

        Raises:
            CommandError: it could not be opened, or a statement failed. The message begins with ``failure``, and is one
                line without the password.
        """
        options = self.connect_options | {"application_name": f"{self.schema}_admin"}
        try:
            with closing(psycopg2.connect(self.dsn, **options)) as conn:
                conn.autocommit = True
                with conn.cursor() as cur:
                    cur.execute(f"SET statement_timeout TO {STATEMENT_TIMEOUT_MS}")
                    yield cur
        except psycopg2.Error as error:
            text = " ".join(str(error).split()) or type(error).__name__
            safe = text.replace(self._password, "***") if self._password else text
            raise CommandError(f"{failure}: {safe}") from None

    def _with_schema(self, statement: str) -> sql.Composed:
        return sql.SQL(statement).format(sql.Identifier(self.schema))
