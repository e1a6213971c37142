"""The hook where all is recorded: a span and two records around each checkout, beside the same written by hand."""
# ruff: noqa: PLC0415 - our code is imported only where the hook is on

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.by_hand import Apart, Lent
from benchmarks.checkout import EACH, take_turns
from benchmarks.hooked import HOOKED, UNHOOKED
from benchmarks.lenders import Alchemy, Psycopg, Stock
from benchmarks.recorded import NullExporter, Recorded
from benchmarks.row import Round, Row, Target, ratio
from benchmarks.traced import BY_HAND, CYCLES, SLICES, refuse_differences, telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.lenders import Lender

APART = "by hand, in two functions"
WRITTEN = {BY_HAND: Lent, APART: Apart}


class Contestant:
    """A lender, and whatever tells of its checkouts."""

    def __init__(self, name: str, lender: Lender, recorded: Recorded) -> None:
        self.recorded = recorded
        self.close = lender.close
        self.spin = WRITTEN[name](lender, recorded).spin if name in WRITTEN else lender.spin
        self.hook: Callable[[], AbstractContextManager[None]] = nullcontext
        if name == HOOKED:
            self.hook = partial(hook_on, recorded)


@contextmanager
def hook_on(recorded: Recorded) -> Iterator[None]:
    """The hook, as long as the block lasts."""
    from otel_pgpool import PgPoolInstrumentor

    hook = PgPoolInstrumentor()
    hook.instrument(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    yield
    hook.uninstrument()


def measure(make: Callable[[str], Lender], contestants: Sequence[str], dsn: str) -> Round:
    """Prove that they leave the same, then time them."""
    refuse_differences({name: what_is_left(name, make(dsn)) for name in (HOOKED, *WRITTEN)})
    playing = {name: Contestant(name, make(dsn), Recorded(BatchSpanProcessor(NullExporter()))) for name in contestants}
    turn = ExitStack()

    def settle(name: str) -> None:
        turn.close()
        turn.enter_context(playing[name].hook())
        playing[name].spin(1)  # the hook meets the pool
        playing[name].recorded.settle()

    played = take_turns({name: contestant.spin for name, contestant in playing.items()}, CYCLES, SLICES, settle)
    turn.close()
    for contestant in playing.values():
        contestant.close()
        contestant.recorded.shut_down()
    return played


def what_is_left(name: str, lender: Lender) -> tuple[Any, ...]:
    """The telemetry of one checkout."""
    exporter = InMemorySpanExporter()
    contestant = Contestant(name, lender, Recorded(SimpleSpanProcessor(exporter)))
    with contestant.hook():
        contestant.spin(1)
        left = telemetry(exporter, contestant.recorded)
    contestant.close()
    return left


NOTE = (
    "Providers, proof and flushing as in `traced`. All take turns in one process; the hook is put on and taken off "
    "between the slices, outside the clock. The leaner hand-written form, which takes and gives back in one function, "
    "is the one to match."
)

WHAT_IT_DOES_MORE = (
    "The 5.5 us beyond what is written by hand are for the four places where the connection was asked for; for what a "
    "checkout may need and this one does not: waits, retries, long holds, suppression, an observer that raises; and "
    "for the way from the pool's call through the telemetry that all pools share."
)

SEEN_BY_EVENTS = (
    "As for the stock pool; and 1.5 us more to know whose request SQLAlchemy's events speak of, and whose return."
)

ROWS = tuple(
    Row(
        name=name,
        work=f"one thread, {work}, the hook on, spans and both histograms recording through a batch processor",
        contestants=(HOOKED, *WRITTEN, UNHOOKED),
        columns=EACH,
        measure=partial(measure, make),
        together=True,
        targets=(
            Target(
                "against the same span, attributes and two records by hand",
                ratio("us", HOOKED, BY_HAND),
                1.15,
                reason=reason,
            ),
        ),
        note=NOTE,
    )
    for name, work, make, reason in (
        ("hooked-traced", "stock `getconn()` and `putconn()`", Stock, WHAT_IT_DOES_MORE),
        ("hooked-psycopg-pool-traced", "psycopg_pool's `getconn()` and `putconn()`", Psycopg, WHAT_IT_DOES_MORE),
        ("hooked-sqlalchemy-traced", "`engine.raw_connection()` and `close()`", Alchemy, SEEN_BY_EVENTS),
    )
)
