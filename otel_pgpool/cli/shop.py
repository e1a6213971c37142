"""A small shop's requests, written as a service would write them: the pool's ordinary use and its abuse."""

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
"""Seconds that a customer at the till waits for a connection."""
PAYMENT = (0.12, 0.28)
"""Seconds that the payment takes, for which the till keeps its transaction open."""
SOLD_OUT = 1
PRODUCTS = 200
CUSTOMERS = 50
DELETED_CUSTOMER = -1
FORECAST = 20.0
"""Seconds that the forecast would take, were it not killed."""


UNAVAILABLE = 503
"""There was no connection to be had."""


@dataclass
class Reply:
    """What a request is answered with."""

    status: int = 200


class OutOfStockError(Exception):
    """The product is sold out: the caller's own exception, which rolls the order back."""


class Shop:
    """The requests of one shop, callable from any thread; each answers with an HTTP status.

    Args:
        pool: The connections; they see the shop's tables.
        closing: Set when the shop closes: waits inside the requests end.
    """

    def __init__(self, pool: ConnectionPool, closing: threading.Event) -> None:
        self._pool = pool
        self._closing = closing
        self._tracer = trace.get_tracer("shop")
        self._random = random.Random(7)  # nosec B311 # the same traffic each time

    def browse(self) -> int:
        """A page of products."""
        with self._request("GET", "/products") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            first = self._random.randint(1, PRODUCTS - 20)
            self._query(cur, "SELECT", "product", "SELECT name, stock FROM product WHERE id >= %s LIMIT 20", first)
            cur.fetchall()
        return reply.status

    def order(self) -> int:
        """A short order; one of the sold-out product is rolled back."""
        product = SOLD_OUT if self._random.random() < 0.08 else self._random.randint(2, PRODUCTS)
        with self._request("POST", "/orders") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            self._place_order(cur, product, self._random.randint(1, CUSTOMERS))
        return reply.status

    def order_status(self) -> int:
        """An older part of the shop, which gets and puts connections by hand."""
        with self._request("GET", "/orders/{id}") as reply:
            conn = self._pool.getconn()
            try:
                with conn.cursor() as cur:
                    self._query(cur, "SELECT", "orders", "SELECT placed_at FROM orders WHERE id = %s", 7)
            finally:
                self._pool.putconn(conn)
        return reply.status

    def till(self) -> int:
        """A sale in the rush: it holds its connection while the customer pays, and does not wait for one for long."""
        with (
            self._request("POST", "/till") as reply,
            self._pool.connection(timeout=RUSH_TIMEOUT) as conn,
            conn.cursor() as cur,
        ):
            self._place_order(cur, self._random.randint(2, PRODUCTS), self._random.randint(1, CUSTOMERS))
            self._closing.wait(self._random.uniform(*PAYMENT))
        return reply.status

    def turnover_report(self, seconds: float) -> int:
        """A report whose query is slow."""
        with self._request("GET", "/reports/turnover") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            slow = "SELECT count(*) FROM orders CROSS JOIN pg_sleep(%s)"
            self._query(cur, "SELECT", "orders", slow, seconds)
        return reply.status

    def stock_report(self, seconds: float) -> int:
        """A report whose query is fast, and which then draws its charts with the transaction left open."""
        with self._request("GET", "/reports/stock") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            self._query(cur, "SELECT", "product", "SELECT id, stock FROM product WHERE stock < %s", 10)
            self._closing.wait(seconds)
        return reply.status

    def forecast(self) -> int:
        """A query that somebody kills before it ends."""
        with self._request("GET", "/reports/forecast") as reply, self._pool.connection() as conn, conn.cursor() as cur:
            slow = "SELECT count(*) FROM orders CROSS JOIN pg_sleep(%s)"
            self._query(cur, "SELECT", "orders", slow, FORECAST)
        return reply.status

    def export(self) -> int:
        """Old code that forgets to give its connection back."""
        with self._request("GET", "/export") as reply:
            conn = self._pool.getconn()
            with conn.cursor() as cur:
                self._query(cur, "SELECT", "customer", "SELECT id FROM customer WHERE id > %s", 0)
        return reply.status

    def order_of_deleted_customer(self) -> int:
        """An order that only the commit refuses: the foreign key is checked there."""
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
        """The span of a request, as a web framework's instrumentation makes it; the error page is drawn here."""
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
        """Run it under a span, as opentelemetry-instrumentation-psycopg2 would."""
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
