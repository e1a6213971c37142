"""Declarative configuration: programs under ``opentelemetry-instrument`` with ``OTEL_CONFIG_FILE``."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

import psycopg2
import pytest

from otel_pgpool import ConnectionPool
from otel_pgpool.environment import ENVIRONMENT
from otel_pgpool.instrumentation.options import OPTIONS
from tests.support.documents import INSTRUMENTATION, read
from tests.support.programs import UNDER_OTEL, running
from tests.support.receivers import HttpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = """
import os, threading, time
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import create_engine

pool = ThreadedConnectionPool(1, 1, os.environ["DATABASE_URL"])
pool.putconn(pool.getconn())  # fast
conn = pool.getconn()
threading.Timer(0.3, pool.putconn, [conn]).start()
try:
    pool.putconn(pool.getconn())
    print("waited")
except Exception as error:
    print(error)
engine = create_engine(os.environ["DATABASE_URL"])
engine.connect().close()
"""


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as receiver:
        yield receiver


def documented_file() -> tuple[str, str]:
    """Return the file of the documentation: what comes before our options, and these."""
    [file] = read(INSTRUMENTATION).files
    before, ours, options = file.partition("    otel_pgpool:\n")
    return before + ours, options


def run(receiver: HttpReceiver, dsn: str, folder: Path, options: list[str], **environ: str) -> tuple[str, list[str]]:
    """Run the program with the documented file, with these options of ours; return its output and its records."""
    file = folder / "otel.yaml"
    file.write_text(documented_file()[0] + "\n".join(f"      {line.strip()}" for line in options))
    environ |= {"OTEL_CONFIG_FILE": str(file), "COLLECTOR": receiver.endpoint}
    with (
        psycopg2.connect(dsn) as beside,
        running(*UNDER_OTEL, "python", "-c", PROGRAM, receiver=None, beside=beside, **environ) as program,
    ):
        printed = program.end().strip()
        return printed, program.errors.splitlines()


def recorded(receiver: HttpReceiver) -> set[str]:
    return {point.name for point in receiver.metrics}


def test_every_option_of_the_file_counts(receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """Each option has its effect, and hides its variable; an option from the environment may be part of the file."""
    _, documented = documented_file()
    others = ["wait_timeout: 20", "pools: [psycopg2]", "stack_skip: [acme]", "fork_repair: true", "database_state: all"]
    printed, said = run(
        receiver,
        dsn,
        tmp_path,
        [*documented.splitlines(), *others],
        LONG_HOLD="0.1",
        OTEL_PGPOOL_SPANS="off",
        OTEL_PGPOOL_HISTOGRAMS="none",
        OTEL_PGPOOL_LONG_HOLD="0",
        OTEL_PGPOOL_POOLS="asyncpg",
    )
    assert printed == "waited"
    checkouts = [span for span in receiver.spans if span.name == "pool.checkout"]
    held, waited = sorted(checkouts, key=lambda span: span.start)  # the fast one has left no span, nor has the engine
    events = {event.name for event in held.events}
    assert {"pool.long_hold", "pool.database_state"} <= events
    assert waited.attributes["otel_pgpool.wait_time"] > 0.2
    assert {"db.client.connection.use_time", "db.client.connection.wait_time"} & recorded(receiver) == {
        "db.client.connection.use_time"
    }
    assert [line for line in said if "PgPoolInstrumentor" in line or "default" in line] == []


def test_unknown_and_invalid_options(receiver: HttpReceiver, dsn: str, tmp_path: Path) -> None:
    """A warning names an unknown option, and an error an invalid value; the other options count."""
    options = "spans: off; longhold: 5; long_hold: soon; slow: -1; histograms: none; pools: redis; tracer_provider: {}"
    printed, said = run(receiver, dsn, tmp_path, options.split("; "))
    assert printed == "connection pool exhausted"
    assert [span for span in receiver.spans if span.name.startswith("pool.")] == []  # YAML reads `off` as a boolean
    assert "db.client.connection.use_time" not in recorded(receiver)
    assert "otel_pgpool.checkouts" in recorded(receiver)
    [unknown] = [line for line in said if "PgPoolInstrumentor" in line]
    invalid = [line for line in said if " must be " in line]
    assert unknown.startswith("PgPoolInstrumentor has no option 'longhold', which is ignored; it has spans, ")
    told = {line.split()[0]: line for line in invalid}
    assert told.keys() == {"tracer_provider", "long_hold", "slow", "pools"}
    assert "which a program can give but no file, or None, not {}; the default is used" in told["tracer_provider"]
    assert "not 'soon'; the default is used instead" in told["long_hold"]
    assert "not -1; the default is used instead" in told["slow"]
    assert "not 'redis'; the pools of all libraries are instrumented" in told["pools"]


def test_every_variable_of_the_instrumentation_is_an_option() -> None:
    """An option has the name of its variable; the other variables are those of a `ConnectionPool`."""
    ours = {variable.name[12:].lower() for variable in ENVIRONMENT if variable.name.startswith("OTEL_PGPOOL_")}
    assert {*OPTIONS} - {"tracer_provider", "meter_provider"} <= ours
    assert ours - {*OPTIONS} <= {*signature(ConnectionPool).parameters, "application_name"}
