"""Steps of the system's clock, and suspensions of the process: only the monotonic clock decides."""

from __future__ import annotations

import ast
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import otel_pgpool
from tests.chaos.process import SUSPENSIONS
from tests.chaos.runner import MAXCONN, TIMEOUT, Outcome
from tests.support.scripts import PATIENCE, run, started

PACKAGE = Path(otel_pgpool.__file__).parent
WALL_CLOCK = {"time", "time_ns", "localtime", "gmtime", "now", "utcnow", "today"}

TICKING = """
import threading, time
gaps = []

def tick():
    slept, used = time.monotonic(), time.process_time()
    while True:
        time.sleep(0.02)
        now, cpu = time.monotonic(), time.process_time()
        if now - slept > 0.05:
            gaps.append([slept, now, cpu - used])
        slept, used = now, cpu

threading.Thread(target=tick, name="ticking", daemon=True).start()
"""


def stood_still(gaps: list[tuple[float, float, float]], since: float = 0.0) -> float:
    """Seconds in which no thread of a `TICKING` program ran, though one that sleeps for 20 ms at a time wanted to."""
    return sum(max(0.0, end - max(start, since) - used - 0.05) for start, end, used in gaps)


def clocks(file: Path) -> set[str]:
    """Return the uses of the system's clocks in a module."""
    asked = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            asked |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            asked.add(node.attr)
    return asked


def test_only_spans_look_at_the_time_of_day() -> None:
    """The start of a span reads the time of day; everything else reads the monotonic clock."""
    files = [file for file in PACKAGE.rglob("*.py") if not {"cli", "demo"} & set(file.parts)]
    looking = {file.relative_to(PACKAGE).as_posix() for file in files if clocks(file) & WALL_CLOCK}
    assert looking == {"telemetry/spans.py"}


STEPPING = """
import json, os, sys, threading, time

step, offset, real, real_ns = float(sys.argv[1]), 0.0, time.time, time.time_ns
time.time = lambda: real() + offset
time.time_ns = lambda: real_ns() + int(offset * 1e9)

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from otel_pgpool import ConnectionPool, PoolTimeout

ended = []
class Spans(SpanProcessor):
    def on_end(self, span):
        ended.append(span)

provider = TracerProvider()
provider.add_span_processor(Spans())
trace.set_tracer_provider(provider)
connecting = threading.Event()

def credentials():
    if connecting.is_set():
        step_the_clock()
    return {}

def step_the_clock():
    global offset
    offset += step

def waited(timeout):
    began = time.monotonic()
    try:
        pool.putconn(pool.getconn(timeout=timeout))
    except PoolTimeout:
        pass
    return time.monotonic() - began

pool = ConnectionPool(
    1,
    2,
    os.environ["DATABASE_URL"],
    timeout=20,
    long_hold=0.05,
    max_lifetime=1800,
    max_idle=1800,
    credentials=credentials,
)
with pool.connection() as first:
    step_the_clock()
    connecting.set()
    with pool.connection():
        connecting.clear()
        threading.Timer(0.1, step_the_clock).start()
        timed_out = waited(0.3)
        served = []
        waiter = threading.Thread(target=lambda: served.append(waited(20)))
        waiter.start()
        while not pool.stats().waiting:
            time.sleep(0.001)
        step_the_clock()
        while pool.stats().long_holds < 2:
            time.sleep(0.001)
    waiter.join()
pool.check()
stats = pool.stats()
pool.close()

def told(span):
    return {
        "name": span.name, "start": span.start_time, "end": span.end_time, "id": span.context.span_id,
        "parent": span.parent and span.parent.span_id, "events": [[e.name, e.timestamp] for e in span.events],
        "attributes": dict(span.attributes),
    }

print(json.dumps({
    "spans": [told(span) for span in ended], "timed_out": timed_out, "served": served,
    "long_holds": stats.long_holds, "discarded": stats.discarded, "created": stats.created,
    "waited": stats.wait_seconds, "held": stats.hold_seconds, "oldest": stats.oldest_hold,
    "gaps": gaps,
}))
"""
HOUR = 3600.0
NS = 1e-9
MOMENT = 1.0
"""Seconds that may pass between two readings of the clocks; a step is 3,600."""
LONG = 0.05
"""Seconds from which on the program's holds are long."""


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "on"])
def test_the_system_time_steps(dsn: str, step: float) -> None:
    """A step by an hour, during holds, connects and waits, makes nothing early or late.

    No connection expires, a timeout is on time, and a waiter is served. The duration of each span is that of the
    monotonic clock, and its events and children lie within it.
    """
    ended = run(TICKING + STEPPING, str(step), DATABASE_URL=dsn)
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    assert 0.3 <= told["timed_out"] < PATIENCE
    assert told["served"][0] < PATIENCE
    assert (told["discarded"], told["created"]) == ({}, 2)
    assert 0 <= told["waited"] < PATIENCE
    assert 0 <= told["held"] < PATIENCE
    assert told["oldest"] == 0
    spans = {span["id"]: span for span in told["spans"]}
    assert sorted(span["name"] for span in spans.values()) == [
        *["pool.checkout"] * 4,
        *["pool.connect"] * 2,
        *["pool.wait"] * 3,
    ]
    flagged = [span for span in spans.values() if span["attributes"].get("otel_pgpool.long_hold")]
    assert told["long_holds"] == len(flagged) >= 2  # the two blocks; the waiter too, if it was held up
    for span in spans.values():
        length = (span["end"] - span["start"]) * NS
        assert 0 <= length < PATIENCE
        assert all(span["start"] <= at <= span["end"] for _name, at in span["events"])
        if span["name"] == "pool.checkout":
            attributes = span["attributes"]
            times = attributes["otel_pgpool.wait_time"] + attributes.get("otel_pgpool.hold_time", 0.0)
            assert length == pytest.approx(times, abs=MOMENT + stood_still(told["gaps"]))
            held = attributes.get("otel_pgpool.hold_time", 0.0)
            assert attributes.get("otel_pgpool.long_hold", False) == (held >= LONG)
        elif span["parent"] is not None:
            within = spans[span["parent"]]
            assert within["start"] <= span["start"]
            assert span["end"] <= within["end"]


