"""Programs whose telemetry fails: every checkout is served, the exit is bounded, and a loss is reported once."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.otlp_receiver import Answer, ControlledReceiver, closed_endpoint
from tests.support.loss_messages import CALLBACK_FAILED, EXPORT_FAILED, LOST, PERIOD, QUEUE_FULL
from tests.support.scripts import run

if TYPE_CHECKING:
    from collections.abc import Callable


PROGRAM = """
import json, os, sys, threading, time
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from otel_pgpool import ConnectionPool
from otel_pgpool.otlp import configure

broken, raised = sys.argv[1], []

class BrokenError(Exception):
    pass

def breaks(*_args, **_kwargs):
    raised.append(time.monotonic())
    raise BrokenError

class AtStart(SpanProcessor):
    on_start = breaks

class AtEnd(SpanProcessor):
    on_end = breaks

class Exporter(SpanExporter):
    export = breaks

class Undecided(Sampler):
    should_sample = breaks
    get_description = breaks

given = [Exporter()] if broken == "exporter" else []
with configure("shop", span_exporters=given) as providers:
    tracers = providers.tracer_provider
    if broken == "on_start":
        tracers.add_span_processor(AtStart())
    elif broken == "on_end":
        tracers.add_span_processor(AtEnd())
    elif broken == "sampler":
        tracers.sampler = Undecided()
    elif broken == "callback":
        providers.meter_provider.get_meter("shop").create_observable_gauge("broken", [breaks])
    pool = ConnectionPool(2, 4, os.environ["DATABASE_URL"], name="shop", timeout=20)
    errors = []

    def work():
        try:
            for _ in range(100):
                with pool.connection() as conn:
                    conn.cursor().execute("select 1")
        except Exception as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stats = pool.stats()
    pool.close()
    began = time.monotonic()
    providers.shutdown(float(sys.argv[2]))
    took = time.monotonic() - began
print(json.dumps({
    "errors": errors, "served": sum(stats.checkouts.values()), "levels": [stats.used, stats.idle - stats.size],
    "undelivered": providers.undelivered, "took": took, "raised": len(raised),
}))
"""
PROMPT, PATIENT = 1.0, 12.0
"""Seconds for an export: to an endpoint that accepts nothing, and to one that accepts all, on a busy machine."""
SLACK = 5.0
"""Seconds on a busy machine, in addition to the three exports of a shutdown."""
TAKEN = (Answer.ACCEPTED, Answer.GARBAGE)
"""Answers that mean success."""
SETTINGS = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_BSP_SCHEDULE_DELAY": "20",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",  # more than there are spans: a full queue is a fault of its own
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
    "OTEL_METRIC_EXPORT_INTERVAL": "100",
}


@dataclass
class Ended:
    """The results of a program whose checkouts were all served, and its output."""

    undelivered: list[int]
    raised: int
    stderr: list[str]
    """Without the source lines of tracebacks."""
    periods: int

    def count(self, text: str) -> int:
        return sum(text in line for line in self.stderr)


@pytest.fixture
def ended(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run the program to its end."""
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)

    def end(answer: Answer | None, broken: str = "nothing", **settings: str) -> Ended:
        with ExitStack() as stage:
            if answer is None:
                endpoint = stage.enter_context(closed_endpoint())
            else:
                collector = stage.enter_context(ControlledReceiver())
                collector.answer = answer
                endpoint = collector.endpoint
            timeout = PATIENT if answer in TAKEN else PROMPT
            export = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": f"{timeout:g}"}
            for variable, value in {**SETTINGS, **export, **settings}.items():
                monkeypatch.setenv(variable, value)
            began = time.time()
            process = run(PROGRAM, broken, f"{3 * timeout:g}", DATABASE_URL=dsn)
            periods = int(time.time() // PERIOD - began // PERIOD) + 1
        assert process.returncode == 0, process.stderr
        told: dict[str, Any] = json.loads(process.stdout)
        assert (told["errors"], told["served"], told["levels"]) == ([], 800, [0, 0])
        assert told["took"] < 3 * PROMPT + SLACK
        lines = [line for line in process.stderr.splitlines() if not line.startswith(" ")]
        said = [line for line in lines if LOST in line or not line.startswith("pool shop: ")]
        return Ended(told["undelivered"], told["raised"], said, periods)

    return end


@pytest.mark.parametrize("answer", [None, *Answer], ids=lambda answer: getattr(answer, "name", "ABSENT"))
def test_a_program_that_exports(ended: Callable[..., Ended], answer: Answer | None) -> None:
    """With `otlp.configure()`, every checkout is served, the exit is bounded, and a loss is logged once per signal."""
    program = ended(answer)
    if answer in TAKEN:
        assert program.stderr == []
    else:
        assert program.undelivered[0] >= 800
        assert 1 <= len(program.stderr) <= 3, program.stderr  # each of the three exporters
        assert len(set(program.stderr)) == len(program.stderr)


def test_a_program_whose_queue_is_full(ended: Callable[..., Ended]) -> None:
    """With `otlp.configure()` and an endpoint that hangs, the full queue is logged once, and so is each error."""
    program = ended(Answer.NONE, OTEL_BSP_MAX_QUEUE_SIZE="64")
    full = program.count(QUEUE_FULL)
    assert program.undelivered[0] >= 800
    assert full == 1
    assert 1 <= len(program.stderr) - full <= 3, program.stderr


def test_a_program_that_ends_before_its_exports_fail(ended: Callable[..., Ended]) -> None:
    """With `otlp.configure()` and an endpoint that hangs until the program ends, the loss is logged at the exit."""
    program = ended(Answer.NONE, OTEL_EXPORTER_OTLP_TIMEOUT="30")
    assert program.undelivered[0] >= 800
    assert program.stderr == ["not delivered: {} spans, {} metric points, {} log records".format(*program.undelivered)]


@pytest.mark.parametrize("broken", ["on_start", "on_end", "sampler"])
def test_a_program_with_a_broken_piece(ended: Callable[..., Ended], broken: str) -> None:
    """If the program's own span processor or sampler raises, the pool logs that once, and nothing else is logged."""
    program = ended(Answer.ACCEPTED, broken)
    assert program.raised >= 800
    assert (program.count(LOST), len(program.stderr)) == (1, 1), program.stderr
    assert program.undelivered == [0, 0, 0]


def test_a_program_whose_own_exporter_raises(ended: Callable[..., Ended]) -> None:
    """If an exporter given to `otlp.configure()` raises, the SDK logs that once; everything is sent over OTLP."""
    program = ended(Answer.ACCEPTED, "exporter")
    assert program.raised > 1
    assert program.count(EXPORT_FAILED) == 1
    assert len(program.stderr) == 3 + program.count(QUEUE_FULL), program.stderr
    assert program.undelivered == [0, 0, 0]


def test_a_program_whose_callback_raises(ended: Callable[..., Ended]) -> None:
    """If a callback of the program raises, the SDK logs that once, not at each collection; other metrics are sent."""
    program = ended(Answer.ACCEPTED, "callback")
    assert program.raised > 1
    assert program.count(f"{CALLBACK_FAILED} broken.") == 1
    assert len(program.stderr) == 3, program.stderr
    assert program.undelivered == [0, 0, 0]
