"""The demo's part of a database: a scratch schema, and control over the demo's own sessions only.

The database may be a user's. Its texts are escaped, including those that libpq prints itself.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from otel_pgpool.cli.errors import CommandError
from otel_pgpool.cli.terminal import MAX_TEXT, escape
from otel_pgpool.driver.dsn import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

ACCEPTED = "postgresql://user@host:port/dbname or libpq's key=value pairs"
CONNECT_TIMEOUT = 5
STATEMENT_TIMEOUT_MS = 5000
STDERR = 2
MAX_STDERR_LINES = 20
STDERR_JOIN_TIMEOUT = 1.0

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


class Database:
    """A database for the demo, whose tables are in a schema with a unique name."""

    def __init__(self, dsn: str, *, option: str = "--dsn") -> None:
        """Check that ``dsn`` can be parsed; do not connect yet.

        Raises:
            CommandError: the DSN cannot be parsed; the message contains ``option``, the source of the DSN.
        """
        try:
            self._parameters = parse_dsn(dsn)
        except psycopg2.ProgrammingError:
            # Without libpq's text, which quotes the part that it could not read: it may be the password.
            raise CommandError(f"{option} cannot be read: expected {ACCEPTED}") from None
        try:
            Target((dsn,), {})
        except ValueError as error:
            raise CommandError(f"{option}: {error}") from None
        if not self._parameters:
            raise CommandError(f"{option} is empty: expected {ACCEPTED}")
        self._option = option
        self._dsn = dsn
        self.schema = f"otel_pgpool_demo_{secrets.token_hex(4)}"
        self.application_name = self.schema
        self.server_version = ""
        self._admin: connection | None = None

    @property
    def dsn(self) -> str:
        """DSN for the pool's connections."""
        return self._dsn

    @property
    def connect_options(self) -> dict[str, Any]:
        """Arguments of the pool's connects beside the DSN; ``application_name`` identifies the demo's sessions."""
        timeout = {} if "connect_timeout" in self._parameters else {"connect_timeout": CONNECT_TIMEOUT}
        return {"application_name": self.application_name} | timeout

    def configure(self, conn: connection) -> None:
        """Set the search path of a new connection of the pool to the shop's tables."""
        with conn.cursor() as cur:
            cur.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self.schema)))
        conn.commit()

    def connect(self) -> None:
        """Connect, in a separate thread, so that Ctrl-C does not have to wait for libpq.

        Raises:
            CommandError: the server cannot be reached, or refuses.
        """
        outcome: list[connection | psycopg2.Error] = []
        thread = threading.Thread(target=lambda: outcome.append(self._try_open_session()), daemon=True, name="connect")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
        result = outcome[0]
        if isinstance(result, psycopg2.Error):
            raise CommandError(f"{self._option}: {self._safe_text(result)}") from None
        self._admin = result
        self.server_version = str(result.info.parameter_status("server_version") or "").partition(" ")[0]

    def make_tables(self) -> None:
        """Create the schema with the shop's tables.

        Raises:
            CommandError: the role is not allowed to.
        """
        try:
            self._execute(sql.SQL("CREATE SCHEMA {0}; SET search_path TO {0};").format(sql.Identifier(self.schema)))
            self._execute(_TABLES)
        except psycopg2.Error as error:
            raise CommandError(f"{self._option}: the shop's tables cannot be made: {self._safe_text(error)}") from None

    def drop_tables(self) -> None:
        """Drop the schema.

        Raises:
            CommandError: the schema could not be dropped; the message contains its name.
        """
        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(self.schema))
        try:
            try:
                self._execute(drop)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self.disconnect()
                self._admin = self._open_session()
                self._execute(drop)
        except psycopg2.Error as error:
            raise CommandError(f"schema {self.schema} could not be dropped: {self._safe_text(error)}") from None

    def kill_idle(self) -> int:
        """End the pool's idle sessions, as a failover or an administrator would; return their number.

        Raises:
            CommandError: the sessions cannot be ended.
        """
        return self._terminate("AND state = 'idle'")

    def kill(self, pid: int) -> int:
        """End one of the pool's sessions, even in the middle of a query; return the number of ended sessions.

        Raises:
            CommandError: the session cannot be ended.
        """
        return self._terminate("AND pid = %s", pid)

    def count_sessions(self) -> int:
        """Return the number of sessions that the pool has at the server."""
        try:
            return self._execute("SELECT FROM pg_stat_activity WHERE application_name = %s", self.application_name)
        except psycopg2.Error as error:
            raise CommandError(f"{self._option}: {self._safe_text(error)}") from None

    def end_sessions(self) -> None:
        """End all sessions that the pool has at the server."""
        with suppress(CommandError):
            self._terminate("")

    def disconnect(self) -> None:
        """Close the connection of this class itself."""
        if self._admin is not None:
            with suppress(psycopg2.Error):
                self._admin.close()
            self._admin = None

    def _terminate(self, which: str, *arguments: int) -> int:
        own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s "
        try:
            return self._execute(own + which, self.application_name, *arguments)
        except psycopg2.Error as error:
            raise CommandError(f"{self._option}: sessions cannot be ended: {self._safe_text(error)}") from None

    def _execute(self, statement: str | sql.Composable, *arguments: object) -> int:
        """Execute a statement and return the number of its rows."""
        if self._admin is None:
            raise psycopg2.InterfaceError("not connected")
        with self._admin.cursor() as cur:
            cur.execute(statement, arguments or None)
            return cur.rowcount

    def _open_session(self) -> connection:
        options = self.connect_options | {"application_name": f"{self.application_name}_admin"}
        conn: connection = psycopg2.connect(self._dsn, **options)
        conn.autocommit = True
        with conn.cursor() as cur:
            cur.execute("SELECT set_config('statement_timeout', %s, false)", (str(STATEMENT_TIMEOUT_MS),))
        return conn

    def _try_open_session(self) -> connection | psycopg2.Error:
        try:
            return self._open_session()
        except psycopg2.Error as error:
            return error

    def _safe_text(self, error: psycopg2.Error) -> str:
        """Return the text of an error of libpq or the server, on one line and without the password."""
        text = " ".join(str(error).split()) or type(error).__name__
        password = self._parameters.get("password")
        return text.replace(password, "***") if password else text


