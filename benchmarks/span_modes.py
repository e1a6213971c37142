"""What each span mode costs, with histograms and without, for each kind of pool, with the SDK at work."""
# ruff: noqa: PLC0415 - a process imports only the pool that it measures

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks import hooked_asyncpg
from benchmarks.checkout import EACH
from benchmarks.measured_pools import SOCKETS, Engine, Psycopg2Pool, PsycopgPool
from benchmarks.recorded import NullExporter, Recorded
from benchmarks.row import Round, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CYCLES, SLICES = 500, 15
BARE = "bare"
MODES = ("always", "parent", "slow", "off")
HISTOGRAMS = {"all": ("wait_time", "use_time", "create_time"), "none": ()}
SETTINGS = {f"{mode}, {choice}": (mode, names) for mode in MODES for choice, names in HISTOGRAMS.items()}
"""The span mode and the histograms, by contestant."""


def our_pool(dsn: str, setting: str, recorded: Recorded) -> Any:
    """Create this package's pool."""
    from otel_pgpool import ConnectionPool, Telemetry

    observer = None
    if setting != BARE:
        spans, histograms = SETTINGS[setting]
        observer = Telemetry(recorded.tracers, recorded.meters, spans=spans, histograms=histograms)
    return OurPool(ConnectionPool(*SOCKETS, dsn, name="shop", observer=observer))


class OurPool:
    """This package's pool, used by its context manager."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.close = pool.close

    def spin(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            with pool.connection():
                pass


def instrumented(make: Callable[[str], Any], dsn: str, setting: str, recorded: Recorded) -> Any:
    """Create another library's pool, which is instrumented unless it is the bare one."""
    if setting != BARE:
        from otel_pgpool import PgPoolInstrumentor

        spans, histograms = SETTINGS[setting]
        PgPoolInstrumentor().instrument(
            tracer_provider=recorded.tracers, meter_provider=recorded.meters, spans=spans, histograms=histograms
        )
    return make(dsn)


POOLS: dict[str, Callable[[str, str, Recorded], Any]] = {
    "ConnectionPool": our_pool,
    "psycopg2": partial(instrumented, Psycopg2Pool),
    "psycopg_pool": partial(instrumented, PsycopgPool),
    "SQLAlchemy": partial(instrumented, Engine),
    "asyncpg": partial(instrumented, lambda dsn: hooked_asyncpg.Loop(dsn, *SOCKETS)),
}
"""The function that creates a pool with one setting, by the head of its column."""


def measure(make: Callable[[str, str, Recorded], Any], contestants: Sequence[str], dsn: str) -> Round:
    """Measure the CPU time of the thread in one setting of a pool; the spans are exported by a batch processor.

    The first slice is a warm-up. The CPU time leaves out the waits for the server, as in asyncpg's release, and for the
    processor, on a busy machine.
    """
    [setting] = contestants
    recorded = Recorded(BatchSpanProcessor(NullExporter()))
    pool = make(dsn, setting, recorded)
    times = []
    for _ in range(SLICES + 1):
        recorded.settle()
        began = time.thread_time()
        pool.spin(CYCLES)
        times.append((time.thread_time() - began) / CYCLES * 1e6)
    pool.close()
    recorded.shut_down()
    return {setting: {"us": statistics.median(times[1:])}}


ROWS = tuple(
    Row(
        name=name,
        work="one checkout after the other",
        contestants=(BARE, *SETTINGS),
        columns=EACH,
        measure=partial(measure, make),
        targets=(),
    )
    for name, make in POOLS.items()
)
