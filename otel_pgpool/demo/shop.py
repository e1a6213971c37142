"""The requests of a small shop, written as a service would write them: proper use of the pool, and misuse."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from otel_pgpool import PoolError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from psycopg2.extensions import cursor

    from otel_pgpool import ConnectionPool

RUSH_TIMEOUT = 0.45
"""Seconds that a request of the till waits for a connection."""
PAYMENT = (0.12, 0.28)
"""Shortest and longest time in seconds of a payment, during which the till keeps its transaction open."""
SOLD_OUT = 1
PRODUCTS = 200
CUSTOMERS = 50
DELETED_CUSTOMER = -1
FORECAST = 20.0
"""Seconds that the forecast's query would take if it were not killed."""
UNAVAILABLE = 503
"""HTTP status if no connection was available."""


@dataclass
class Reply:
    """The reply to a request."""

    status: int = 200


class OutOfStockError(Exception):
    """The application's own exception for a product that is sold out, which rolls the order back."""


class Shop:
    """The requests of one shop, callable from any thread; each returns an HTTP status.

    Args:
        pool: the pool, whose connections find the shop's tables.
        closing: set when the shop closes, which ends the waits inside the requests.
    """

    def __init__(self, pool: ConnectionPool, closing: threading.Event) -> None:
        self._pool = pool
        self._closing = closing
        self._tracer = trace.get_tracer("shop")
        self._random = random.Random(7)  # nosec B311 # the same traffic each time

    def browse(self) -> int:
        """Show a page of products."""
        with self._request("GET", "/products") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            first = self._random.randint(1, PRODUCTS - 20)
            self._query(cur, "SELECT", "product", "SELECT name, stock FROM product WHERE id >= %s LIMIT 20", first)
            cur.fetchall()
        return reply.status

    def order(self) -> int:
        """Place a short order; an order of the sold-out product is rolled back."""
        product = SOLD_OUT if self._random.random() < 0.08 else self._random.randint(2, PRODUCTS)
        with self._request("POST", "/orders") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            self._place_order(cur, product, self._random.randint(1, CUSTOMERS))
        return reply.status

    def order_status(self) -> int:
        """Show an order. This older part of the shop uses ``getconn`` and ``putconn``."""
        with self._request("GET", "/orders/{id}") as reply:
            conn = self._pool.getconn()
            try:
                with conn.cursor() as cur:
                    self._query(cur, "SELECT", "orders", "SELECT placed_at FROM orders WHERE id = %s", 7)
            finally:
                self._pool.putconn(conn)
        return reply.status

    def till(self) -> int:
        """Sell in the rush: hold the connection during the payment; wait only briefly for a connection."""
        with (
            self._request("POST", "/till") as reply,
            self._pool.connection(timeout=RUSH_TIMEOUT) as conn,
            conn.cursor() as cur,
        ):
            self._place_order(cur, self._random.randint(2, PRODUCTS), self._random.randint(1, CUSTOMERS))
            self._closing.wait(self._random.uniform(*PAYMENT))
        return reply.status

    def turnover_report(self, seconds: float) -> int:
        """Make a report with a slow query."""
        with self._request("GET", "/reports/turnover") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            slow = "SELECT count(*) FROM orders CROSS JOIN pg_sleep(%s)"
            self._query(cur, "SELECT", "orders", slow, seconds)
        return reply.status

    def stock_report(self, seconds: float) -> int:
        """Make a report with a fast query, and draw its charts with the transaction left open."""
        with self._request("GET", "/reports/stock") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            self._query(cur, "SELECT", "product", "SELECT id, stock FROM product WHERE stock < %s", 10)
            self._closing.wait(seconds)
        return reply.status

    def forecast(self) -> int:
        """Run a query whose session is killed before it ends."""
        with self._request("GET", "/reports/forecast") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            slow = "SELECT count(*) FROM orders CROSS JOIN pg_sleep(%s)"
            self._query(cur, "SELECT", "orders", slow, FORECAST)
        return reply.status

    def export(self) -> int:
        """Run old code that drops its connection instead of releasing it."""
        with self._request("GET", "/export") as reply:
            conn = self._pool.getconn()
            with conn.cursor() as cur:
                self._query(cur, "SELECT", "customer", "SELECT id FROM customer WHERE id > %s", 0)
        return reply.status

    def order_of_deleted_customer(self) -> int:
        """Place an order that fails at the commit, where the foreign key is checked."""
        with self._request("POST", "/orders") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            self._place_order(cur, 2, DELETED_CUSTOMER)
        return reply.status

    def _place_order(self, cur: cursor, product: int, customer: int) -> None:
        insert = "INSERT INTO orders (customer_id, product_id) VALUES (%s, %s)"
        self._query(cur, "INSERT", "orders", insert, customer, product)
        update = "UPDATE product SET stock = stock - 1 WHERE id = %s AND stock > 0"
        self._query(cur, "UPDATE", "product", update, product)
        if not cur.rowcount:
            raise OutOfStockError

    @contextmanager
    def _request(self, method: str, route: str) -> Iterator[Reply]:
        """Start the span of a request, as a web framework's instrumentation would, and turn errors into a status."""
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            reply = Reply()
            try:
                yield reply
            except OutOfStockError:
                reply.status = 409
            except psycopg2.Error as error:
                reply.status = UNAVAILABLE if isinstance(error, PoolError) else 500
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(StatusCode.ERROR)
            span.set_attribute("http.response.status_code", reply.status)

    def _query(self, cur: cursor, operation: str, table: str, statement: str, *arguments: object) -> None:
        """Run a query in a span, as opentelemetry-instrumentation-psycopg2 would."""
        with self._tracer.start_as_current_span(
            f"{operation} {table}",
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": "postgresql",
                "db.operation.name": operation,
                "db.collection.name": table,
            },
            record_exception=False,
        ):
            cur.execute(statement, arguments)
