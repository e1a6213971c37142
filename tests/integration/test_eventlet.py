"""Under eventlet waits, bounds and long holds are those of its green threads, and its exit is quiet."""

from __future__ import annotations

import pytest

from tests.support.scripts import run_program

PATCH = """
import eventlet
eventlet.monkey_patch()
"""

PROGRAM = """
import logging, os, sys, time
import psycopg2.extensions
from eventlet.hubs import trampoline

def wait(conn):  # as eventlet's own guide has it
    while (state := conn.poll()) != psycopg2.extensions.POLL_OK:
        reads = state == psycopg2.extensions.POLL_READ
        trampoline(conn.fileno(), read=reads, write=not reads)

psycopg2.extensions.set_wait_callback(wait)
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(vars(record).get("otel_pgpool.event"))
logging.getLogger("otel_pgpool").addHandler(handler)
pool = ConnectionPool(1, 2, os.environ["DATABASE_URL"], timeout=10, long_hold=0.3)

def query(_number):
    with pool.connection() as conn, conn.cursor() as cur:
        cur.execute("select pg_sleep(0.2)")

began = time.monotonic()
for _ in eventlet.GreenPool(8).imap(query, range(8)):
    pass
print("two at a time", 0.8 <= time.monotonic() - began < 5, pool.stats().queued >= 6)

with pool.connection():
    eventlet.sleep(0.6)
    print("flagged while held", "long_hold" in told, "database_state" in told)

with pool.connection(), pool.connection():
    began = time.monotonic()
    try:
        pool.getconn(timeout=0.2)
    except PoolTimeout:
        print("timed out", 0.2 <= time.monotonic() - began < 5)
"""


@pytest.mark.parametrize("late", [False, True], ids=["patched first", "patched late"])
def test_eventlet(dsn: str, late: bool) -> None:
    """Patched before the package is imported, or after, as under ``opentelemetry-instrument``."""
    imports = "from otel_pgpool import ConnectionPool, PoolTimeout\n"
    program = (imports + PATCH if late else PATCH + imports) + PROGRAM
    done = run_program(dsn, program, options=["-W", "ignore"])
    assert done.stdout.splitlines() == [
        "two at a time True True",
        "flagged while held True True",
        "timed out True",
    ], done.stderr
    assert (done.returncode, done.stderr) == (0, "")
