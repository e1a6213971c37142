"""README.md and docs/: every block runs, every table agrees with the code, every link leads somewhere.

The recipes, which are projects rather than programs, are run by ``test_recipes.py``.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import logging
import re
import shlex
import sys
import threading
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import distribution, version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import environment_variables
from opentelemetry.instrumentation import environment_variables as instrumentation_variables
from opentelemetry.sdk import environment_variables as sdk_variables
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from psycopg2.extensions import parse_dsn
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import create_engine
from sqlalchemy import pool as sqlalchemy_pools

import otel_pgpool
from benchmarks import span_modes
from otel_pgpool import ConnectionPool, PgPoolInstrumentor, PoolTimeout
from otel_pgpool.cli import main as otel_pgpool_command
from otel_pgpool.config import SPAN_MODES, PoolConfig, TelemetryConfig
from otel_pgpool.driver.reset import PROXY_WAIT
from otel_pgpool.environment import ENVIRONMENT
from otel_pgpool.instrumentation.options import OPTIONS, InstrumentationOptions
from otel_pgpool.telemetry import Telemetry
from tests.support.documents import (
    DOCUMENTS,
    GUIDE,
    INSTRUMENTATION,
    README,
    REFERENCE,
    ROOT,
    TELEMETRY,
    Program,
    clean_environ,
    code,
    head,
    outside_of_code,
    read,
    run,
    table,
    text_of,
    write,
)
from tests.support.receivers import GrpcReceiver, HttpReceiver
from tests.support.servers import ClonedServer
from tests.support.stack_files import compose
from tests.support.urls import url_of
from tests.support.waiting import PATIENCE, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.receivers import Receiver

LATE_ORDER = read(TELEMETRY).programs["late_order.py"]  # the program behind the picture
WITH_POSTGRES = read(GUIDE).programs["with_postgres.py"]  # the program that starts a server for another one
PROGRAMS = [
    program
    for document in DOCUMENTS
    for program in read(document).programs.values()
    if program not in (LATE_ORDER, WITH_POSTGRES)
]
DIFFS = [(document, diff) for document in DOCUMENTS for diff in read(document).diffs]
SHELL = [(document, line) for document in DOCUMENTS for line in read(document).shell]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    with ClonedServer() as server:
        yield server.dsn


@pytest.fixture(scope="module")
def environ(dsn: str) -> Iterator[dict[str, str]]:
    """Return a clean environment with a database and an OTLP endpoint, in which every warning is an error.

    No hold is long there, unless a program sets a threshold, because the machine may stand still for a second.
    """
    with HttpReceiver() as receiver:
        told = {
            "DATABASE_URL": dsn,
            "DATABASE_TOKEN": str(parse_dsn(dsn)["password"]),
            "OTEL_PGPOOL_LONG_HOLD": "60",
            "PYTHONWARNINGS": "error",
        }
        yield {**clean_environ(), **receiver.environ, **told}


@pytest.fixture(scope="module")
def late_order(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Return the output of the program behind the picture, and its spans."""
    folder = tmp_path_factory.mktemp("picture")
    defaults = {name: value for name, value in environ.items() if not name.startswith("OTEL_PGPOOL_")}
    for _ in range(3):
        printed = run(LATE_ORDER, defaults, folder)
        spans: list[dict[str, Any]] = json.loads((folder / "spans.json").read_text(encoding="utf-8"))
        if not stood_still(spans):
            break
    return printed, spans


def stood_still(spans: list[dict[str, Any]]) -> bool:
    """Whether the machine made another picture of it.

    The order came too late to wait, a hold was too long, or PostgreSQL's answer came after the hold.
    """
    held = [span["attributes"]["otel_pgpool.hold_time"] for span in spans if span["name"] == "pool.checkout"]
    waited = any(span["name"] == "pool.wait" for span in spans)
    answered = any(event["name"] == "pool.database_state" for span in spans for event in span["events"])
    late = any(time > meant + 0.15 for time, meant in zip(sorted(held), (0.8, 1.3), strict=True))
    return late or not (waited and answered)


