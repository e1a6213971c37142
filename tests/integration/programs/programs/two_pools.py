"""A program half-way from psycopg2 to psycopg 3: each driver has its pool."""

import json
import os
import sys

from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool

url = os.environ["DATABASE_URL"]
old = ThreadedConnectionPool(1, 2, url)
with ConnectionPool(url, min_size=1, max_size=3, name="new") as new:
    for _ in range(2):
        conn = old.getconn()
        with conn, conn.cursor() as cur:
            cur.execute("select 1")
        old.putconn(conn)
    with new.connection() as conn:
        conn.execute("select 1")
    held = old.getconn()
    with new.connection() as first, new.connection() as second:
        backends = [held.info.backend_pid, first.info.backend_pid, second.info.backend_pid]
        print(json.dumps(backends), flush=True)
        sys.stdin.readline()
    old.putconn(held)
    old.closeall()
