"""What the child of a fork does with a pool of psycopg2's and its connections."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from tests.support.database import ask

if TYPE_CHECKING:
    from psycopg2.extensions import connection

Pool = Any


def states(admin: connection, pids: list[int]) -> list[tuple[Any, ...]]:
    """Return the server's last state of these sessions."""
    with admin.cursor() as cur:
        cur.execute(
            "select pid, state, query, state_change from pg_stat_activity where pid = any(%s) order by 1", [pids]
        )
        return cur.fetchall()


def warm(pool: Pool) -> list[int]:
    """Let every idle connection of a pool speak once; their backends."""
    for conn in pool._pool:
        ask(conn, "select 1")
        conn.rollback()
    return [conn.get_backend_pid() for conn in pool._pool]


def use(pool: Pool) -> int:
    """Use the pool; return the backend."""
    conn = pool.getconn()
    pid = ask(conn, "select pg_backend_pid()")
    pool.putconn(conn)
    assert isinstance(pid, int)
    return pid


def end_by_exit(pool: Pool, held: connection) -> None:
    pass


def end_by_work(pool: Pool, held: connection) -> None:
    for _ in range(3):
        assert use(pool) != held.get_backend_pid()


def end_by_putconn(pool: Pool, held: connection) -> None:
    pool.putconn(held)
    use(pool)


def end_by_putconn_close(pool: Pool, held: connection) -> None:
    pool.putconn(held, close=True)


def end_by_putconn_key(pool: Pool, held: connection) -> None:
    pool.putconn(held, "held")


def end_by_closeall(pool: Pool, held: connection) -> None:
    pool.closeall()


def end_by_garbage(pool: Pool, held: connection) -> None:
    del held, pool
    gc.collect()


DEEDS = [
    end_by_exit,
    end_by_work,
    end_by_putconn,
    end_by_putconn_close,
    end_by_putconn_key,
    end_by_closeall,
    end_by_garbage,
]