def settled(text: str) -> str:
    """Without what differs from run to run: durations to the millisecond, process ids, trace ids."""
    text = re.sub(r"\b\d+\.\d{3}\b", "0.000", text)
    return re.sub(r"\b[0-9a-f]{32}\b", "TRACE", re.sub(r"\bpid\s+\d+", "pid N", text))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{program.document}:{program.name}")
def test_a_program_runs_and_prints_what_stands_below_it(
    program: Program, environ: dict[str, str], tmp_path: Path
) -> None:
    """It ends well, warns of nothing, and its output is the document's."""
    assert settled(run(program, environ, tmp_path)) == settled(program.prints)


def test_the_program_behind_the_picture_prints_what_stands_below_it(
    late_order: tuple[str, list[dict[str, Any]]],
) -> None:
    """As the others do."""
    assert late_order[0] == LATE_ORDER.prints


@pytest.mark.parametrize(("document", "diff"), DIFFS)
def test_a_diff_runs_before_and_after(document: str, diff: str, environ: dict[str, str], tmp_path: Path) -> None:
    """Both sides of a change work, and print the same."""
    sides = []
    for sign in "-+":
        kept = [line[1:] for line in diff.splitlines() if line[:1] in ("", " ", sign)]
        program = Program(document, "side.py", "\n".join(kept) + "\n")
        assert program.source != diff
        sides.append(run(program, environ, tmp_path))
    assert sides[0] == sides[1]


