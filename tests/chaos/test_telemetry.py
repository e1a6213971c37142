"""Telemetry that fails under load: the application sees nothing, no connection is lost, and it is said once."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from benchmarks.row import OURS
from otel_pgpool import ConnectionPool
from otel_pgpool.telemetry import Telemetry
from tests.chaos.collector import Answer, Collector, absent
from tests.chaos.scene import TIMEOUT, WORKERS, play
from tests.chaos.telemetry import EXPORT_TIMEOUT, FAULTS, Exporter, Told
from tests.support.scripts import run
from tests.support.telemetry import until
from tests.support.waiting import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

    from tests.chaos.ground import Ground

LAMENT = "telemetry is being lost"
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
SDK = "opentelemetry.sdk"
BATCHES = f"{SDK}._shared_internal"
RAISED, FULL = "Exception while exporting", "Queue full, dropping"
CALLBACK = "Callback failed for instrument"
SPELL = 20
"""Seconds of the system's clock in which the SDK's batch processors do not say the same twice in a row."""


@dataclass(eq=False)
class Said(logging.Handler):
    """What the libraries say at WARNING and above, which a program that sets up no logging sees on stderr."""

    records: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)
        self._began = time.time()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def spells(self) -> int:
        return int(time.time() // SPELL - self._began // SPELL) + 1

    def count(self) -> Counter[str]:
        """By who said it, and of the SDK's batch processors and our pool by what."""
        return Counter(
            next((text for text in (RAISED, FULL, LAMENT) if text in record.getMessage()), record.name)
            for record in self.records
            if not vars(record).get("otel_pgpool.event")  # a long hold, on a machine that stood still
        )


