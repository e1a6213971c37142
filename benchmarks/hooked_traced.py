"""The cost of the instrumentation with a recorded span and two histograms, and of the same written by hand."""
# ruff: noqa: PLC0415 - the package is imported only in the process that is instrumented

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.by_hand import InOneFunction, InTwoFunctions
from benchmarks.checkout import EACH, take_turns
from benchmarks.hooked import INSTRUMENTED, NOT_INSTRUMENTED
from benchmarks.measured_pools import Engine, Psycopg2Pool, PsycopgPool
from benchmarks.recorded import NullExporter, Recorded
from benchmarks.row import Round, Row, Target, ratio
from benchmarks.traced import BY_HAND, CYCLES, SLICES, refuse_differences, telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.measured_pools import MeasuredPool

TWO_FUNCTIONS = "by hand, in two functions"
WRITTEN = {BY_HAND: InOneFunction, TWO_FUNCTIONS: InTwoFunctions}


class Contestant:
    """A pool, and the code that reports its checkouts, if there is any."""

    def __init__(self, name: str, pool: MeasuredPool, recorded: Recorded) -> None:
        self.recorded = recorded
        self.close = pool.close
        self.spin = WRITTEN[name](pool, recorded).spin if name in WRITTEN else pool.spin
        self.instrumentation: Callable[[], AbstractContextManager[None]] = nullcontext
        if name == INSTRUMENTED:
            self.instrumentation = partial(instrumented, recorded)


@contextmanager
def instrumented(recorded: Recorded) -> Iterator[None]:
    """Instrument pools until the end of the block."""
    from otel_pgpool import PgPoolInstrumentor

    instrumentor = PgPoolInstrumentor()
    instrumentor.instrument(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    yield
    instrumentor.uninstrument()


def measure(make: Callable[[str], MeasuredPool], contestants: Sequence[str], dsn: str) -> Round:
    """Check that all leave the same telemetry, then measure them."""
    refuse_differences({name: what_is_left(name, make(dsn)) for name in (INSTRUMENTED, *WRITTEN)})
    playing = {name: Contestant(name, make(dsn), Recorded(BatchSpanProcessor(NullExporter()))) for name in contestants}
    turn = ExitStack()

    def settle(name: str) -> None:
        turn.close()
        turn.enter_context(playing[name].instrumentation())
        playing[name].spin(1)  # creates the tracker
        playing[name].recorded.settle()

    played = take_turns({name: contestant.spin for name, contestant in playing.items()}, CYCLES, SLICES, settle)
    turn.close()
    for contestant in playing.values():
        contestant.close()
        contestant.recorded.shut_down()
    return played


def what_is_left(name: str, pool: MeasuredPool) -> tuple[Any, ...]:
    """Return the telemetry of one checkout."""
    exporter = InMemorySpanExporter()
    contestant = Contestant(name, pool, Recorded(SimpleSpanProcessor(exporter)))
    with contestant.instrumentation():
        contestant.spin(1)
        left = telemetry(exporter, contestant.recorded)
    contestant.close()
    return left


NOTE = (
    "Providers, comparison and flushes are as in `traced`. The contestants take turns in one process. The "
    "instrumentation is started and ended between the slices, which is not measured. The target is compared with the "
    "faster hand-written form, which acquires and releases in one function."
)

WHAT_IT_DOES_MORE = (
    "The instrumentation needs 5.5 us more than the code written by hand. It stores four call sites. It handles what "
    "other checkouts have and this one has not: waits, retries, long holds, suppression, an observer that raises. And "
    "its telemetry is that of all kinds of pools, so there are more calls."
)

SEEN_BY_EVENTS = "As for psycopg2's pool; and 1.5 us more to attribute SQLAlchemy's events to the checkout in progress."

ROWS = tuple(
    Row(
        name=name,
        work=f"one thread, {work}, instrumented, spans and both histograms recording through a batch processor",
        contestants=(INSTRUMENTED, *WRITTEN, NOT_INSTRUMENTED),
        columns=EACH,
        measure=partial(measure, make),
        together=True,
        targets=(
            Target(
                "against the same span, attributes and two records by hand",
                ratio("us", INSTRUMENTED, BY_HAND),
                1.15,
                reason=reason,
            ),
        ),
        note=NOTE,
    )
    for name, work, make, reason in (
        ("hooked-traced", "psycopg2's `getconn()` and `putconn()`", Psycopg2Pool, WHAT_IT_DOES_MORE),
        ("hooked-psycopg-pool-traced", "psycopg_pool's `getconn()` and `putconn()`", PsycopgPool, WHAT_IT_DOES_MORE),
        ("hooked-sqlalchemy-traced", "`engine.raw_connection()` and `close()`", Engine, SEEN_BY_EVENTS),
    )
)
