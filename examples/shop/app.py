"""A small shop on a pool of otel_pgpool: orders, a slow report, lock conflicts, and a leak to switch on.

It shows pools, and is no pattern for forms: they have no CSRF tokens, and nobody is asked who they are.
"""

from __future__ import annotations

import os
import time

from flask import Flask, redirect, render_template_string, request, url_for
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor

from otel_pgpool import ConnectionPool, PoolError

TABLES = """
create table if not exists product (id int primary key, name text not null, stock int not null);
create table if not exists orders (
    id bigint generated always as identity primary key,
    product int not null references product,
    placed timestamptz not null default now()
);
insert into product select n, 'Product ' || n, 1000000 from generate_series(1, 20) n on conflict do nothing;
"""
LATEST = """
select orders.id, name, placed from orders join product on product.id = product order by orders.id desc limit 10
"""
PAGE = """<!doctype html>
<title>Shop</title>
<h1>Orders</h1>
<form method="post"><button>Order one of</button> product <input name="product" type="number" value="1" size="3"></form>
<table>{% for id, name, placed in orders %}<tr><td>{{ id }}<td>{{ name }}<td>{{ placed }}{% endfor %}</table>
<p><a href="{{ url_for('report') }}">Turnover</a>, slowly
<form method="post" action="{{ url_for('recount') }}"><button>Count product 1 again</button>, locking it</form>
<form method="post" action="{{ url_for('payment') }}"><button>Pay the oldest order</button>, slowly</form>
<form method="post" action="{{ url_for('cancellation') }}"><button>Cancel it</button>, after the payment</form>
<form method="post" action="{{ url_for('leak') }}">
<button>Switch the leak {{ 'off' if leaking else 'on' }}</button>: one order in ten forgets its connection</form>
<p>These forms have no CSRF tokens: any page that is open in this browser may send them.
"""
UNAVAILABLE = 503

Psycopg2Instrumentor().instrument()  # before the pool's first connection: query spans, inside their checkouts
app = Flask(__name__)
FlaskInstrumentor().instrument_app(app, excluded_urls="healthz")

pool = ConnectionPool(2, 8, os.environ["DATABASE_URL"], name="shop", timeout=5, open=False)
leaked: list[object] = []
leaking = False


def make_tables() -> None:
    """Make what the shop sells, once."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select pg_advisory_xact_lock(1)")  # of several workers that start together one goes first
        cur.execute(TABLES)


@app.get("/")
def orders() -> str:
    """Show the latest orders."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute(LATEST)
        latest = cur.fetchall()
    return render_template_string(PAGE, orders=latest, leaking=leaking)


@app.post("/")
def order() -> object:
    """Order one of a product; while the leak is on, one order in ten forgets its connection."""
    product = request.form.get("product", 1, type=int)
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("update product set stock = stock - 1 where id = %s", (product,))
        cur.execute("insert into orders (product) values (%s) returning id", (product,))
        (number,) = cur.fetchone()
    if leaking and number % 10 == 0:
        leaked.append(pool.getconn())  # the mistake: nobody ever gives it back
    return redirect(url_for("orders"))


@app.get("/report")
def report() -> dict[str, int]:
    """Run a slow query."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select count(*) from orders, pg_sleep(1.5)")
        (count,) = cur.fetchone()
    return {"orders": count}


@app.post("/recount")
def recount() -> object:
    """Lock a product and go on to something else: orders of it wait in the database, their connections in hand."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select stock from product where id = 1 for update")
        time.sleep(1.2)
    return redirect(url_for("orders"))


@app.post("/payment")
def payment() -> object:
    """Lock the oldest order, and wait for a slow payment provider meanwhile."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select id from orders order by id limit 1 for update")
        time.sleep(2.5)
    return redirect(url_for("orders"))


@app.post("/cancellation")
def cancellation() -> object:
    """Delete the oldest order; while it is being paid, PostgreSQL lets this wait."""
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("delete from orders where id = (select min(id) from orders)")
    return redirect(url_for("orders"))


@app.post("/leak")
def leak() -> object:
    """Switch the leak on, or off, which mends it."""
    global leaking  # noqa: PLW0603 - the switch
    leaking = not leaking
    while not leaking and leaked:
        pool.putconn(leaked.pop())
    return redirect(url_for("orders"))


@app.get("/healthz")
def healthz() -> tuple[dict[str, object], int]:
    """For whoever watches the shop: healthy while the database can be reached, however busy it is."""
    stats = pool.stats()
    return stats.as_dict(), UNAVAILABLE if stats.status in {"closed", "unreachable"} else 200


@app.errorhandler(PoolError)
def busy(_error: PoolError) -> tuple[str, int, dict[str, str]]:
    """No connection in time; the pool has logged why."""
    return "The shop is busy. Please try again.", UNAVAILABLE, {"Retry-After": "1"}
