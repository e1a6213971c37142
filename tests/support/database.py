"""Statements, sessions and ports of the server that a pool connects to."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg2.extensions import connection

IDLE = extensions.TRANSACTION_STATUS_IDLE
IN_TRANSACTION = extensions.TRANSACTION_STATUS_INTRANS


def ask(conn: connection, sql: str, *parameters: object) -> Any:
    """Return the first value of a statement's first row, if there is one."""
    with conn.cursor() as cur:
        cur.execute(sql, parameters or None)
        row = cur.fetchone() if cur.description else None
    return row and row[0]


def kill(admin: connection, pids: Iterable[int]) -> None:
    """End backends as an administrator does, and wait until they are gone."""
    for pid in pids:
        assert ask(admin, "select pg_terminate_backend(%s, 10000)", pid)


def lives(admin: connection, pid: int) -> bool:
    return bool(ask(admin, "select count(*) from pg_stat_activity where pid = %s", pid))


def wait_until_readable(conn: connection) -> None:
    """Until the server has sent something to an idle connection."""
    assert select.select([conn], [], [], PATIENCE)[0]


def connects(dsn: str) -> bool:
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 that refuses connections for as long as the block lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