@pytest.fixture
def said() -> Iterator[Said]:
    """From here on, as in a new process: the SDK remembers nothing of what it has said before."""
    for each in logging.getLogger(BATCHES).filters:
        vars(each).pop("last_log", None)
    handler = Said()
    loggers = [logging.getLogger(name) for name in ("opentelemetry", "otel_pgpool")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


class Standstill:
    """Seconds in which no thread of this process ran, though one that sleeps for 20 ms at a time wanted to."""

    def __enter__(self) -> Self:
        self.total = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standstill", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        slept, used = time.monotonic(), time.process_time()
        while not self._over.wait(0.02):
            now, cpu = time.monotonic(), time.process_time()
            self.total += max(0.0, now - slept - (cpu - used) - 0.05)
            slept, used = now, cpu


@pytest.mark.parametrize("name", FAULTS)
def test_the_application_goes_on(name: str, said: Said) -> None:
    """No error, nobody waits for telemetry, no connection is lost, and the loss is said, by whoever knows of it.

    The pool says it once. The SDK's batch processors say the same once in 20 s, but for threads that do so at the same
    time, and for two things in turn; its OTLP exporter, as a program uses it without `otlp.configure()`, once for each
    batch. Of an answer that says success nobody can know more.
    """
    fault, grounds = FAULTS[name], []

    def ground(stage: ExitStack) -> Ground:
        grounds.append(fault.ground(stage))
        return grounds[0]

    with Standstill() as standstill:
        outcome = play(replace(fault, ground=ground), OURS, 0.2)
    stood = standstill.total > TIMEOUT / 2  # then callers may be served, or time out, later than the scene excuses
    assert [wrong for wrong in outcome.wrongs() if not (stood and wrong.startswith("a caller was inside"))] == []
    assert set(outcome.errors) <= ({"PoolTimeout"} if stood else set())
    assert outcome.longest_work < 1 + standstill.total
    (told,) = grounds
    assert isinstance(told, Told)
    lost, counted = told.piece.lost, said.count()
    full = counted.pop(FULL, 0)
    assert full <= WORKERS * said.spells
    if name == "queue-full":
        assert full >= 1
        assert counted == {}
    elif name == "exporter-raises":
        assert counted.keys() == {RAISED}
        assert 1 <= counted[RAISED] <= said.spells + full
        assert lost >= counted[RAISED]
    elif name in {"processor-raises", "start-raises", "sampler-raises"}:
        assert lost > 1
        assert counted == {LAMENT: 1}
    else:
        assert counted == +Counter({EXPORTER: lost})
        if name != "collector-garbage":
            assert lost >= 1
        elif standstill.total < EXPORT_TIMEOUT / 2:
            assert lost == 0


def test_a_callback_that_raises(dsn: str, said: Said) -> None:
    """A program's own observable callback that raises costs the pool none of its sixteen metrics.

    The SDK says so of each callback at each collection, which by default is once a minute.
    """
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    def raise_at_once(_options: CallbackOptions) -> Iterable[Observation]:
        raise ZeroDivisionError

    def raise_midway(_options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(1)
        raise ZeroDivisionError

    meter = meters.get_meter("shop")
    meter.create_observable_gauge("shop.before", [raise_at_once, raise_midway])
    with ConnectionPool(1, 2, dsn, name="shop", observer=Telemetry(meter_provider=meters)) as pool:
        meter.create_observable_gauge("shop.after", [raise_at_once, raise_midway])
        for _ in range(2):
            with pool.connection():
                data = reader.get_metrics_data()
            assert data is not None
            scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics]
            ours = [metric for scope in scopes if scope.scope.name == "otel_pgpool" for metric in scope.metrics]
            (count,) = [metric for metric in ours if metric.name == "db.client.connection.count"]
            assert {point.value for point in count.data.data_points} == {0, 1}
        assert pool.stats().used == 0
    meters.shutdown()
    assert [record.getMessage() for record in said.records if record.name.startswith(SDK)] == [
        f"{CALLBACK} shop.{name}." for _ in range(2) for name in ("before", "before", "after", "after")
    ]


def test_a_simple_processor_whose_exporter_raises(dsn: str, said: Said) -> None:
    """The SDK says so of each span, which is why `otlp.configure()` has none; the borrower sees nothing."""
    exporter = Exporter(broken=True)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with ConnectionPool(1, 2, dsn, timeout=5, observer=Telemetry(tracers)) as pool:
        for _ in range(10):
            with pool.connection():
                pass
        assert pool.stats().used == 0
    assert exporter.lost == 11  # the first connection's is one
    assert said.count() == {RAISED: 11}


def test_a_simple_processor_whose_exporter_hangs(dsn: str) -> None:
    """It holds up who gives back, whose connection is free already, and no other borrower."""
    exporter = Exporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    quiet = TracerProvider(shutdown_on_exit=False)
    with (
        ConnectionPool(1, 2, dsn, name="held up", timeout=5, observer=Telemetry(tracers)) as pool,
        ConnectionPool(1, 2, dsn, name="free", timeout=5, observer=Telemetry(quiet)) as other,
    ):

        def work(pool: ConnectionPool) -> None:
            with pool.connection():
                pass

        exporter.flows.clear()
        stuck = in_thread(work, pool)
        until(lambda: pool.stats().checkouts["idle"] == 1 and pool.stats().used == 0)
        for _ in range(10):
            work(other)
        conn = pool.getconn()  # its span has begun, and is not exported yet
        assert not stuck.done()
        exporter.flows.set()
        stuck.result(5)
        pool.putconn(conn)
        assert pool.stats().used == 0


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
"""Seconds for an export: to an endpoint that takes none, and to one that takes all, on however busy a machine."""
SLACK = 5.0
"""Seconds on such a machine, beside the three exports that a shutdown has time for."""
TAKEN = (Answer.ACCEPTED, Answer.GARBAGE)
"""Answers that say success."""
SETTINGS = {
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_BSP_SCHEDULE_DELAY": "20",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4096",  # more than there are spans: a full queue is a fault of its own
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
    "OTEL_METRIC_EXPORT_INTERVAL": "100",
}


@dataclass
class Ended:
    """A program that was served all it asked for, and what it has said."""

    undelivered: list[int]
    raised: int
    stderr: list[str]
    """Without the source lines of tracebacks."""
    spells: int

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
                endpoint = stage.enter_context(absent())
            else:
                collector = stage.enter_context(Collector())
                collector.answer = answer
                endpoint = collector.endpoint
            timeout = PATIENT if answer in TAKEN else PROMPT
            export = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": f"{timeout:g}"}
            for variable, value in {**SETTINGS, **export, **settings}.items():
                monkeypatch.setenv(variable, value)
            began = time.time()
            process = run(PROGRAM, broken, f"{3 * timeout:g}", DATABASE_URL=dsn)
            spells = int(time.time() // SPELL - began // SPELL) + 1
        assert process.returncode == 0, process.stderr
        told: dict[str, Any] = json.loads(process.stdout)
        assert (told["errors"], told["served"], told["levels"]) == ([], 800, [0, 0])
        assert told["took"] < 3 * PROMPT + SLACK
        lines = [line for line in process.stderr.splitlines() if not line.startswith(" ")]
        said = [line for line in lines if LAMENT in line or not line.startswith("pool shop: ")]
        return Ended(told["undelivered"], told["raised"], said, spells)

    return end


@pytest.mark.parametrize("answer", [None, *Answer], ids=lambda answer: getattr(answer, "name", "ABSENT"))
def test_a_program_that_exports(ended: Callable[..., Ended], answer: Answer | None) -> None:
    """By `otlp.configure()`: every checkout is served, the exit is bounded, and a loss is said once for each signal."""
    program = ended(answer)
    if answer in TAKEN:
        assert program.stderr == []
    else:
        assert program.undelivered[0] >= 800
        assert 1 <= len(program.stderr) <= 3, program.stderr  # each of the three exporters
        assert len(set(program.stderr)) == len(program.stderr)


def test_a_program_whose_queue_is_full(ended: Callable[..., Ended]) -> None:
    """By `otlp.configure()`, to an endpoint that hangs: the queue is said to be full once, beside the exporters' one.

    Nearly a thousand spans overrun it.
    """
    program = ended(Answer.NONE, OTEL_BSP_MAX_QUEUE_SIZE="64")
    full = program.count(FULL)
    assert program.undelivered[0] >= 800
    assert full == 1
    assert 1 <= len(program.stderr) - full <= 3, program.stderr


def test_a_program_that_ends_before_its_exports_fail(ended: Callable[..., Ended]) -> None:
    """By `otlp.configure()`, to an endpoint that hangs for longer than the program runs: said at its exit."""
    program = ended(Answer.NONE, OTEL_EXPORTER_OTLP_TIMEOUT="30")
    assert program.undelivered[0] >= 800
    assert program.stderr == ["not delivered: {} spans, {} metric points, {} log records".format(*program.undelivered)]


@pytest.mark.parametrize("broken", ["on_start", "on_end", "sampler"])
def test_a_program_with_a_broken_piece(ended: Callable[..., Ended], broken: str) -> None:
    """A span processor or a sampler of its own, beside `otlp.configure()`: said by the pool, once, and nothing else."""
    program = ended(Answer.ACCEPTED, broken)
    assert program.raised >= 800
    assert (program.count(LAMENT), len(program.stderr)) == (1, 1), program.stderr
    assert program.undelivered == [0, 0, 0]


def test_a_program_whose_own_exporter_raises(ended: Callable[..., Ended]) -> None:
    """One given to `otlp.configure()`: said by the SDK, with its traceback, once; OTLP has everything."""
    program = ended(Answer.ACCEPTED, "exporter")
    assert program.raised > 1
    assert program.count(RAISED) == 1
    assert len(program.stderr) == 3 + program.count(FULL), program.stderr
    assert program.undelivered == [0, 0, 0]


def test_a_program_whose_callback_raises(ended: Callable[..., Ended]) -> None:
    """Said by the SDK, with its traceback, once, where it would say so at each collection; all others are exported."""
    program = ended(Answer.ACCEPTED, "callback")
    assert program.raised > 1
    assert program.count(f"{CALLBACK} broken.") == 1
    assert len(program.stderr) == 3, program.stderr
    assert program.undelivered == [0, 0, 0]
