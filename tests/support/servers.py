"""PostgreSQL servers that start fast: each is a copy of one cluster, in memory if there is room.

`initdb` takes a second of CPU. Here it runs once in each process of tests.
"""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import closing
from functools import cache
from pathlib import Path
from unittest.mock import patch

import psycopg2
from psycopg2.extensions import make_dsn

from otel_pgpool.demo import postgres
from otel_pgpool.demo.postgres import START_TIMEOUT, PostgresServer

MEMORY = Path("/dev/shm")  # nosec B108
ROOM = 4 << 30
"""Bytes that have to be free there: containers often have 64 MB."""


class ClonedServer(PostgresServer):
    """A `PostgresServer` with a password of its own and a copied cluster."""

    def start(self) -> None:
        """Start the server; change the password of a new one, which is the template's."""
        is_new = self._port is None
        super().start()
        if is_new:
            try:
                self._change_password(_template()._password)
            except BaseException:
                self.close()
                raise

    def _create(self) -> None:
        folder = servers_folder()
        with patch.object(postgres, "_base_folder", lambda _account: folder):
            super()._create()

    def _initdb(self, folder: Path, secret: Path) -> None:
        copying = self._spawn(["cp", "-R", Path(_template().socket_dir, "data"), folder / "data"])
        if copying.wait(START_TIMEOUT):
            raise self._failure("the cluster could not be copied")

    def _change_password(self, old: str) -> None:
        dsn = make_dsn(self.dsn, password=old)
        with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
            cursor.execute("alter role postgres password %s", (postgres._verifier(self._password),))


@cache
def _template() -> PostgresServer:
    """Return a server that is never started; its guard deletes it even if this process is killed."""
    server = PostgresServer()
    server._create()
    atexit.register(_delete, server, os.getpid())
    return server


def _delete(server: PostgresServer, process: int) -> None:
    if os.getpid() == process:  # and not a forked child
        server.close()


@cache
def servers_folder() -> str:
    """Return the folder for the servers' files: in memory if there is room."""
    account = postgres._unprivileged()
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return str(MEMORY)
    return postgres._base_folder(account)
