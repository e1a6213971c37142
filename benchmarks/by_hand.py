"""The telemetry of a checkout as a person writes it around the stock pool."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode
from psycopg2.pool import ThreadedConnectionPool

if TYPE_CHECKING:
    from benchmarks.recorded import Recorded

NAME = "shop"
LONG_HOLD = 1.0
BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)


class Written:
    """What a person writes around the stock pool to leave the same telemetry, without a class or a generator."""

    def __init__(self, dsn: str, recorded: Recorded) -> None:
        self.pool = ThreadedConnectionPool(1, 5, dsn)
        self.tracer = recorded.tracers.get_tracer("by hand")
        meter = recorded.meters.get_meter("by hand")
        self.wait_time, self.use_time = (
            meter.create_histogram(
                f"db.client.connection.{name}", "s", explicit_bucket_boundaries_advisory=[*BOUNDARIES, *more]
            )
            for name, more in (("wait_time", ()), ("use_time", (60, 300)))
        )
        connection = self.pool.getconn()
        info = connection.info
        self.point = {"db.client.connection.pool.name": NAME}
        self.start: dict[str, str | int] = {
            "db.system.name": "postgresql",
            "db.namespace": info.dbname,
            "server.address": info.host,
            "server.port": info.port,
            **self.point,
        }
        self.identities = {id(connection): (1, info.backend_pid)}
        self.pool.putconn(connection)

    def spin(self, times: int) -> None:
        for _ in range(times):
            self.checkout()

    def checkout(self) -> None:
        """One checkout, from the request to the return."""
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
        """Attributes known only at the end."""
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


class Textbook(Written):
    """The same as OpenTelemetry's own guide would have it, one block within the other."""

    def checkout(self) -> None:
        """One checkout, from the request to the return."""
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