@pytest.mark.parametrize(("document", "line"), SHELL)
def test_a_shell_line_works(document: str, line: str, environ: dict[str, str], tmp_path: Path) -> None:
    """Targets, extras and images exist; a program that is started there sends what the text says to the endpoint."""
    words = shlex.split(line)
    if words[0] == "make":
        [target] = words[1:]
        assert re.search(rf"^{target}: ", text_of("Makefile"), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        extras = re.fullmatch(r"\.\[([\w,]+)\]", words[2])
        assert extras is not None
        assert set(extras[1].split(",")) <= {extra for row in table(REFERENCE, "extras") for extra in code(row[0])}
        assert [distribution(package).name for package in words[3:]] == words[3:]
    elif words[0] == "docker":
        assert words[-1] in {service["image"].partition("@")[0] for service in compose().values()}
    elif words[1] == WITH_POSTGRES.name:
        program = read(document).programs[words[2]]
        write(program, tmp_path)
        assert run(WITH_POSTGRES, environ, tmp_path, f"DATABASE_URL=dbname=nowhere {line}") == program.prints
    elif words[0] == "otel-pgpool":
        assert otel_pgpool_command(words[1:]) == 0
    elif words[0] == "jaeger":
        assert all(word.startswith("--set=extensions.jaeger_query.") for word in words[1:])
    else:
        assert words[-2] == "python"
        check_export(read(document).programs[words[-1]], line, environ, tmp_path)


@pytest.mark.parametrize("name", [name for name in read(README).programs if name.startswith("with_")])
def test_each_kind_of_pool_is_observed(name: str, environ: dict[str, str], tmp_path: Path) -> None:
    """The README's line observes each of its examples of existing pools, not only the one that the line names."""
    [line] = [line for document, line in SHELL if document == README and "with_" in line]
    program = read(README).programs[name]
    check_export(program, re.sub(r"with_\w+\.py", name, line), environ, tmp_path)


def check_export(program: Program, line: str, environ: dict[str, str], folder: Path) -> None:
    """Run a line that starts a program, its endpoint moved to a receiver of the protocol that the port stands for."""
    clean = {name: value for name, value in environ.items() if not name.startswith("OTEL_")}
    endpoint = re.search(r"http://localhost:(4317|4318)", line)
    assert endpoint is not None
    receiver: Receiver
    with GrpcReceiver() if endpoint[1] == "4317" else HttpReceiver() as receiver:
        line = re.sub(r"DATABASE_URL=\S+ ", "", line.replace(endpoint[0], receiver.endpoint))
        run(program, clean, folder, line)
        assert {span.resource["service.name"] for span in receiver.spans if span.name == "pool.checkout"} == {"shop"}
        assert bool(receiver.metrics) is ("OTEL_METRICS_EXPORTER=none" not in line)
        if headers := re.search(r"OTEL_EXPORTER_OTLP_HEADERS=([\w-]+)=(\w+)", line):
            assert {request[headers[1]] for request in receiver.requests} == {headers[2]}


# The picture

WIDTH = 44
TOLD = ("otel_pgpool.transaction.status", "otel_pgpool.checked_out_at", "postgresql.state")


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def draw(spans: list[dict[str, Any]]) -> str:
    """Draw the order's checkout from the spans of `late_order.py`."""
    of = {span["context"]["span_id"]: span for span in spans}
    root = next(span for span in spans if span["name"] == "POST /orders")
    checkout = next(span for span in spans if span["parent_id"] == root["context"]["span_id"])
    wait = next(span for span in spans if span["name"] == "pool.wait")
    attributes = checkout["attributes"]
    start = seconds(root["start_time"])
    scale = (seconds(root["end_time"]) - start) / WIDTH
    waited = round(attributes["otel_pgpool.wait_time"] / scale)

    def row(label: str, until: float, bar: str) -> str:
        return f"{label:<27}{until - start:.3f} s  {bar}"

    lines = [
        row("POST /orders", seconds(root["end_time"]), "─" * WIDTH),
        row("└─ pool.checkout", seconds(checkout["end_time"]), "░" * waited + "█" * (WIDTH - waited)),
        row("   ├─ pool.wait", seconds(wait["end_time"]), "░" * waited),
    ]
    [link] = wait["links"]
    holder = of[of[link["context"]["span_id"]]["parent_id"]]
    lines.append(f"   │    link to the pool.checkout of {holder['name']}, which held the connection")
    for event in checkout["events"]:
        at = seconds(event["timestamp"])
        branch, stem = ("└─", " ") if event is checkout["events"][-1] else ("├─", "│")
        lines.append(row(f"   {branch} {event['name']}", at, " " * int((at - start) / scale) + "╵"))
        told = {name: shown(event["attributes"][name]) for name in TOLD if name in event["attributes"]}
        lines += [f"   {stem}    {name}  {value}" for name, value in told.items()]
    cells = [f"{name:<28}{shown(attributes[name])}" for name in attributes if name.startswith("otel_pgpool.")]
    lines += ["", *(f"{left:<40}{right}" for left, right in zip(cells[::2], cells[1::2], strict=True))]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """Show a float to the millisecond, and a file without its folder."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return json.dumps(value) if not isinstance(value, str) else value.rpartition("/")[2]


def outline(picture: str) -> str:
    """Return a picture without its measures."""
    picture = re.sub(r"(─)+(?=\n)|(░)+|(█)+", r"\1\2\3", settled(picture))
    return re.sub(r" +", " ", re.sub(r"(connection\.pid) +\d+", r"\1 N", picture))


def test_the_picture_is_of_a_real_checkout(late_order: tuple[str, list[dict[str, Any]]]) -> None:
    """The README's picture is what the program's spans give, but for the durations."""
    fresh = draw(late_order[1])
    assert outline(read(README).picture) == outline(fresh), fresh


def test_the_picture_is_to_scale() -> None:
    """The bars and ticks of the README's picture stand where its figures say."""
    picture = read(README).picture
    total = float(re.findall(r"POST /orders +([\d.]+) s", picture)[0])
    for label, ended, row in re.findall(r"(pool\.\w+) +([\d.]+) s  (.*)", picture):
        assert len(row) == pytest.approx(float(ended) / total * WIDTH, abs=1), label
    waited = float(re.findall(r"wait_time +([\d.]+)", picture)[0])
    [bar] = re.findall(r"(░+)█+", picture)
    assert len(bar) == pytest.approx(waited / total * WIDTH, abs=1)


# The tables


def test_options_are_those_of_the_constructor() -> None:
    """Every option of ``ConnectionPool``, in its order, with its default."""
    parameters = inspect.signature(ConnectionPool).parameters.values()
    options = [(p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert [(code(row[0])[0], ast.literal_eval(code(row[1])[0])) for row in table(REFERENCE, "options")] == options


def test_figures_of_psycopg_pool() -> None:
    """Every figure of ``get_stats``, in its order."""
    pool = ConnectionPool(0, 1, "host=nowhere.invalid", open=False, observer=None)
    assert [name for row in table("docs/migrating.md", "psycopg-pool-stats") for name in code(row[0])] == list(
        pool.get_stats()
    )
    pool.close()


def test_options_of_the_instrumentor() -> None:
    """Every option, with the variable that its default comes from."""
    providers, *rows = table(INSTRUMENTATION, "instrumentor")
    assert (*code(providers[0]), *(code(row[0])[0] for row in rows)) == OPTIONS
    assert {code(row[0])[0]: code(row[1]) for row in rows} == {
        option: [f"OTEL_PGPOOL_{option.upper()}"] for option in OPTIONS[2:]
    }


def test_costs_of_span_modes() -> None:
    """Each mode, with and without histograms, for each kind of pool: what the benchmark measures."""
    assert SPAN_MODES == span_modes.MODES
    assert [code(each)[0] for each in head("docs/operations.md", "modes")[2:]] == [*span_modes.POOLS]
    _bare, *rows = table("docs/operations.md", "modes")
    assert [f"{code(row[0])[0]}, {row[1]}" for row in rows] == [*span_modes.SETTINGS]


def test_extras_are_those_of_the_package() -> None:
    """Every extra, in the order in which the package declares them."""
    _, _, declared = text_of("pyproject.toml").partition("[project.optional-dependencies]\n")
    extras = re.findall(r"^([\w-]+) = \[", declared.partition("\n[")[0], re.MULTILINE)
    assert [extra for row in table(REFERENCE, "extras") for extra in code(row[0])] == extras


def test_variables_are_those_that_are_read() -> None:
    """Every variable that the package reads, in the order of its table, with default and description."""
    *rows, others = table(REFERENCE, "variables")
    assert code(others[0]) == ["OTEL_*"]
    assert rows == [
        [f"`{variable.name}`", f"`{variable.default}`" if variable.default else "", variable.description]
        for variable in ENVIRONMENT
    ]
    told = {variable.name: variable.default for variable in ENVIRONMENT}
    pool, telemetry = PoolConfig.of(1, 1, environ={}), TelemetryConfig.of(environ={})
    assert float(told["DB_CONNECTION_TIMEOUT"]) == pool.timeout
    assert float(told["OTEL_PGPOOL_LONG_HOLD"]) == pool.long_hold
    assert told["OTEL_PGPOOL_SPANS"] == telemetry.spans
    assert float(told["OTEL_PGPOOL_SLOW"]) == telemetry.slow
    assert set(told["OTEL_PGPOOL_HISTOGRAMS"].split(",")) == telemetry.histograms
    assert (told["OTEL_PGPOOL_APPLICATION_NAME"] == "trace") is pool.names_traces
    assert told["OTEL_PGPOOL_STACK_SKIP"] == ",".join(telemetry.stack_skip) == ""
    assert told["OTEL_PGPOOL_WAIT_TIMEOUT"] == ""
    assert InstrumentationOptions.of(environ={}).wait_timeout is None


def test_no_variable_is_read_beside_the_table() -> None:
    """The package names no other variable, but for the command line, which sets up OpenTelemetry for itself."""
    sources = [path for path in (ROOT / "otel_pgpool").rglob("*.py") if not {"cli", "demo"} & set(path.parts)]
    texts = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"[\"'`]((?:OTEL|DB)_[A-Z_]*[A-Z])[\"'`]", texts))
    read_by_the_sdk = {"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_CONFIG_FILE"}
    assert named - read_by_the_sdk <= {variable.name for variable in ENVIRONMENT}


def test_variables_of_the_readme_exist() -> None:
    """The README has no table of variables; those of our own that it names are in the package's table."""
    named = set(re.findall(r"\b(OTEL_PGPOOL_[A-Z_]+|DB_[A-Z_]+)\b", text_of(README)))
    assert named <= {variable.name for variable in ENVIRONMENT}


@contextmanager
def instrumented(tracers: TracerProvider) -> Iterator[None]:
    instrumentor = PgPoolInstrumentor()
    instrumentor.instrument(tracer_provider=tracers, meter_provider=MeterProvider(), pools=["psycopg_pool"])
    yield
    instrumentor.uninstrument()


async def check_out_in_a_task(dsn: str) -> None:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool, pool.connection():
        pass


def be_blocked(dsn: str, observer: Telemetry) -> None:
    """Wait for the lock of another checkout, until PostgreSQL has said so."""

    def lock() -> None:
        with pool.connection() as conn, conn.cursor() as cur:
            cur.execute("lock table pg_description in share row exclusive mode")
            locked.set()
            told.wait(PATIENCE)

    def listen(record: logging.LogRecord) -> bool:
        if hasattr(record, "postgresql.blocking.pids"):
            told.set()
        return True

    locked, told, logger = threading.Event(), threading.Event(), logging.getLogger("otel_pgpool")
    logger.addFilter(listen)
    with ConnectionPool(2, 2, dsn, name="blocked", long_hold=0.01, observer=observer) as pool:
        holder = in_thread(lock)
        locked.wait(PATIENCE)
        lock()
        holder.result(PATIENCE)
    logger.removeFilter(listen)
    assert told.is_set()


@pytest.fixture(scope="module")
def measured(dsn: str) -> tuple[list[Any], list[Any]]:
    """Spans and metrics of checkouts: served, queued, failed, long, blocked, nested, by hand, by a task, in a proxy."""
    memory, reader, refuse = InMemorySpanExporter(), InMemoryMetricReader(), False

    def credentials() -> dict[str, str]:
        if refuse:
            raise PermissionError
        return {}

    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(memory))
    observer = Telemetry(tracers, MeterProvider([reader]))
    options = {"timeout": 5, "max_retries": 1, "credentials": credentials, "reentrant": True}
    with ConnectionPool(0, 2, dsn, long_hold=0.01, observer=observer, **options) as pool:
        with pool.connection() as conn, conn.cursor() as cur:
            cur.execute("select pg_sleep(0.1)")
            with pool.connection():
                pass
            conn.notices.append(PROXY_WAIT)  # as psycopg2 does
            refuse = True
            with suppress(PoolTimeout):
                pool.getconn()
        pool.putconn(pool.getconn(expected_hold=None), close=True)
        data = reader.get_metrics_data()
        metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else []
    be_blocked(dsn, Telemetry(tracers, MeterProvider()))
    with instrumented(tracers):
        asyncio.run(check_out_in_a_task(dsn))
    return list(memory.get_finished_spans()), list(metrics)


