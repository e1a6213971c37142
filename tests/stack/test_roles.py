"""postgres/roles.sql, run as the image runs it: each program of the stack does its work, and nothing beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
import psycopg2.errors
import pytest
from psycopg2.extensions import make_dsn

from tests.support.database_roles import PASSWORDS, SUPERUSERS, make_roles, open_server
from tests.support.stack_files import ROOT, compose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer


THE_SHOPS_WORK = """
import app

app.pool.open()
app.make_tables()
client = app.app.test_client()
answers = [client.post("/", data={"product": 7}), client.get("/"), client.get("/report"), client.post("/recount")]
print(*(answer.status_code for answer in answers))
app.pool.close()
"""


class Stack:
    """Its PostgreSQL, with the roles."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def dsn(self, role: str, dbname: str = "shop", password: str | None = None) -> str:
        return make_dsn(
            host="127.0.0.1", port=self._server.port, user=role, dbname=dbname, password=password or PASSWORDS[role]
        )

    def run(self, role: str, statement: str, dbname: str = "shop") -> list[tuple[object, ...]]:
        """Run one statement; its rows."""
        with closing(psycopg2.connect(self.dsn(role, dbname))) as conn, conn.cursor() as cur:
            conn.autocommit = True
            cur.execute(statement)
            return cur.fetchall() if cur.description else []


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with open_server() as server:
        made = make_roles(server, PASSWORDS)
        assert made.returncode == 0, made.stderr
        yield Stack(server)


def test_compose_gives_the_passwords_by_the_names_that_are_read() -> None:
    text = (ROOT / "postgres/roles.sql").read_text()
    for role in PASSWORDS:
        assert f"\\getenv {role}_password {role.upper()}_PASSWORD\n" in text
        assert f"{role.upper()}_PASSWORD" in compose()["postgres"]["environment"]


@pytest.fixture(scope="module")
def served(stack: Stack) -> Stack:
    """Let the shop, as its own role, do everything that it does."""
    done = subprocess.run(
        [sys.executable, "-c", THE_SHOPS_WORK],
        cwd=ROOT / "examples/shop",
        env={**os.environ, "DATABASE_URL": stack.dsn("shop"), "OTEL_SDK_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout == "302 200 200 302\n", done.stderr
    return stack


def test_the_shop_does_its_work(served: Stack) -> None:
    """It makes its tables in a schema of its own, sells, reports and counts."""
    assert served.run("shop", "select count(*) from orders") == [(1,)]
    owned = "select schemaname from pg_tables where tableowner = 'shop' group by 1"
    assert served.run("shop", owned) == [("shop",)]


def test_the_collector_counts_connections(served: Stack) -> None:
    """Of each database, the shop's own included."""
    with closing(psycopg2.connect(served.dsn("shop"))):
        count = "select count(*) from pg_stat_activity where datname = 'shop' and usename = 'shop'"
        assert served.run("collector", count, "postgres") == [(1,)]
    assert served.run("collector", "show max_connections")


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        *(
            (role, statement)
            for role in PASSWORDS
            for statement in (
                "create role intruder superuser",
                "alter role postgres password 'x'",
                "create database another",
                "select rolpassword from pg_authid",
                "copy (select 1) to program 'true'",
                "select pg_read_file('PG_VERSION')",
                "create table public.left_behind ()",
                "create temporary table aside ()",
                "alter system set log_statement = 'all'",
            )
        ),
        ("collector", "select * from shop.orders"),
        ("collector", "drop schema shop cascade"),
        ("collector", "create schema another"),
        ("shop", "create schema another"),
        ("shop", "set role collector"),
    ],
)
def test_a_role_is_refused_what_it_does_not_need(served: Stack, role: str, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        served.run(role, statement)


@pytest.mark.parametrize(("role", "dbname"), [("shop", "postgres"), ("shop", "template1"), ("collector", "template1")])
def test_a_role_enters_no_database_that_it_has_nothing_to_do_in(stack: Stack, role: str, dbname: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(stack.dsn(role, dbname))


@pytest.mark.parametrize("password", ["shop", SUPERUSERS, PASSWORDS["collector"]])
def test_a_role_has_its_own_password(stack: Stack, password: str) -> None:
    """Not its name, and nobody else's."""
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(stack.dsn("shop", password=password))


def test_without_the_passwords_no_role_is_made() -> None:
    """The script fails, rather than to make a role that anybody may be."""
    with open_server() as server:
        assert "syntax error" in make_roles(server, {}).stderr
        with closing(psycopg2.connect(server.dsn)) as admin, admin.cursor() as cur:
            cur.execute("select rolname from pg_roles where rolcanlogin")
            assert cur.fetchall() == [("postgres",)]
