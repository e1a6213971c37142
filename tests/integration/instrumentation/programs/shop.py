"""A shop on the web: an order takes something out of the stock; a cart keeps its connection, and nobody clears it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask
from psycopg2.extensions import connection
from psycopg2.pool import ThreadedConnectionPool
from werkzeug.serving import make_server

pool = ThreadedConnectionPool(1, 8, os.environ["DATABASE_URL"])
carts: list[connection] = []
app = Flask(__name__)


@contextmanager
def transaction() -> Iterator[connection]:
    conn = pool.getconn()
    try:
        with conn:
            yield conn
    finally:
        pool.putconn(conn)


with transaction() as conn, conn.cursor() as cur:
    cur.execute("create table stock as select item, 1000 as pieces from generate_series(1, 100) as item")
    cur.execute("create table orders (item int, worker int)")


@app.post("/orders/<int:item>")
def order(item: int) -> dict[str, int]:
    with transaction() as conn, conn.cursor() as cur:
        cur.execute("update stock set pieces = pieces - 1 where item = %s", [item])
        cur.execute("insert into orders (item, worker) values (%s, %s)", [item, os.getpid()])
        return served_by(conn)


@app.post("/carts/<int:item>")
def cart(item: int) -> dict[str, int]:
    conn = pool.getconn()
    carts.append(conn)
    with conn.cursor() as cur:
        cur.execute("select pieces from stock where item = %s", [item])
        return served_by(conn)


def served_by(conn: connection) -> dict[str, int]:
    return {"worker": os.getpid(), "backend": conn.info.backend_pid}


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()
