"""``postgres/roles.sql``, run as the image runs it."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg2
import pytest

from otel_pgpool.demo.postgres import PostgresServer, find_binaries
from tests.support.servers import ClonedServer
from tests.support.stack_files import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORDS = {"shop": "the shop's: 'quoted'", "collector": "collector's"}
SUPERUSERS = "the superuser's"
PSQL = find_binaries() / "psql"


@contextmanager
def open_server(**settings: int) -> Iterator[PostgresServer]:
    """PostgreSQL with the shop's database, as the image has made it when it comes to the script."""
    with ClonedServer(settings=settings, password=SUPERUSERS) as server:
        with closing(psycopg2.connect(server.dsn)) as admin, admin.cursor() as cur:
            admin.autocommit = True
            cur.execute("create database shop")
        yield server


def make_roles(server: PostgresServer, passwords: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the script, with the passwords of these roles. The test is skipped where PostgreSQL came without psql."""
    if not PSQL.exists():
        pytest.skip("this PostgreSQL has no psql, which runs the script")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_PASSWORD")}
    environment |= {f"{role.upper()}_PASSWORD": password for role, password in passwords.items()}
    where = ["--host=127.0.0.1", f"--port={server.port}", "--username=postgres", "--dbname=shop"]
    return subprocess.run(
        [PSQL, "--no-psqlrc", *where, f"--file={ROOT / 'postgres/roles.sql'}"],
        env=environment | {"PGPASSWORD": SUPERUSERS},
        capture_output=True,
        text=True,
        check=False,
    )
