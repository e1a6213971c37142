"""Programs with pools of psycopg_pool: a crowd of tasks, two libraries in one process, Celery's prefork worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integration.programs.support.programs import (
    AT_THE_END,
    PROGRAMS,
    ROOT,
    SOON,
    checkouts,
    level,
    pid,
    points,
    started,
)
from tests.support.instrumentation import name_of
from tests.support.program_signals import POOL
from tests.support.programs import UNDER_OTEL, backends, database, url_of_database
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from psycopg2.extensions import connection

    from tests.support.programs import Program
    from tests.support.receivers import HttpReceiver

pytestmark = pytest.mark.timeout(120)


def last_sum(receiver: HttpReceiver, name: str, pool: str) -> float:
    """Return the newest total of a counter of one process, over all attributes."""
    newest = {
        tuple(sorted(point.attributes.items())): point.value or 0
        for point in sorted(receiver.metrics, key=lambda point: point.time)
        if point.name == name and point.attributes[POOL] == pool
    }
    return sum(newest.values())


def test_200_tasks(receiver: HttpReceiver, dsn: str) -> None:
    """Each task's checkout arrives, those of cancelled tasks too, and their number is the pool's own."""
    with (
        database(dsn, "crowd_of_tasks") as beside,
        started(
            *(*UNDER_OTEL, "python", str(PROGRAMS / "crowd_of_tasks.py")),
            receiver=receiver,
            beside=beside,
            OTEL_PGPOOL_LONG_HOLD="0",
        ) as program,
    ):
        told = json.loads(program.end())
        assert "Traceback" not in program.errors
    stats = told["stats"]
    found = checkouts(receiver, "crowd")
    outcomes = Counter(span.attributes["otel_pgpool.outcome"] for span in found)
    assert outcomes == {"released": told["served"] + 1, "error": told["cancelled"]}
    assert told["cancelled"] == stats["requests_errors"] == 65
    assert len(found) == stats["requests_num"] == 201
    cancelled = [span for span in found if span.attributes["otel_pgpool.outcome"] == "error"]
    assert {span.attributes["error.type"] for span in cancelled} == {"CancelledError"}
    waits = Counter(span.parent_span_id for span in receiver.spans if span.name == "pool.wait")
    assert len(waits) == sum(waits.values()) == stats["requests_queued"] == 195
    assert waits.keys() == {span.span_id for span in found if span.attributes["otel_pgpool.path"] == "queued"}
    assert (stats["pool_size"], stats["pool_available"], stats.get("requests_waiting", 0)) == (5, 5, 0)
    assert last_sum(receiver, "otel_pgpool.checkouts", "crowd") == outcomes["released"]
    assert last_sum(receiver, "otel_pgpool.connections.created", "crowd") == stats["connections_num"] == 5


def test_two_kinds_of_pools(receiver: HttpReceiver, dsn: str) -> None:
    """Each pool reports its own levels and checkouts under its own name."""
    with (
        database(dsn, "two_pools") as beside,
        started(
            *(*UNDER_OTEL, "python", str(PROGRAMS / "two_pools.py")),
            receiver=receiver,
            beside=beside,
            OTEL_PGPOOL_LONG_HOLD="0",
            **SOON,
        ) as program,
    ):
        old = name_of(url_of_database(beside))
        held, *both = json.loads(program.line())
        receiver.wait_for(lambda r: (level(r, old, "used"), level(r, "new", "used")) == (1, 2))
        limits = {pool: points(receiver, "db.client.connection.max", pool)[-1].value for pool in (old, "new")}
        program.tell("release")
        program.end()
    assert limits == {old: 2, "new": 3}
    assert [pid(span) for span in checkouts(receiver, old)] == [held] * 3
    assert len(checkouts(receiver, "new")) == 3
    assert {pid(span) for span in checkouts(receiver, "new")} == {*both}
    assert {span.attributes["otel_pgpool.outcome"] for span in checkouts(receiver, "new")} == {"released"}
    assert {span.attributes[POOL] for span in receiver.spans if span.name == "pool.checkout"} == {old, "new"}


# Celery: a pool that is open when the worker forks its processes

NUMBERS = range(1, 9)
SEND = "import payments, sys; [payments.pay.delay(int(number)) for number in sys.argv[1:]]; payments.pool.close()"


def send(beside: connection, folder: Path) -> None:
    """Send the tasks before the worker starts, which else reads a message that is not written completely."""
    subprocess.run(
        [sys.executable, "-c", SEND, *map(str, NUMBERS)],
        env={
            **os.environ,
            "DATABASE_URL": url_of_database(beside),
            "QUEUE": str(folder),
            "MIN_SIZE": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(PROGRAMS)]),
        },
        check=True,
        timeout=40,
    )


def celery(beside: connection, receiver: HttpReceiver, folder: Path, **environ: str) -> AbstractContextManager[Program]:
    """Start a worker with two processes."""
    return started(
        *("celery", "-A", "payments", "worker", "--concurrency", "2", "--loglevel", "INFO"),
        *("--include", "celery_telemetry"),
        receiver=receiver,
        beside=beside,
        QUEUE=str(folder),
        **{**AT_THE_END, **environ},
    )


def until_logged(program: Program, text: str, times: int) -> None:
    assert wait_until(lambda: program.errors.count(text) >= times, 40), program.errors


@pytest.fixture
def paid(dsn: str) -> Iterator[connection]:
    """Provide the program's database."""
    with database(dsn, "payments") as beside:
        with beside.cursor() as cur:
            cur.execute("create table payments (number int, worker int, backend int)")
        yield beside