def test_spans_are_those_that_are_made(measured: tuple[list[Any], list[Any]]) -> None:
    """The three spans, with their kinds."""
    kinds = {span.name: span.kind.name.lower() for span in measured[0]}
    assert {code(row[0])[0]: row[1] for row in table(TELEMETRY, "spans")} == kinds


@pytest.mark.parametrize("name", ["pool.checkout", "pool.wait"])
def test_attributes_are_those_of_the_span(name: str, measured: tuple[list[Any], list[Any]]) -> None:
    """Every attribute of a checkout's span, served or failed, and of a wait's, with its type."""
    types = {bool: "bool", float: "double", int: "int", str: "string"}
    spans = [span for span in measured[0] if span.name == name]
    seen = {attribute: types[type(value)] for span in spans for attribute, value in span.attributes.items()}
    assert {code(row[0])[0]: row[1] for row in table(TELEMETRY, f"attributes of {name}")} == seen


def test_events_are_those_of_a_checkout(measured: tuple[list[Any], list[Any]]) -> None:
    """Every event with all its attributes; what PostgreSQL says of a session has a table of its own."""
    seen = {event.name: set(event.attributes) for span in measured[0] for event in span.events}
    del seen["pool.database_state"]
    told = {code(row[0])[0]: set(code(row[1])) for row in table(TELEMETRY, "events")}
    assert told.pop("pool.database_state") == set()
    assert told == seen


