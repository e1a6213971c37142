"""Deltas, sums and exponential histograms from a program to the wire, as the SDK's variables ask for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.receivers import HttpReceiver
from tests.support.totals import CHECKOUTS, CREATED, DISCARDED, NAME
from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer
    from tests.support.otlp_views import MetricPoint

ROOT = Path(__file__).parents[2]
USE_TIME = "db.client.connection.use_time"

# Each kind of pool lives three times under one name: closed before a collection, dropped between two, closed after the
# last. A forked child, which counts from zero, uses and closes those that may be used there.
PROGRAM = """
import gc, os
import psycopg2.pool
import psycopg_pool
from sqlalchemy import create_engine
from otel_pgpool import ConnectionPool, PgPoolInstrumentor
from otel_pgpool.otlp import configure

dsn = os.environ["DSN"]

class Ours:
    def __init__(self):
        self.pool = ConnectionPool(1, 1, dsn, name="ours", long_hold=None)
    def use(self):
        with self.pool.connection():
            pass
    def close(self):
        self.pool.close()

class Stock:
    def __init__(self):
        self.pool = psycopg2.pool.ThreadedConnectionPool(1, 1, dsn + "?application_name=stock")
    def use(self):
        self.pool.putconn(self.pool.getconn())
    def close(self):
        self.pool.closeall()

class Psycopg:
    def __init__(self):
        self.pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, name="psycopg", open=True)
    def use(self):
        with self.pool.connection():
            pass
    def close(self):
        self.pool.close()

class Alchemy:
    def __init__(self):
        self.pool = create_engine("postgresql+psycopg2" + dsn.removeprefix("postgresql"), pool_logging_name="alchemy")
    def use(self):
        with self.pool.connect():
            pass
    def close(self):
        self.pool.dispose()

def use(pool, times):
    for _ in range(times):
        pool.use()

with configure("shop") as providers:
    PgPoolInstrumentor().instrument(long_hold=None)
    for kind in (Ours, Stock, Psycopg, Alchemy):
        first = kind()
        use(first, 3)
        first.close()
        del first
        gc.collect()
        assert providers.flush()
        second = kind()
        use(second, 2)
        assert providers.flush()
        use(second, 2)
        if kind is Psycopg:  # whose threads would keep it
            second.close()
        second.itself = second
        del second
        gc.collect()
    last = [Ours(), Stock(), Psycopg(), Alchemy()]
    for pool in last:
        use(pool, 5)
    child = os.fork()
    if child == 0:
        for pool in (last[0], last[1], last[3]):
            use(pool, 1)
            pool.close()
        providers.shutdown()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for pool in last:
        use(pool, 1)
        pool.close()
"""
USES = {"ours": 3 + 4 + 6 + 1, "psycopg": 3 + 4 + 6, "alchemy": 3 + 4 + 6 + 1}


class Choice(NamedTuple):
    """What is asked for, and the kinds of observed counters and of histograms that follow."""

    temporality: str
    aggregation: str
    observed: str
    histogram: str


CHOICES = [
    Choice("delta", "base2_exponential_bucket_histogram", "DELTA", "exponential_histogram"),
    Choice("lowmemory", "explicit_bucket_histogram", "CUMULATIVE", "histogram"),
]


@pytest.fixture(scope="module")
def told(server: PostgresServer) -> Iterator[dict[Choice, list[MetricPoint]]]:
    """Run the program with each choice at once, and provide what it exported."""
    with ExitStack() as stack:
        running = []
        for choice in CHOICES:
            receiver = stack.enter_context(HttpReceiver())
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
            asked = {
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": choice.temporality,
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": choice.aggregation,
            }
            environment = {**inherited, "PYTHONPATH": str(ROOT), "DSN": url_of(server.dsn), **receiver.environ, **asked}
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], env=environment, stderr=subprocess.PIPE, text=True
            )
            running.append((choice, receiver, stack.enter_context(process)))
            stack.callback(process.kill)
        for _choice, _receiver, process in running:
            _out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        yield {choice: receiver.metrics for choice, receiver, _process in running}


def sums(points: list[MetricPoint]) -> dict[str, Counter[str]]:
    """Add up what a backend has by metric and pool, from deltas and from sums, none of which may go down.

    A sum with a later start has begun anew, in another process.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    known: Counter[object] = Counter()
    for point in points:
        if point.name in {CHECKOUTS, CREATED, DISCARDED, USE_TIME}:
            series = point.name, str(point.attributes), point.start
            value = point.count if point.value is None else point.value
            grown = value if point.temporality == "DELTA" else value - known[series]
            assert grown >= 0, point
            known[series] += grown
            found[point.name][str(point.attributes[NAME])] += grown
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.temporality)
def test_totals(told: dict[Choice, list[MetricPoint]], choice: Choice) -> None:
    """All checkouts and connections of all pools arrive once, and nothing goes down."""
    found = sums(told[choice])
    (stock,) = found[CHECKOUTS].keys() - USES.keys()
    assert found[CHECKOUTS] == found[USE_TIME] == {stock: USES["ours"], **USES}
    assert found[CREATED] == {stock: 4, "ours": 4, "alchemy": 4, "psycopg": 3}
    assert found[DISCARDED] == dict.fromkeys([stock, *USES], 4)  # the child's discard what the parent opened


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.temporality)
def test_each_kind_is_as_asked_for(told: dict[Choice, list[MetricPoint]], choice: Choice) -> None:
    """Boundaries that are advised to the SDK do not stand in the way of exponential histograms."""
    kinds = {(point.type, point.temporality) for point in told[choice] if point.name == USE_TIME}
    assert kinds == {(choice.histogram, "DELTA")}
    assert {point.temporality for point in told[choice] if point.name == CHECKOUTS} == {choice.observed}
    levels = {point.temporality for point in told[choice] if point.name == "db.client.connection.count"}
    assert levels == {"CUMULATIVE"}
