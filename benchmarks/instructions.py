"""``python -m benchmarks.instructions``: count the processor's instructions of instrumented checkouts.

Counts do not depend on the load of the machine, unlike times. They leave out waits for memory, for the kernel and for
the server. Valgrind has to be installed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks import hooked_asyncpg, hooked_psycopg_async
from benchmarks.__main__ import server
from benchmarks.by_hand import InOneFunction
from benchmarks.hooked import INSTRUMENTED, NOT_INSTRUMENTED
from benchmarks.hooked_asyncpg import BY_HAND, instrument
from benchmarks.hooked_sqlalchemy_tasks import Tasks
from benchmarks.measured_pools import SOCKETS, Engine, Psycopg2Pool, PsycopgPool
from benchmarks.recorded import NullExporter, Recorded
from otel_pgpool.environment import CALLER

if TYPE_CHECKING:
    from collections.abc import Callable

DSN = "BENCHMARK_DSN"
FEW, MANY = 1_000, 5_000
"""Numbers of checkouts. The difference of their counts leaves out the start of the program."""

POOLS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "hooked": (Psycopg2Pool, InOneFunction),
    "hooked-psycopg-pool": (PsycopgPool, InOneFunction),
    "hooked-sqlalchemy": (Engine, InOneFunction),
    "hooked-asyncpg": (lambda dsn: hooked_asyncpg.Loop(dsn, *SOCKETS), hooked_asyncpg.Written),
    "hooked-psycopg-async": (lambda dsn: hooked_psycopg_async.Loop(dsn, *SOCKETS), hooked_psycopg_async.Written),
    "hooked-sqlalchemy-psycopg": (partial(Tasks, "psycopg"), None),
    "hooked-sqlalchemy-asyncpg": (partial(Tasks, "asyncpg"), None),
}
"""By the name of the row with spans off: the pool, and the same telemetry written by hand."""


def play(name: str, contestant: str, times: int, dsn: str, *, traced: bool) -> None:
    """Check out this number of times, and end the process."""
    make, write = POOLS[name]
    recorded = Recorded(BatchSpanProcessor(NullExporter())) if traced else None
    if contestant == INSTRUMENTED and recorded is None:
        instrument(spans="off")
    elif contestant == INSTRUMENTED and recorded is not None:
        instrument(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    pool = make(dsn)
    spinning = pool
    if contestant == BY_HAND and write is not None:
        written = write(pool, recorded)
        if write is InOneFunction:
            spinning = written
        else:
            pool.checkout = written.checkout
    spinning.spin(times)
    os._exit(0)  # the end of the program is not measured


def count(dsn: str, *arguments: str) -> int:
    """Return the number of instructions of one process."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    program = [sys.executable, "-m", "benchmarks.instructions", *arguments]
    environment = {**os.environ, DSN: dsn, "PYTHONHASHSEED": "0"}  # the DSN is no argument, which any user may read
    done = subprocess.run(  # noqa: S603 - our own module
        [*command, *program], env=environment, capture_output=True, text=True, check=False
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        sys.exit(f"{' '.join(arguments)} could not be counted:\n{done.stderr}")
    return int(found[1].replace(",", ""))


def compare(name: str, peer: str, dsn: str) -> str:
    """Return a line of the table: the instructions of an instrumented checkout, and of one of the other contestant."""
    how = ["--traced"] if peer == BY_HAND else []
    ours, theirs = (
        (count(dsn, name, "--play", each, str(MANY), *how) - count(dsn, name, "--play", each, str(FEW), *how))
        / (MANY - FEW)
        for each in (INSTRUMENTED, peer)
    )
    row = f"{name}-traced" if how else name
    return f"| {row} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.3f} |"


def compare_callers(name: str, dsn: str) -> str:
    """Return a line of the table: the instructions of a recorded checkout with callers, and of one without."""
    with_callers, without = (
        (
            count(dsn, name, "--play", INSTRUMENTED, str(MANY), "--traced", *how)
            - count(dsn, name, "--play", INSTRUMENTED, str(FEW), "--traced", *how)
        )
        / (MANY - FEW)
        for how in (["--callers"], [])
    )
    return f"| {name}-callers | {with_callers:,.0f} | {without:,.0f} | {with_callers / without:.3f} |"


def main() -> None:
    """Print a table of the rows named, or of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"pools to count: {', '.join(POOLS)}; default: all")
    parser.add_argument("--play", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--callers", action="store_true", help="compare recorded checkouts with callers and without")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in POOLS]
    if unknown:
        parser.error(f"no pool {unknown[0]!r}; there are {', '.join(POOLS)}")
    if options.play:
        contestant, times = options.play
        os.environ[CALLER.name] = str(int(options.callers))
        play(options.names[0], contestant, int(times), os.environ[DSN], traced=options.traced)
    print(
        "| row | instrumented | not instrumented, by hand, or without callers | ratio |\n| --- | ---: | ---: | ---: |"
    )
    with server(None) as dsn:
        for name in options.names or POOLS:
            if options.callers:
                print(compare_callers(name, dsn), flush=True)
                continue
            for peer in (NOT_INSTRUMENTED, BY_HAND):
                if peer == NOT_INSTRUMENTED or POOLS[name][1] is not None:
                    print(compare(name, peer, dsn), flush=True)


if __name__ == "__main__":
    main()