def test_attributes_are_those_of_the_database_state(measured: tuple[list[Any], list[Any]]) -> None:
    """Every attribute of an event about a session that waits for a lock, with its type."""
    types = {float: "double", int: "int", str: "string"}
    events = [event for span in measured[0] for event in span.events if event.name == "pool.database_state"]
    seen = {
        name: f"{types[type(value[0])]}[]" if isinstance(value, tuple) else types[type(value)]
        for event in events
        for name, value in event.attributes.items()
    }
    assert {code(row[0])[0]: row[1] for row in table(TELEMETRY, "attributes of pool.database_state")} == seen
    links = [dict(link.attributes) for span in measured[0] if span.name == "pool.checkout" for link in span.links]
    assert links
    assert all(link == {"otel_pgpool.relation": "blocked_by"} for link in links)


KINDS = {
    (Histogram, None): "histogram",
    (Gauge, None): "gauge",
    (Sum, True): "counter",
    (Sum, False): "up-down counter",
}


def test_metrics_are_those_of_the_meter(measured: tuple[list[Any], list[Any]]) -> None:
    """The seventeen metrics with instrument, unit and attributes."""
    told, seen = {}, {}
    for name, instrument, unit, more in table(TELEMETRY, "metrics"):
        told[code(name)[0]] = (instrument.removeprefix("observable "), code(unit)[0], code(more)[:1])
    for metric in measured[1]:
        names = {name for point in metric.data.data_points for name in point.attributes}
        names -= {"db.client.connection.pool.name"}
        kind = KINDS[type(metric.data), getattr(metric.data, "is_monotonic", None)]
        seen[metric.name] = (kind, metric.unit, sorted(names))
    assert told == seen
    assert len(seen) == 17


