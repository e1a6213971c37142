"""Start the programs of this folder, each on a database of its own, and read what a receiver got from them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.program_signals import COUNT, POOL
from tests.support.programs import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg2.extensions import connection

    from tests.support.otlp_views import LogRecord, MetricPoint, Span
    from tests.support.programs import Program
    from tests.support.receivers import HttpReceiver

HERE = Path(__file__).parent
PROGRAMS = HERE.with_name("programs")
ROOT = HERE.parents[3]
WITH_LOGS = {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"}
SOON = {"OTEL_METRIC_EXPORT_INTERVAL": "200"}
AT_THE_END = {f"OTEL_{what}": "600000" for what in ("BSP_SCHEDULE_DELAY", "METRIC_EXPORT_INTERVAL")}
"""A worker that is forked while its parent exports may inherit a locked lock."""


@contextmanager
def started(
    *command: str, receiver: HttpReceiver, beside: connection, listener: object = None, **environ: str
) -> Iterator[Program]:
    """Start a program that finds this folder's modules, in whichever folder it runs."""
    path = os.pathsep.join(map(str, (ROOT, PROGRAMS, HERE)))
    with running(*command, receiver=receiver, beside=beside, listener=listener, PYTHONPATH=path, **environ) as program:
        yield program


def checkouts(receiver: HttpReceiver, pool: str) -> list[Span]:
    return [span for span in receiver.spans if span.name == "pool.checkout" and span.attributes[POOL] == pool]


def pid(span: Span) -> int:
    backend: int = span.attributes["otel_pgpool.connection.pid"]
    return backend


def points(receiver: HttpReceiver, name: str, pool: str, *attributes: str) -> list[MetricPoint]:
    """Return a metric's points of a pool with these values of other attributes, in order of time."""
    expected = {pool, *attributes}
    found = [each for each in receiver.metrics if each.name == name and {*each.attributes.values()} == expected]
    return sorted(found, key=lambda point: point.time)


def level(receiver: HttpReceiver, pool: str, state: str) -> float | None:
    """Return the newest count of a pool's connections in a state; None if there is none yet."""
    found = points(receiver, COUNT, pool, state)
    return found[-1].value if found else None


def inherited(receiver: HttpReceiver) -> list[LogRecord]:
    """Return the records about pools that forked children have inherited."""
    return [record for record in receiver.logs if "in its forked child" in str(record.body)]
