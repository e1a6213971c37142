"""The errors that the next callers see after every idle backend was killed while the server stays up."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn

from benchmarks.peers import MAKERS, Peer, Setup, warm
from benchmarks.row import DBUTILS, OURS, PSYCOPG, PSYCOPG2, QUEUEPOOL, Column, Round, Row, Sample, Target, value

if TYPE_CHECKING:
    from collections.abc import Sequence

BACKENDS = 8
PATIENCE = 3.0
IDLE = 0.1
APPLICATION = "otel_pgpool benchmark"
CHECKED = {f"{PSYCOPG}, check": PSYCOPG, f"{QUEUEPOOL}, pre_ping": QUEUEPOOL, f"{DBUTILS}, ping": DBUTILS}
PLAIN = (OURS, PSYCOPG2, PSYCOPG, QUEUEPOOL, DBUTILS)


def measure(callers: int, contestants: Sequence[str], dsn: str) -> Round:
    """Fill the pool, kill its backends, and let the callers check out."""
    played: Round = {}
    for name in contestants:
        own_dsn = make_dsn(dsn, application_name=APPLICATION)
        setup = Setup(own_dsn, BACKENDS, BACKENDS, timeout=PATIENCE, checked=name in CHECKED)
        peer = MAKERS[CHECKED.get(name, name)](setup)
        warm(peer, BACKENDS)
        kill(dsn)
        played[name] = call_at_once(peer, callers)
        peer.close()
    return played


def kill(dsn: str) -> None:
    """Kill every backend of the pool, and wait until they are gone and the pool has to check its connections."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        backends = "from pg_stat_activity where application_name = %s"
        cursor.execute(f"select pg_terminate_backend(pid) {backends}", [APPLICATION])
        if cursor.rowcount != BACKENDS:
            message = f"{cursor.rowcount} backends to kill, not {BACKENDS}"
            raise RuntimeError(message)
        while True:
            cursor.execute(f"select count(*) {backends}", [APPLICATION])
            if cursor.fetchone() == (0,):
                break
    time.sleep(IDLE)


def call_at_once(peer: Peer, callers: int) -> Sample:
    """Let all callers start at the same time; each tries again until a query succeeds."""
    start = Barrier(callers)
    with ThreadPoolExecutor(callers) as executor:
        futures = [executor.submit(call, peer, start) for _ in range(callers)]
        calls = [future.result() for future in futures]
    return {
        "errors": sum(errors for errors, _ in calls),
        "first": min(took for _, took in calls) * 1e3,
        "last": max(took for _, took in calls) * 1e3,
    }


def call(peer: Peer, start: Barrier) -> tuple[int, float]:
    """Return the number of errors before the first successful query, and the seconds until its end."""
    errors = 0
    start.wait()
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < PATIENCE:
        try:
            with peer.connection() as connection, connection.cursor() as cursor:
                cursor.execute("select 1")
            return errors, time.perf_counter() - began
        except Exception:  # noqa: BLE001 - whatever reaches the application counts
            errors += 1
    return errors, took


def row(name: str, callers: int, work: str) -> Row:
    """Return the row for a number of callers."""
    return Row(
        name=name,
        work=f"{BACKENDS} idle backends killed, server up, then {work}",
        contestants=(*PLAIN, *CHECKED),
        columns=(
            Column("errors", "errors in the application"),
            Column("first", "first successful query, ms", 1),
            Column("last", "all callers served, ms", 1),
        ),
        measure=functools.partial(measure, callers),
        rounds=3,
        targets=(
            Target("errors in the application, in every round", value("errors", OURS), 0, worst=True, unit=""),
            Target("first successful query", value("first", OURS), 100, unit="ms"),
        ),
        note=f"A caller gives up after {PATIENCE:g} s. The other pools are measured with their defaults, and with "
        "their checks of connections.",
    )


ROWS = (
    row("killed", BACKENDS, f"{BACKENDS} callers at once"),
    row("killed-one", 1, "one caller, which gets the dead connections one by one"),
)
