"""A crowd of greenlets shares five connections."""

from gevent import monkey

monkey.patch_all()

import json
import os
from typing import Any

import gevent
from psycogreen.gevent import patch_psycopg
from psycopg2.pool import ThreadedConnectionPool

patch_psycopg()

CONNECTIONS = 5
GREENLETS = 200
ROUNDS = 3


def run(pool: Any) -> None:
    """Everybody is served in turn; the first turn begins when everybody has come."""
    come = begun = overtaken = 0
    served = [0] * GREENLETS

    def serve(number: int) -> None:
        nonlocal come, begun, overtaken
        come += 1
        while sum(served) < GREENLETS * ROUNDS:
            before = begun
            conn = pool.getconn()
            overtaken = max(overtaken, begun - before)
            begun += 1
            with conn, conn.cursor() as cur:
                cur.execute("select pg_sleep(0.001)")
            served[number] += 1
            pool.putconn(conn)

    taken = [pool.getconn() for _ in range(CONNECTIONS)]
    greenlets = [gevent.spawn(serve, number) for number in range(GREENLETS)]
    while come < GREENLETS:
        gevent.sleep(0)
    for conn in taken:
        pool.putconn(conn)
    gevent.joinall(greenlets)
    failed = sum(not greenlet.successful() for greenlet in greenlets)
    print(json.dumps({"served": sum(served), "least": min(served), "overtaken": overtaken, "failed": failed}))
    pool.closeall()


if __name__ == "__main__":
    run(ThreadedConnectionPool(CONNECTIONS, CONNECTIONS, os.environ["DATABASE_URL"]))