def test_metrics_by_caller_are_those_of_the_meter(dsn: str) -> None:
    """With callers, these metrics have the attribute, and no others."""
    reader = InMemoryMetricReader()
    observer = Telemetry(TracerProvider(), MeterProvider([reader]), caller=True)
    with ConnectionPool(1, 1, dsn, observer=observer) as pool:
        with pool.connection():
            pass
        data = reader.get_metrics_data()
    seen = set()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
        if any("otel_pgpool.caller" in (point.attributes or {}) for point in metric.data.data_points):
            kind = KINDS[type(metric.data), getattr(metric.data, "is_monotonic", None)]
            seen.add((metric.name, kind, metric.unit, "otel_pgpool.caller"))
    rows = table(TELEMETRY, "metrics by caller")
    assert seen == {
        (code(name)[0], kind.removeprefix("observable "), code(unit)[0], code(attribute)[0])
        for name, kind, unit, attribute in rows
    }


def test_boundaries_are_those_of_the_histograms(measured: tuple[list[Any], list[Any]]) -> None:
    """The boundaries in the text are those that the SDK uses."""
    text = " ".join(text_of(TELEMETRY).split())
    [parts] = re.findall(r"Boundaries of wait and create time: ([^;]+); of use time the same and (\d+, \d+)\.", text)
    wait, more = ([float(number) for number in part.split(", ")] for part in parts)
    for metric in measured[1]:
        if isinstance(metric.data, Histogram):
            bounds = list(metric.data.data_points[0].explicit_bounds)
            assert bounds == (wait + more if metric.name.endswith("use_time") else wait)


def use_once(kind: str, sizes: list[int], options: dict[str, int], dsn: str, name: str) -> object:
    """Create a pool of another library, check a connection out and release it."""
    if kind == "ThreadedConnectionPool":
        pool = ThreadedConnectionPool(*sizes, dsn)
        pool.putconn(pool.getconn())
        return pool
    url = url_of(dsn, scheme="postgresql+psycopg2")
    engine = create_engine(url, poolclass=getattr(sqlalchemy_pools, kind), pool_logging_name=name, **options)
    engine.connect().close()
    return engine


