"""The cost of the instrumentation without spans and without an SDK, for pools without asyncio."""
# ruff: noqa: PLC0415 - the package is imported only in the process that is instrumented

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.checkout import CYCLES, EACH, forbid_sdk, take_turns
from benchmarks.measured_pools import Engine, Psycopg2Pool, PsycopgPool
from benchmarks.row import Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.measured_pools import MeasuredPool

INSTRUMENTED, NOT_INSTRUMENTED = "instrumented", "not instrumented"


def measure(make: Callable[[str], MeasuredPool], contestants: Sequence[str], dsn: str) -> Round:
    """Measure one contestant in a process that cannot import OpenTelemetry's SDK."""
    [name] = contestants
    forbid_sdk()
    if name == INSTRUMENTED:
        from otel_pgpool import PgPoolInstrumentor

        PgPoolInstrumentor().instrument(spans="off")
    pool = make(dsn)
    played = take_turns({name: pool.spin}, CYCLES)
    pool.close()
    return played


WHAT_IT_KEEPS = (
    "What remains is the record of the checkout, with its call sites and its thread, and for SQLAlchemy the dispatch "
    "of its events."
)

NOTE = (
    "Each contestant has a process of its own, one after the other in each round. If one process switched the "
    "instrumentation on and off between the slices, the interpreter would have to specialize the code anew each time. "
    "Both contestants would be slower, and the ratio 5 % lower. Neither process can import `opentelemetry.sdk`."
)

ROWS = tuple(
    Row(
        name=name,
        work=f"one thread, {work}, instrumented, spans off, no SDK installed",
        contestants=(INSTRUMENTED, NOT_INSTRUMENTED),
        columns=EACH,
        measure=partial(measure, make),
        rounds=5,
        targets=(
            Target(
                "against the same without the instrumentation",
                ratio("us", INSTRUMENTED, NOT_INSTRUMENTED),
                limit,
                reason=WHAT_IT_KEEPS,
            ),
        ),
        note=NOTE,
    )
    for name, work, make, limit in (
        ("hooked", "psycopg2's `getconn()` and `putconn()`", Psycopg2Pool, 2.0),
        ("hooked-sqlalchemy", "`engine.raw_connection()` and `close()`", Engine, 1.5),
        ("hooked-psycopg-pool", "psycopg_pool's `getconn()` and `putconn()`", PsycopgPool, 1.5),
    )
)
