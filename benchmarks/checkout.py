"""The cost of the pool itself: one thread checks out a connection and releases it at once."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.peers import MAKERS, Setup, warm
from benchmarks.row import DBUTILS, OURS, PSYCOPG, PSYCOPG2, QUEUEPOOL, Column, Round, Row, Target, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec

CYCLES = 2_000
SLICES = 40
EACH = (Column("us", "us each", 2),)


WHAT_IT_DOES_MORE = (
    "In addition to what psycopg2's pool does, each checkout stores its call site (0.24 us, mostly for the caller's "
    "frame object), compares the session's settings at its end (0.2 us), and creates a record of its holder "
    "(0.2 us)."
)


def measure(contestants: Sequence[str], dsn: str) -> Round:
    """Measure checkouts without telemetry."""
    return _spin(contestants, dsn, telemetry=False)


def measure_without_sdk(contestants: Sequence[str], dsn: str) -> Round:
    """Measure checkouts with telemetry, in a process that cannot import OpenTelemetry's SDK."""
    forbid_sdk()
    return _spin(contestants, dsn, telemetry=True)


def _spin(contestants: Sequence[str], dsn: str, *, telemetry: bool) -> Round:
    peers = {name: MAKERS[name](Setup(dsn, 1, 5, telemetry=telemetry)) for name in contestants}
    for peer in peers.values():
        warm(peer, 1)
    each = take_turns({name: peer.spin for name, peer in peers.items()}, CYCLES)
    for peer in peers.values():
        peer.close()
    return each


def take_turns(
    spins: Mapping[str, Callable[[int], None]],
    cycles: int,
    slices: int = SLICES,
    settle: Callable[[str], object] = lambda _name: gc.collect(),
) -> Round:
    """Let the contestants check out in turn, each in short slices; return the median time of a checkout.

    The first slice of each contestant is a warm-up. Before each slice, ``settle`` is called with the contestant's
    name; its time does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in spins}
    for _ in range(slices + 1):
        for name, spin in spins.items():
            settle(name)
            began = time.perf_counter()
            spin(cycles)
            times[name].append((time.perf_counter() - began) / cycles * 1e6)
    return {name: {"us": statistics.median(each[1:])} for name, each in times.items()}


class NoSDK:
    """A finder of modules that hides the SDK."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Raise for ``opentelemetry.sdk`` and its modules; leave all others to the next finder."""
        if name == "opentelemetry.sdk" or name.startswith("opentelemetry.sdk."):
            raise ModuleNotFoundError(name, name=name)
        return None


def forbid_sdk() -> None:
    """Make imports of OpenTelemetry's SDK fail, and check that they do."""
    loaded = [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
    if loaded:
        message = f"the SDK is loaded already: {loaded}"
        raise RuntimeError(message)
    sys.meta_path.insert(0, NoSDK())
    try:
        importlib.util.find_spec("opentelemetry.sdk.trace")
    except ModuleNotFoundError:
        return
    message = "the SDK can still be imported"
    raise RuntimeError(message)


ROWS = (
    Row(
        name="checkout",
        work="one thread, `with pool.connection(): pass`, telemetry off",
        contestants=(OURS, PSYCOPG2, PSYCOPG, DBUTILS, QUEUEPOOL),
        columns=EACH,
        measure=measure,
        together=True,
        targets=(
            Target("against psycopg2's getconn/putconn", ratio("us", OURS, PSYCOPG2), 1.6, reason=WHAT_IT_DOES_MORE),
            Target("against psycopg_pool connection()", ratio("us", OURS, PSYCOPG), 0.5),
            Target("against DBUtils", ratio("us", OURS, DBUTILS), 1.0),
            Target("against QueuePool", ratio("us", OURS, QUEUEPOOL), 1.0),
        ),
    ),
    Row(
        name="no-sdk",
        work="the same, telemetry on, no SDK installed",
        contestants=(OURS, PSYCOPG2),
        columns=EACH,
        measure=measure_without_sdk,
        together=True,
        targets=(Target("against psycopg2's getconn/putconn", ratio("us", OURS, PSYCOPG2), 3.0),),
        note="In the process, imports of `opentelemetry.sdk` fail, so the API's own providers are used.",
    ),
)
