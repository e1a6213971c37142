"""gevent, which mostly comes late: ``opentelemetry-instrument`` imports the package before the program's first line."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREAMBLE = """
import math, socket
from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.pool import connect
from otel_pgpool.driver import deadline as deadlines
from otel_pgpool.runtime.background import BackgroundThread

class Duties:
    def run_once(self):
        looked.append(len(looked))
        return math.inf

looked = []
duties = Duties()
watch = BackgroundThread(duties, "watch")
taken = socket.socket()
taken.bind(("127.0.0.1", 0))  # and does not listen
pool = ConnectionPool(0, 1, host="127.0.0.1", port=taken.getsockname()[1], open=False, observer=None)

from gevent import monkey
monkey.patch_all()
import gevent
"""

WATCHER = """
def wake(times):
    for _ in range(times):
        seen = len(looked)
        watch.wake()
        while len(looked) == seen:
            gevent.sleep(0)

gevent.joinall([gevent.spawn(wake, 3) for _ in range(4)])
print("went on")
"""

DEADLINE = """
here, there = socket.socketpair()
for seconds in (math.inf, 0.01, math.inf):
    with deadlines.Deadline(there, seconds) as deadline:
        for _ in range(3):
            gevent.sleep(0)
        if seconds < math.inf:
            assert here.recv(1) == b""
print("went on")
"""


OUTAGE = """
connect.random.uniform = lambda low, high: math.inf  # until the next attempt to connect
try:
    pool.getconn(timeout=0.1)
except PoolTimeout:
    pool.close(0)
    print("went on")
"""


@pytest.mark.parametrize("program", [WATCHER, DEADLINE, OUTAGE], ids=["watcher", "deadline", "outage"])
def test_a_thread_that_waits_stops_no_greenlet(program: str) -> None:
    """What was made with the old locks, and is started after the patches, waits as a greenlet does."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_the_end_is_quiet() -> None:
    """The collector runs once more when gevent's greenlets have been finalized."""
    program = "from gevent import monkey\nmonkey.patch_all()\nimport otel_pgpool"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
