"""asyncpg's pools with and without the instrumentation: checkouts of one task, and of many tasks at once."""
# ruff: noqa: PLC0415 - the package is imported only in the process that is instrumented

from __future__ import annotations

import asyncio
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
from opentelemetry import trace
from psycopg2.extensions import parse_dsn

from benchmarks.by_hand import BOUNDARIES
from benchmarks.checkout import EACH, forbid_sdk, take_turns
from benchmarks.hooked import INSTRUMENTED, NOT_INSTRUMENTED
from benchmarks.row import Column, Round, Row, Sample, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

BY_HAND = "by hand"
CYCLES, SLICES = 200, 20
CONNECTIONS, TASKS = 10, 1000
WARM_UP, WINDOW = 0.5, 2.0


class Loop:
    """An event loop with a pool of asyncpg."""

    def __init__(self, dsn: str, least: int, most: int) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        place = parse_dsn(dsn)
        self.place = {"database": place.pop("dbname"), **{key: place[key] for key in ("host", "port", "user")}}
        self.pool: Any = self.run(
            asyncpg.create_pool(**self.place, password=place.get("password"), min_size=least, max_size=most)
        )
        self.checkout: Callable[[], Awaitable[None]] = self.bare

    async def query(self) -> None:
        """Check out once, and run a query."""
        async with self.pool.acquire() as connection:
            await connection.fetchval("select 1")

    def run(self, awaitable: Any) -> Any:
        """Run an awaitable in the loop, and return its result."""

        async def main() -> Any:
            return await awaitable

        return self.loop.run_until_complete(main())

    async def bare(self) -> None:
        """Check out once, and do nothing."""
        async with self.pool.acquire():
            pass

    def spin(self, times: int) -> None:
        """Check out this number of times, one after the other."""

        async def work() -> None:
            checkout = self.checkout
            for _ in range(times):
                await checkout()

        self.run(work())

    def close(self) -> None:
        """Close the pool and its loop."""
        self.run(self.pool.close())
        self.loop.close()


class Written:
    """The same telemetry, written by hand around the pool."""

    def __init__(self, loop: Loop, recorded: Any) -> None:
        self.pool = loop.pool
        self.tracer = recorded.tracers.get_tracer("by hand")
        meter = recorded.meters.get_meter("by hand")
        self.wait_time, self.use_time = (
            meter.create_histogram(
                f"db.client.connection.{name}", "s", explicit_bucket_boundaries_advisory=[*BOUNDARIES, *more]
            )
            for name, more in (("wait_time", ()), ("use_time", (60, 300)))
        )
        self.point = {"db.client.connection.pool.name": "shop"}
        self.start: dict[str, Any] = {
            "db.system.name": "postgresql",
            "db.namespace": loop.place["database"],
            "server.address": loop.place["host"],
            "server.port": int(loop.place["port"]),
            **self.point,
        }
        self.serials: dict[int, int] = {}

    def acquiring(self) -> Any:
        """Return the context manager that acquires a connection."""
        return self.pool.acquire()

    def backend(self, connection: Any) -> int:
        """Return the process id of a connection's backend."""
        pid: int = connection.get_server_pid()
        return pid

    async def checkout(self) -> None:
        """Check out once, from the request to the release."""
        asked = time.monotonic()
        span = self.tracer.start_span("pool.checkout", attributes=self.start)
        in_span = trace.set_span_in_context(span)
        async with self.acquiring() as connection:
            acquired = time.monotonic()
            self.wait_time.record(acquired - asked, self.point, in_span)
            pid = self.backend(connection)
            serial = self.serials.setdefault(pid, len(self.serials) + 1)
        held = time.monotonic() - acquired
        self.use_time.record(held, self.point, in_span)
        task = asyncio.current_task()
        span.set_attributes(
            {
                "otel_pgpool.wait_time": acquired - asked,
                "otel_pgpool.hold_time": held,
                "otel_pgpool.retries": 0,
                "otel_pgpool.path": "idle",
                "otel_pgpool.long_hold": held >= 1.0,
                "otel_pgpool.outcome": "released",
                "otel_pgpool.connection.id": serial,
                "otel_pgpool.connection.pid": pid,
                "otel_pgpool.task.name": "" if task is None else task.get_name(),
                "thread.name": threading.current_thread().name,
            }
        )
        span.end()


def instrument(**options: Any) -> None:
    """Start the instrumentation."""
    from otel_pgpool import PgPoolInstrumentor

    PgPoolInstrumentor().instrument(**options)


