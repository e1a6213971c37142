"""Tasks of Celery that share a pool, which is open before the worker forks."""

import os

from celery import Celery
from psycopg_pool import ConnectionPool

app = Celery("payments", config_source="celeryconfig")
pool = ConnectionPool(
    os.environ["DATABASE_URL"], min_size=int(os.environ["MIN_SIZE"]), max_size=4, timeout=2, name="payments", open=True
)
pool.wait()


@app.task
def pay(number: int) -> None:
    with pool.connection() as conn:
        conn.execute("insert into payments values (%s, %s, %s)", [number, os.getpid(), conn.info.backend_pid])
