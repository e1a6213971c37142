"""The telemetry of a checkout, written by hand around the calls of a pool."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode
from psycopg2.pool import ThreadedConnectionPool

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from benchmarks.measured_pools import MeasuredPool
    from benchmarks.recorded import Recorded

NAME = "shop"
LONG_HOLD = 1.0
BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)


class Written:
    """The same telemetry as the package's, written by hand around psycopg2's pool, without a context manager."""

    def __init__(self, dsn: str, recorded: Recorded) -> None:
        self.pool = ThreadedConnectionPool(1, 5, dsn)
        connection = self.pool.getconn()
        self.prepare(recorded, connection, NAME)
        self.pool.putconn(connection)

    def prepare(self, recorded: Recorded, connection: Any, name: str) -> None:
        """Create the instruments, and compute what is the same for each checkout."""
        self.tracer = recorded.tracers.get_tracer("by hand")
        meter = recorded.meters.get_meter("by hand")
        self.wait_time, self.use_time = (
            meter.create_histogram(
                f"db.client.connection.{name}", "s", explicit_bucket_boundaries_advisory=[*BOUNDARIES, *more]
            )
            for name, more in (("wait_time", ()), ("use_time", (60, 300)))
        )
        info = connection.info
        self.point = {"db.client.connection.pool.name": name}
        self.start: dict[str, str | int] = {
            "db.system.name": "postgresql",
            "db.namespace": info.dbname,
            "server.address": info.host,
            "server.port": info.port,
            **self.point,
        }
        self.identities = {id(connection): (1, info.backend_pid)}

    def spin(self, times: int) -> None:
        for _ in range(times):
            self.checkout()

    def checkout(self) -> None:
        """Check out once, from the request to the release."""
        asked = time.monotonic()
        span = self.tracer.start_span("pool.checkout", attributes=self.start)
        in_span = trace.set_span_in_context(span)
        token = context.attach(in_span)
        connection = self.pool.getconn()
        acquired = time.monotonic()
        waited = acquired - asked
        self.wait_time.record(waited, self.point, in_span)
        try:
            pass  # the caller's block
        except BaseException:
            connection.rollback()
            outcome = "rolled_back"
            raise
        else:
            connection.commit()
            outcome = "committed"
        finally:
            context.detach(token)
            self.pool.putconn(connection)
            held = time.monotonic() - acquired
            self.use_time.record(held, self.point, in_span)
            span.set_attributes(self.finish(waited, held, outcome, connection))
            span.end()

    def finish(self, waited: float, held: float, outcome: str, connection: Any) -> dict[str, Any]:
        """Return the attributes that are known at the end only."""
        serial, pid = self.identities[id(connection)]
        return {
            "otel_pgpool.wait_time": waited,
            "otel_pgpool.hold_time": held,
            "otel_pgpool.retries": 0,
            "otel_pgpool.path": "idle",
            "otel_pgpool.long_hold": held >= LONG_HOLD,
            "otel_pgpool.outcome": outcome,
            "otel_pgpool.connection.id": serial,
            "otel_pgpool.connection.pid": pid,
            "thread.name": threading.current_thread().name,
        }

    def close(self) -> None:
        self.pool.closeall()


class InOneFunction(Written):
    """The same in one function, around any pool, as the instrumentation does it: no current span, and no commit."""

    def __init__(self, pool: MeasuredPool, recorded: Recorded) -> None:
        self.acquire, self.release, self.driver = pool.acquire, pool.release, pool.driver
        connection = self.acquire()
        self.prepare(recorded, self.driver(connection), pool.name)
        self.release(connection)

    def checkout(self) -> None:
        """Check out once, from the request to the release."""
        asked = time.monotonic()
        span = self.tracer.start_span("pool.checkout", attributes=self.start)
        in_span = trace.set_span_in_context(span)
        connection = self.acquire()
        acquired = time.monotonic()
        waited = acquired - asked
        self.wait_time.record(waited, self.point, in_span)
        try:
            driver = self.driver(connection)  # in place of the caller's work
        finally:
            self.release(connection)
            held = time.monotonic() - acquired
            self.use_time.record(held, self.point, in_span)
            span.set_attributes(self.finish(waited, held, "released", driver))
            span.end()


class InTwoFunctions(InOneFunction):
    """The same in two functions, for a program that acquires in one place and releases in another."""

    def __init__(self, pool: MeasuredPool, recorded: Recorded) -> None:
        super().__init__(pool, recorded)
        self.held: dict[int, tuple[Span, Context, float, float]] = {}

    def checkout(self) -> None:
        """Check out once, from the request to the release."""
        self.put(self.get())

    def get(self) -> Any:
        """Acquire a connection."""
        asked = time.monotonic()
        span = self.tracer.start_span("pool.checkout", attributes=self.start)
        in_span = trace.set_span_in_context(span)
        try:
            connection = self.acquire()
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()
            raise
        acquired = time.monotonic()
        self.wait_time.record(acquired - asked, self.point, in_span)
        self.held[id(connection)] = span, in_span, asked, acquired
        return connection

    def put(self, connection: Any) -> None:
        """Release a connection."""
        span, in_span, asked, acquired = self.held.pop(id(connection))
        driver = self.driver(connection)
        try:
            self.release(connection)
        finally:
            held = time.monotonic() - acquired
            self.use_time.record(held, self.point, in_span)
            span.set_attributes(self.finish(acquired - asked, held, "released", driver))
            span.end()


class Textbook(Written):
    """The same around psycopg2's pool in the way of OpenTelemetry's guide, with `start_as_current_span`."""

    def checkout(self) -> None:
        """Check out once, from the request to the release."""
        asked = time.monotonic()
        with self.tracer.start_as_current_span("pool.checkout", attributes=self.start) as span:
            connection = self.pool.getconn()
            acquired = time.monotonic()
            self.wait_time.record(acquired - asked, self.point)
            try:
                connection.commit()
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, str(error)))
                raise
            finally:
                self.pool.putconn(connection)
                held = time.monotonic() - acquired
                self.use_time.record(held, self.point)
                span.set_attributes(self.finish(acquired - asked, held, "committed", connection))