def measure(make: type[Loop], contestants: Sequence[str], dsn: str) -> Round:
    """Measure one task, in a process that cannot import OpenTelemetry's SDK."""
    [name] = contestants
    forbid_sdk()
    if name == INSTRUMENTED:
        instrument(spans="off")
    loop = make(dsn, 1, 5)
    played = take_turns({name: loop.spin}, CYCLES, SLICES)
    loop.close()
    return played


def measure_traced(make: type[Loop], write: type[Written], contestants: Sequence[str], dsn: str) -> Round:
    """Measure one task whose spans are exported by a batch processor."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from benchmarks.recorded import NullExporter, Recorded

    [name] = contestants
    recorded = Recorded(BatchSpanProcessor(NullExporter()))
    if name == INSTRUMENTED:
        instrument(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    loop = make(dsn, 1, 5)
    if name == BY_HAND:
        loop.checkout = write(loop, recorded).checkout
    played = take_turns({name: loop.spin}, CYCLES, SLICES, lambda _name: recorded.settle())
    loop.close()
    recorded.shut_down()
    return played


def measure_crowd(make: type[Loop], contestants: Sequence[str], dsn: str) -> Round:
    """Measure many tasks, each of which checks out and runs a query, again and again."""
    [name] = contestants
    forbid_sdk()
    if name == INSTRUMENTED:
        instrument()
    logging.getLogger("otel_pgpool").setLevel(logging.CRITICAL)  # all connections are in use by design, which is logged
    loop = make(dsn, CONNECTIONS, CONNECTIONS)
    sample: Sample = loop.run(crowd(loop.query))
    loop.close()
    return {name: sample}


async def crowd(query: Callable[[], Awaitable[None]]) -> Sample:
    """Run many tasks, each of which runs its query again and again; return the rate and the CPU for each."""
    served, is_over = 0, False

    async def work() -> None:
        nonlocal served
        while not is_over:
            await query()
            served += 1

    tasks = [asyncio.create_task(work()) for _ in range(TASKS)]
    await asyncio.sleep(WARM_UP)
    before, began, cpu = served, time.perf_counter(), time.process_time()
    await asyncio.sleep(WINDOW)
    count, seconds, spent = served - before, time.perf_counter() - began, time.process_time() - cpu
    is_over = True  # psycopg_pool may not end, if a thousand of its waiters are cancelled
    await asyncio.gather(*tasks)
    return {"rate": count / seconds, "cpu": spent / max(1, count) * 1e6}


NOTE = "Each contestant has a process of its own, one after the other in each round."


def rows(name: str, work: str, measures: Sequence[Callable[[Sequence[str], str], Round]], note: str) -> tuple[Row, ...]:
    """Return the rows of one kind of pools.

    Args:
        name: the first part of their names.
        work: the code of one checkout.
        measures: functions of the module of the rows, which measure one task, one with telemetry, and many.
        note: what a checkout and its release send to the server.
    """
    one, traced, many = measures
    return (
        Row(
            name=name,
            work=f"one task, `async with {work}: pass`, instrumented, spans off, no SDK installed",
            contestants=(INSTRUMENTED, NOT_INSTRUMENTED),
            columns=EACH,
            measure=one,
            targets=(
                Target(
                    "against the same without the instrumentation", ratio("us", INSTRUMENTED, NOT_INSTRUMENTED), 1.5
                ),
            ),
            note=f"{NOTE} {note}",
        ),
        Row(
            name=f"{name}-traced",
            work=f"one task, `async with {work}: pass`, spans and both histograms recording through a batch processor",
            contestants=(INSTRUMENTED, BY_HAND, NOT_INSTRUMENTED),
            columns=EACH,
            measure=traced,
            targets=(
                Target(
                    "against the same span, attributes and two records by hand",
                    ratio("us", INSTRUMENTED, BY_HAND),
                    1.15,
                ),
            ),
            note=f"{NOTE} {note}",
        ),
        Row(
            name=f"{name}-crowd",
            work=f"{TASKS:,} tasks on {CONNECTIONS} connections, `{work}` for `select 1`, instrumented, no SDK",
            contestants=(INSTRUMENTED, NOT_INSTRUMENTED),
            columns=(Column("rate", "checkouts/s"), Column("cpu", "CPU us each")),
            measure=many,
            targets=(
                Target(
                    "checkouts/s against the same without the instrumentation",
                    ratio("rate", INSTRUMENTED, NOT_INSTRUMENTED),
                    0.95,
                    at_least=True,
                ),
            ),
            note=f"Counted over {WINDOW:g} s after {WARM_UP:g} s of warm-up. "
            "CPU is that of this process, without the server.",
        ),
    )


ROWS = rows(
    "hooked-asyncpg",
    "pool.acquire()",
    (partial(measure, Loop), partial(measure_traced, Loop, Written), partial(measure_crowd, Loop)),
    "A release resets the session by a query.",
)
