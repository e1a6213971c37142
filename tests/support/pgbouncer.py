"""A real PgBouncer in front of a server of PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from tests.support.external_programs import environment, find_program, free_ports

if TYPE_CHECKING:
    from otel_pgpool.demo.postgres import PostgresServer

STARTS_WITHIN = 20.0  # seconds


class PgBouncer:
    """A PgBouncer in front of one database, on the loopback."""

    def __init__(self, folder: Path, server: PostgresServer, mode: str, **settings: object) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)
        self.dsn = make_dsn(server.dsn, port=self.port)
        target = parse_dsn(server.dsn)
        users = Path(server.socket_dir, "users")  # where the user that PgBouncer becomes may read it, and nobody else
        users.write_text(f'"{target["user"]}" "{target["password"]}"\n')
        config = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": users,
            "admin_users": "postgres",
            "pool_mode": mode,
            "default_pool_size": 2,
            "ignore_startup_parameters": "extra_float_digits",
            **settings,
        }
        self.log = folder / "pgbouncer.log"
        self._file = folder / "pgbouncer.ini"
        self._file.write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={target['port']} dbname={target['dbname']} "
            f"user={target['user']}\n[pgbouncer]\n" + "".join(f"{key} = {value}\n" for key, value in config.items())
        )

    @property
    def pid(self) -> int:
        """Return the id of its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it lets clients in."""
        command = [str(find_program("pgbouncer")), str(self._file)]
        if os.geteuid() == 0:  # which it refuses
            command[1:1] = ["-u", "nobody"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env={**environment(), "TZ": "UTC"}, stderr=log)
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                psycopg2.connect(self.dsn).close()
            except psycopg2.OperationalError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Kill it as a crash does; do nothing if it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def servers_used(self) -> int:
        """How many connections it has to PostgreSQL."""
        return len(self.command("show servers"))

    def command(self, text: str) -> list[object]:
        """Give it a command; what it shows."""
        conn = psycopg2.connect(self.dsn, dbname="pgbouncer")
        try:
            conn.autocommit = True
            with conn.cursor() as cur:
                cur.execute(text)
                return cur.fetchall() if cur.description else []
        finally:
            conn.close()
