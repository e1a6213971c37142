"""A worker in the manner of Celery's: takes a task off its broker, runs it, acknowledges it, takes the next."""

import os
import sys
from collections.abc import Callable

from psycopg2.pool import ThreadedConnectionPool

pool = ThreadedConnectionPool(1, 20, os.environ["DATABASE_URL"])
tasks: dict[str, Callable[[int], None]] = {}


def task(function: Callable[[int], None]) -> Callable[[int], None]:
    tasks[function.__name__] = function
    return function


@task
def send(letter: int) -> None:
    conn = pool.getconn()
    with conn, conn.cursor() as cur:
        cur.execute("select count(*) from pg_database")
    if letter % 10 == 0:
        return  # nothing to send, and the connection is forgotten
    pool.putconn(conn)


for line in sys.stdin:
    name, _, argument = line.partition(" ")
    tasks[name](int(argument))
    print(argument.strip(), flush=True)
