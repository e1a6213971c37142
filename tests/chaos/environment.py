"""The environment of a fault: one server or two, and the network between them and the pool."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import trustme
from psycopg2.extensions import parse_dsn

from otel_pgpool.demo.postgres import PostgresServer, find_binaries
from tests.chaos.application import TABLES
from tests.support.proxy import Proxy
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from contextlib import ExitStack


REPLICATES: dict[str, str | float] = {"wal_level": "replica", "max_wal_senders": 4}
OLD_PASSWORD, NEW_PASSWORD = secrets.token_urlsafe(24), secrets.token_urlsafe(24)


@dataclass
class Environment:
    """The server of a fault, and how the pool connects to it."""

    server: PostgresServer
    dsn: dict[str, Any]
    """The parameters of the pool's connections."""
    proxy: Proxy | None = None
    standby: PostgresServer | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of our pool."""
    certificates: dict[str, trustme.CA] = field(default_factory=dict)

    @property
    def audited(self) -> PostgresServer:
        """The server whose tables are compared with the application's results."""
        return self.standby or self.server

    @property
    def old_primaries(self) -> list[PostgresServer]:
        """The server to which no connection may lead in the end, if there is one."""
        return [self.server] if self.standby else []


def one_server(stage: ExitStack, **settings: str | float) -> Environment:
    """Provide a server that is connected directly."""
    server = stage.enter_context(ClonedServer(settings=settings))
    execute(server, TABLES)
    return Environment(server, parse_dsn(server.dsn))


def over_a_network(stage: ExitStack) -> Environment:
    """Provide a server behind a `Proxy`."""
    environment = one_server(stage)
    environment.proxy = stage.enter_context(Proxy(environment.server.port))
    environment.dsn["port"] = environment.proxy.port
    return environment


def with_a_password(stage: ExitStack) -> Environment:
    """Provide a server that requires a password, and a secret that can be rotated."""
    server = stage.enter_context(ClonedServer(password=OLD_PASSWORD))
    execute(server, TABLES)
    execute(server, f"create role app login password '{OLD_PASSWORD}'; grant all on all tables in schema public to app")
    dsn = {key: value for key, value in parse_dsn(server.dsn).items() if key != "password"} | {"user": "app"}
    secret = {"password": OLD_PASSWORD}
    return Environment(server, dsn, options={"credentials": lambda: secret, "name": "secret"})


def over_tls(stage: ExitStack) -> Environment:
    """Provide a server behind a proxy with TLS, and a pool that verifies the certificate."""
    environment = over_a_network(stage)
    folder = Path(environment.server.socket_dir)
    environment.certificates = {"trusted": trustme.CA(), "stranger": trustme.CA()}
    environment.certificates["trusted"].cert_pem.write_to_path(str(folder / "ca.pem"))
    assert environment.proxy is not None
    environment.proxy.certify(environment.certificates["trusted"])
    environment.dsn |= {"sslmode": "verify-full", "sslrootcert": str(folder / "ca.pem")}
    return environment


def primary_and_standby(stage: ExitStack) -> Environment:
    """Provide a primary, a synchronous standby, and a DSN with both."""
    primary = stage.enter_context(ClonedServer(settings=REPLICATES, password=OLD_PASSWORD))
    execute(primary, TABLES)
    standby = stage.enter_context(ClonedServer(settings=REPLICATES, password=OLD_PASSWORD))
    standby.stop("immediate")
    copy_cluster(primary, Path(standby.socket_dir, "data"))
    standby.start()
    execute(primary, "alter system set synchronous_standby_names = '*'")
    execute(primary, "select pg_reload_conf()")
    dsn = parse_dsn(primary.dsn) | {
        "host": "127.0.0.1,127.0.0.1",
        "port": f"{primary.port},{standby.port}",
        "target_session_attrs": "read-write",
    }
    return Environment(primary, dsn, standby=standby)


def copy_cluster(primary: PostgresServer, data: Path) -> None:
    """Make a standby's data folder, as `pg_basebackup` makes it."""
    owner = data.stat()
    shutil.rmtree(data)
    command = [str(find_binaries() / "pg_basebackup"), "-D", str(data), "-R", "-c", "fast"]
    where = {"PGHOST": "127.0.0.1", "PGPORT": str(primary.port), "PGUSER": "postgres", "PGPASSWORD": OLD_PASSWORD}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | where)
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def execute(server: PostgresServer, statement: str) -> None:
    """Run a statement without the pool and the proxy."""
    conn = psycopg2.connect(server.dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(statement)
    conn.close()


FULL_SERVER = partial(one_server, max_connections=12, superuser_reserved_connections=0)
RECOVERABLE_SERVER = partial(one_server, wal_level="replica", max_wal_senders=4)
