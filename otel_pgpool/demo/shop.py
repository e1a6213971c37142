"""The requests of a small shop, written as a service would write them: proper use of the pool, and misuse."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import psycopg2
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from otel_pgpool import PoolError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from otel_pgpool import ConnectionPool

RUSH_TIMEOUT = 0.45
"""Seconds that a request of the till waits for a connection."""
PAYMENT = (0.12, 0.28)
"""Shortest and longest time in seconds of a payment, during which the till keeps its transaction open."""
SOLD_OUT = 1
PRODUCTS = 200
CUSTOMERS = 50
DELETED_CUSTOMER = -1
PAID_ORDER = 8
UNAVAILABLE = 503
"""HTTP status if no connection was available."""
SLOW_QUERY = "SELECT count(*) FROM orders CROSS JOIN pg_sleep(%s)"
_tracer = trace.get_tracer("shop")


class OutOfStockError(Exception):
    """The application's own exception for a product that is sold out, which rolls the order back."""


def request(method: str, route: str) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Run a handler in the span of a request, as a web framework's instrumentation would; return the HTTP status."""

    def decorate(handler: Callable[..., None]) -> Callable[..., int]:
        @functools.wraps(handler)
        def respond(*args: Any) -> int:
            with _tracer.start_as_current_span(
                f"{method} {route}",
                kind=SpanKind.SERVER,
                attributes={"http.request.method": method, "http.route": route},
            ) as span:
                status = 200
                try:
                    handler(*args)
                except OutOfStockError:
                    status = 409
                except psycopg2.Error as error:
                    status = UNAVAILABLE if isinstance(error, PoolError) else 500
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.set_status(StatusCode.ERROR)
                span.set_attribute("http.response.status_code", status)
                return status

        return respond

    return decorate


class Shop:
    """The requests of one shop, callable from any thread; each returns an HTTP status.

    Args:
        pool: the pool, whose connections find the shop's tables.
        closing: set when the shop closes, which ends the waits inside the requests.
    """

    def __init__(self, pool: ConnectionPool, closing: threading.Event) -> None:
        self._pool = pool
        self._closing = closing
        self._random = random.Random(7)  # nosec B311 # the same traffic each time

    @request("GET", "/products")
    def browse(self) -> None:
        """Show a page of products."""
        with self._pool.connection() as conn:
            first = self._random.randint(1, PRODUCTS - 20)
            _query(conn, "product", "SELECT name, stock FROM product WHERE id >= %s LIMIT 20", first)

    @request("POST", "/orders")
    def order(self) -> None:
        """Place a short order; an order of the sold-out product is rolled back."""
        product = SOLD_OUT if self._random.random() < 0.08 else self._random.randint(2, PRODUCTS)
        with self._pool.connection() as conn:
            _place_order(conn, product, self._random.randint(1, CUSTOMERS))

    @request("GET", "/orders/{id}")
    def order_status(self) -> None:
        """Show an order. This older part of the shop uses ``getconn`` and ``putconn``."""
        conn = self._pool.getconn()
        try:
            _query(conn, "orders", "SELECT placed_at FROM orders WHERE id = %s", 7)
        finally:
            self._pool.putconn(conn)

    @request("POST", "/till")
    def till(self) -> None:
        """Sell in the rush: hold the connection during the payment; wait only briefly for a connection."""
        with self._pool.connection(timeout=RUSH_TIMEOUT) as conn:
            _place_order(conn, self._random.randint(2, PRODUCTS), self._random.randint(1, CUSTOMERS))
            self._closing.wait(self._random.uniform(*PAYMENT))

    @request("GET", "/reports/turnover")
    def turnover_report(self, seconds: float) -> None:
        """Make a report with a slow query."""
        with self._pool.connection() as conn:
            _query(conn, "orders", SLOW_QUERY, seconds)

    @request("GET", "/reports/stock")
    def stock_report(self, seconds: float) -> None:
        """Make a report with a fast query, and draw its charts with the transaction left open."""
        with self._pool.connection() as conn:
            _query(conn, "product", "SELECT id, stock FROM product WHERE stock < %s", 10)
            self._closing.wait(seconds)

    @request("POST", "/orders/{id}/payment")
    def slow_payment(self, seconds: float, locked: threading.Event) -> None:
        """Pay an order with a provider that is slow, and keep the order locked meanwhile; set ``locked`` then."""
        with self._pool.connection() as conn:
            _query(conn, "orders", "SELECT placed_at FROM orders WHERE id = %s FOR UPDATE", PAID_ORDER)
            locked.set()
            self._closing.wait(seconds)

    @request("PATCH", "/orders/{id}")
    def change_order(self) -> None:
        """Change the order that is being paid, which has to wait for its lock."""
        with self._pool.connection() as conn:
            _query(conn, "orders", "UPDATE orders SET placed_at = now() WHERE id = %s", PAID_ORDER)

    @request("GET", "/export")
    def export(self) -> None:
        """Run old code that drops its connection instead of releasing it."""
        conn = self._pool.getconn()
        _query(conn, "customer", "SELECT id FROM customer WHERE id > %s", 0)

    @request("POST", "/orders")
    def order_of_deleted_customer(self) -> None:
        """Place an order that fails at the commit, where the foreign key is checked."""
        with self._pool.connection() as conn:
            _place_order(conn, 2, DELETED_CUSTOMER)


def _place_order(conn: connection, product: int, customer: int) -> None:
    _query(conn, "orders", "INSERT INTO orders (customer_id, product_id) VALUES (%s, %s)", customer, product)
    update = "UPDATE product SET stock = stock - 1 WHERE id = %s AND stock > 0"
    if not _query(conn, "product", update, product):
        raise OutOfStockError


def _query(conn: connection, table: str, statement: str, *arguments: object) -> int:
    """Run a query in a span, as opentelemetry-instrumentation-psycopg2 would; return the number of rows."""
    operation = statement.partition(" ")[0]
    attributes = {"db.system.name": "postgresql", "db.operation.name": operation, "db.collection.name": table}
    with (
        _tracer.start_as_current_span(
            f"{operation} {table}", kind=SpanKind.CLIENT, attributes=attributes, record_exception=False
        ),
        conn.cursor() as cur,
    ):
        cur.execute(statement, arguments)
        return cur.rowcount