def test_repaired_under_celery(receiver: HttpReceiver, paid: connection, tmp_path: Path) -> None:
    """Each process's tasks use connections that it has opened itself, and their checkouts are seen."""
    send(paid, tmp_path)
    with celery(paid, receiver, tmp_path, MIN_SIZE="1", OTEL_PGPOOL_FORK_REPAIR="1") as program:
        until_logged(program, "succeeded", len(NUMBERS))
        with paid.cursor() as cur:
            cur.execute("select number, worker, backend from payments order by number")
            rows = cur.fetchall()
        workers = {worker for _, worker, _ in rows}
        of_parent = backends(paid) - {backend for _, _, backend in rows}
        program.end(signal.SIGTERM)
        errors = program.errors
    assert [number for number, _, _ in rows] == [*NUMBERS]
    pairs = {(worker, backend) for _, worker, backend in rows}
    assert len({backend for _, backend in pairs}) == len(pairs)  # no backend is in two processes
    assert program.process.pid not in workers
    assert of_parent
    assert errors.count("it has begun anew there") == len(workers)
    found = checkouts(receiver, "payments")
    assert sorted(map(pid, found)) == sorted(backend for _, _, backend in rows)
    assert {span.attributes["otel_pgpool.outcome"] for span in found} == {"released"}


def test_reported_under_celery(receiver: HttpReceiver, paid: connection, tmp_path: Path) -> None:
    """Without the repair each task fails as the pool fails; one record in each process has the cause."""
    send(paid, tmp_path)
    with celery(paid, receiver, tmp_path, MIN_SIZE="0") as program:
        until_logged(program, "raised unexpected: PoolTimeout(", len(NUMBERS))
        program.end(signal.SIGTERM)
        errors = program.errors
    parts = (
        f"pool payments: opened in process {program.process.pid}, and used in its forked child ",
        "open the pool after the fork, or set OTEL_PGPOOL_FORK_REPAIR=1\n",
    )
    counts = {errors.count(part) for part in parts}  # and not line by line: processes write to one file
    assert counts in ({1}, {2})  # a process may have got no task
    found = checkouts(receiver, "payments")
    assert [span.attributes["error.type"] for span in found] == ["timeout"] * len(NUMBERS)