SUSPENDED = """
import json, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.telemetry import Telemetry

class Spans(SpanProcessor):
    started = ended = 0
    def on_start(self, span, parent_context=None):
        Spans.started += 1
    def on_end(self, span):
        Spans.ended += 1

def rest(conn):
    conn.cursor().execute("select pg_sleep(3.5)")  # goes on until all are there, and is over before the process goes on

provider = TracerProvider()
provider.add_span_processor(Spans())
slow, go = threading.Event(), threading.Event()
pool = ConnectionPool(4, 4, os.environ["DATABASE_URL"], timeout=4, observer=Telemetry(provider),
                      application_name="suspended", reset=lambda conn: rest(conn) if slow.is_set() else None)
held = threading.Barrier(5)

def hold():
    with pool.connection() as conn:
        conn.cursor().execute("select 1")
        held.wait()
        go.wait()

def return_slowly():
    conn = pool.getconn()
    held.wait()
    slow.set()
    pool.putconn(conn)

def wait():
    began = time.monotonic()
    try:
        with pool.connection() as conn:
            slow.clear()
            return began, time.monotonic(), None
    except PoolTimeout as error:
        return began, time.monotonic(), error.waited

before = len(os.listdir("/proc/self/fd"))
with ThreadPoolExecutor(80) as threads:
    holders = [threads.submit(work) for work in (hold, hold, hold, return_slowly)]
    held.wait()
    slow.wait()
    waiters = [threads.submit(wait) for _ in range(64)]
    while pool.stats().waiting < 64:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGSTOP)
    go.set()
    for holder in holders:
        holder.result()
    ends = [waiter.result() for waiter in waiters]
slow.clear()
conns = [pool.getconn(timeout=5) for _ in range(4)]
for conn in conns:
    conn.cursor().execute("select 1")
cursor = conns[0].cursor()
cursor.execute("select count(*) from pg_stat_activity where application_name = 'suspended'")
(backends,) = cursor.fetchone()
del cursor
for conn in conns:
    pool.putconn(conn)
stats = pool.stats()
after = len(os.listdir("/proc/self/fd"))
pool.close()
print(json.dumps({
    "ends": ends, "backends": backends, "levels": [stats.size, stats.idle, stats.used, stats.waiting],
    "started": Spans.started, "ended": Spans.ended, "descriptors": after - before, "gaps": gaps,
    "threads": [each.name for each in threading.enumerate() if each is not threading.main_thread()],
}))
"""
STOPPED = 5.0
"""Seconds of the suspension, after which the timeouts and the deadline of the release in progress have passed."""
STORM = 2.0
"""Seconds in which 64 threads on two busy cores create their errors; the timeout is twice as long."""


def test_a_storm_of_expired_timeouts(dsn: str) -> None:
    """A process with three holders, one slow release and 64 waiters works again after a suspension.

    Each waiter has a connection or its error at once, nothing is lost, and each checkout has ended its span.
    """
    with started(TICKING + SUSPENDED, DATABASE_URL=dsn) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), process.stderr and process.stderr.read()
        time.sleep(STOPPED)
        resumed = time.monotonic()  # the same clock in every process
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    told: dict[str, Any] = json.loads(out)
    assert len(told["ends"]) == 64
    assert any(waited is not None and waited > STOPPED for _began, _end, waited in told["ends"])
    assert max(end for _began, end, _waited in told["ends"]) - resumed < STORM + stood_still(told["gaps"], resumed)
    assert told["backends"] <= 4
    assert told["levels"] == [4, 4, 0, 0]
    assert told["started"] == told["ended"]
    assert told["descriptors"] <= 1  # of the watch over deadlines none; of a connection that was replaced, at most
    assert set(told["threads"]) <= {"ticking", "otel_pgpool-deadlines"}


PLAY = """
import json, sys
from dataclasses import asdict
from benchmarks.row import OURS
from tests.chaos.process import SUSPENSIONS
from tests.chaos.runner import play
print(json.dumps([asdict(play(SUSPENSIONS[sys.argv[1]], OURS, float(sys.argv[2]))), gaps]))
"""
AWAY = 0.2


@pytest.mark.parametrize("name", SUSPENSIONS)
def test_the_application_goes_on(name: str) -> None:
    """At most the callers that waited see an error. In a process of its own, because the shell notices a suspension."""
    played = run(TICKING + PLAY, name, str(AWAY))
    assert played.returncode == 0, played.stderr
    told, gaps = json.loads(played.stdout)
    outcome, stood = Outcome(**told), max(0.0, stood_still(gaps) - TIMEOUT - AWAY)
    assert outcome.failures() == []
    assert outcome.first_good is not None
    assert outcome.first_good < 1 + stood
    assert set(outcome.errors) <= {"PoolTimeout"}
    assert sum(outcome.errors.values()) <= MAXCONN * (1 + stood // (TIMEOUT / 2))
