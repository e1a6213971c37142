"""The hook where it leaves neither span nor record: what a program pays for having it on."""
# ruff: noqa: PLC0415 - our code is imported only where the hook is on

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.checkout import CYCLES, EACH, forbid_sdk, take_turns
from benchmarks.lenders import Alchemy, Psycopg, Stock
from benchmarks.row import Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.lenders import Lender

HOOKED, UNHOOKED = "hooked", "not hooked"


def measure(make: Callable[[str], Lender], contestants: Sequence[str], dsn: str) -> Round:
    """One of the two, in a process that cannot import OpenTelemetry's SDK."""
    [name] = contestants
    forbid_sdk()
    if name == HOOKED:
        from otel_pgpool import PgPoolInstrumentor

        PgPoolInstrumentor().instrument(spans="off")
    lender = make(dsn)
    played = take_turns({name: lender.spin}, CYCLES)
    lender.close()
    return played


WHAT_IT_KEEPS = (
    "What is left of it is a record of the checkout, of where it was asked for and of its thread, and for SQLAlchemy "
    "the dispatch of its events."
)

NOTE = (
    "Each has a process of its own, one after the other in each round: to put the hook on and off between the slices "
    "of one process makes both dearer by what the interpreter has to learn anew, and so the ratio kinder by a "
    "twentieth. Neither process can import `opentelemetry.sdk`."
)

ROWS = tuple(
    Row(
        name=name,
        work=f"one thread, {work}, the hook on, spans off, no SDK installed",
        contestants=(HOOKED, UNHOOKED),
        columns=EACH,
        measure=partial(measure, make),
        rounds=5,
        targets=(
            Target("against the same without the hook", ratio("us", HOOKED, UNHOOKED), limit, reason=WHAT_IT_KEEPS),
        ),
        note=NOTE,
    )
    for name, work, make, limit in (
        ("hooked", "stock `getconn()` and `putconn()`", Stock, 2.0),
        ("hooked-sqlalchemy", "`engine.raw_connection()` and `close()`", Alchemy, 1.5),
        ("hooked-psycopg-pool", "psycopg_pool's `getconn()` and `putconn()`", Psycopg, 1.5),
    )
)