@contextmanager
def escaped_stderr() -> Iterator[None]:
    """Escape what C libraries write to descriptor 2 during the block, up to a number of lines.

    libpq prints a server's notices there while it connects. ``sys.stderr`` is replaced by a stream that is not escaped.
    """
    try:
        real = os.dup(STDERR)
    except OSError:  # stderr is closed: nobody reads it
        yield
        return
    python, before = open(os.dup(real), "w", buffering=1, errors="backslashreplace"), sys.stderr  # noqa: PTH123, SIM115 - a descriptor, closed below
    reader, writer = os.pipe()
    os.dup2(writer, STDERR)
    os.close(writer)
    copying = threading.Thread(target=_copy_escaped, args=(open(reader, "rb"), python), daemon=True)  # noqa: PTH123, SIM115 - likewise
    copying.start()
    sys.stderr = python
    try:
        yield
    finally:
        sys.stderr = before
        os.dup2(real, STDERR)  # the pipe's last writer, unless a child process lives on
        os.close(real)
        copying.join(STDERR_JOIN_TIMEOUT)
        with suppress(OSError):
            python.close()


def _copy_escaped(reader: IO[bytes], stderr: IO[str]) -> None:
    with reader, suppress(OSError, ValueError):  # nobody reads stderr any more
        count = 0
        while line := reader.readline(MAX_TEXT):
            count += 1
            if count <= MAX_STDERR_LINES:
                stderr.write(escape(line.decode(errors="replace").rstrip("\r\n")) + "\n")