def test_levels_are_those_of_instrumented_pools(dsn: str) -> None:
    """What the instrumentation reports of each pool's limits; where a cell is empty, there is no series."""
    reader, told, pools = InMemoryMetricReader(), {}, []
    columns = [f"db.client.connection.{level}" for level in ("max", "idle.min", "idle.max")]
    PgPoolInstrumentor().instrument(meter_provider=MeterProvider([reader]))
    try:
        for pool, *cells in table(TELEMETRY, "instrumented pools"):
            [kind] = re.findall(r"^`(\w+)", pool)
            sizes = re.findall(r"\d+(?=[,)])", pool)
            options = {name: int(size) for name, size in re.findall(r"`(\w+)=(-?\d+)`", pool)}
            pools.append(use_once(kind, [int(size) for size in sizes], options, dsn, pool))
            name = dsn.rpartition("@")[2] if kind == "ThreadedConnectionPool" else pool
            told |= {(name, column): int(cell) for column, cell in zip(columns, cells, strict=True) if cell}
        data = reader.get_metrics_data()
    finally:
        PgPoolInstrumentor().uninstrument()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else []
    seen = {
        (point.attributes["db.client.connection.pool.name"], metric.name): point.value
        for metric in metrics
        if metric.name in columns
        for point in metric.data.data_points
    }
    assert seen == told


DISTRIBUTIONS = {
    "psycopg2": "psycopg2-binary",
    "psycopg_pool": "psycopg-pool",
    "SQLAlchemy": "SQLAlchemy",
    "asyncpg": "asyncpg",
}


def test_versions_are_those_that_are_tested() -> None:
    """What this very environment has stands in the table, and the package's classifiers name the same Pythons."""
    _, *libraries = head(INSTRUMENTATION, "observed")
    (_, *cells), *_others = table(INSTRUMENTATION, "observed")
    told = {library: cell.split(", ") for library, cell in zip(libraries, cells, strict=True)}
    assert told.keys() == {"`ConnectionPool`", *DISTRIBUTIONS}
    for library, installed in DISTRIBUTIONS.items():
        assert version(installed).rpartition(".")[0] in told[library]
    assert told["`ConnectionPool`"] == [otel_pgpool.__version__.rpartition(".")[0]]
    [pythons] = re.findall(r"Python: ([\d., ]+\d)\.", text_of(INSTRUMENTATION))
    assert ".".join(map(str, sys.version_info[:2])) in pythons.split(", ")
    assert re.findall(r"Python :: (3\.\d+)", text_of("pyproject.toml")) == pythons.split(", ")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_exist(document: str) -> None:
    """What a text calls on the pool, and the errors and the variables that it names, exist."""
    text = text_of(document)
    ours = {code(row[0])[0] for row in table(REFERENCE, "variables")}
    theirs = {
        name.lstrip("_")
        for module in (environment_variables, instrumentation_variables, sdk_variables)
        for name in vars(module)
    }
    assert set(re.findall(r"\bOTEL_[A-Z_]*[A-Z]\b", text)) <= ours | theirs
    called = re.findall(r"(?<!\.)\bpool\.(\w+)\(", text)  # `engine.pool` is another's
    assert {name for name in called if not hasattr(ConnectionPool, name)} == set()
    named = re.findall(r"`(Pool\w+|TooMany\w+)`", text)
    assert {name for name in named if not hasattr(otel_pgpool, name)} == set()


# Links


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


LINKED = [
    *DOCUMENTS,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    "collector-config/README.md",
    "examples/shop/README.md",
]


@pytest.mark.parametrize("document", LINKED)
def test_links_resolve(document: str) -> None:
    """Every relative link and picture leads to a file, every anchor to a heading."""
    for target in re.findall(r"(?:\]\(|<img src=\")([^)\s\"]+)", outside_of_code(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", outside_of_code(str(file.resolve().relative_to(ROOT))), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_headings_of_a_document_differ() -> None:
    """An anchor leads to one place."""
    for document in DOCUMENTS:
        headings = sorted(map(slug, re.findall(r"^#+ (.+)$", outside_of_code(document), re.MULTILINE)))
        assert [one for one, other in pairwise(headings) if one == other] == []


def test_the_readme_is_short() -> None:
    """What does not fit on a page or two has a page of its own in docs/."""
    assert len(text_of(README).splitlines()) <= 200


def test_the_package_shows_the_readme() -> None:
    """The distribution's description is the README."""
    assert f'\nreadme = "{README}"\n' in text_of("pyproject.toml")
