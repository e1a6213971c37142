"""What the tests of the pool share: waiting for conditions, threads with results, deaths, freezes, forks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions

from otel_pgpool import ConnectionPool
from otel_pgpool.runtime import fork as forking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from psycopg2.extensions import connection

IDLE = extensions.TRANSACTION_STATUS_IDLE
IN_TRANSACTION = extensions.TRANSACTION_STATUS_INTRANS
PATIENCE = 15.0  # seconds: reached only by a test that fails


def make(*args: Any, **options: Any) -> ConnectionPool:
    """Create a pool without telemetry, which these tests are not about."""
    options.setdefault("observer", None)
    return ConnectionPool(*args, **options)


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def ask(conn: connection, sql: str, *parameters: object) -> Any:
    """Return the first value of a statement's first row, if there is one."""
    with conn.cursor() as cur:
        cur.execute(sql, parameters or None)
        row = cur.fetchone() if cur.description else None
    return row and row[0]


def in_thread(function: Callable[..., Any], *args: Any, name: str | None = None) -> Future[Any]:
    """Run it in a thread of its own; ``result(PATIENCE)`` gives what it returned, or raises what it raised."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001 - handed on
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def pid_of_a_checkout(pool: ConnectionPool, timeout: float | None = None) -> int:
    """Check out, use the connection, give it back."""
    with pool.connection(timeout) as conn:
        assert ask(conn, "select 1") == 1
        return conn.info.backend_pid


def fill(pool: ConnectionPool, count: int) -> list[int]:
    """Let the pool have ``count`` idle connections, and return their backends."""
    conns = [pool.getconn() for _ in range(count)]
    pids = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    return pids


def let_lie(pool: ConnectionPool, seconds: float = 1.0) -> None:
    """As if every idle connection had been idle for so much longer."""
    for slot in list(pool._parts.core.idle):
        slot.seen -= seconds
        slot.returned -= seconds


def let_last(pool: ConnectionPool, seconds: float = 60.0) -> None:
    """As if every hold had lasted so much longer."""
    for hold in pool._parts.core.holds_now():
        hold.acquired -= seconds
    pool._parts.thread._wakeup.ring()  # the maintenance looks now


def kill(admin: connection, pids: Iterable[int]) -> None:
    """End backends as an administrator does, and wait until they are gone."""
    for pid in pids:
        assert ask(admin, "select pg_terminate_backend(%s, 10000)", pid)


def wait_until_readable(conn: connection) -> None:
    """Until the server has sent something to an idle connection."""
    assert select.select([conn], [], [], PATIENCE)[0]


def lives(admin: connection, pid: int) -> bool:
    return bool(ask(admin, "select count(*) from pg_stat_activity where pid = %s", pid))


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 that refuses connections for as long as the block lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Gate:
    """A ``connection_factory`` that lets the first ``free`` connects through and holds up the others."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> connection:
        with self._lock:
            self.calls += 1
            held_up = self.calls > self.free
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if held_up:
                assert self._open.wait(PATIENCE)
            return extensions.connection(*args, **kwargs)
        finally:
            with self._lock:
                self.at_once -= 1

    def open(self) -> None:
        self._open.set()


class Recorder:
    """An observer that notes every call as (name, arguments)."""

    NAMES = frozenset(
        [
            "attached",
            "started",
            "acquired",
            "failed",
            "released",
            "abandoned",
            "reclaimed",
            "held_long",
            "connected",
            "connect_failed",
            "discarded",
            "outage_started",
            "outage_ended",
            "utilization_changed",
        ]
    )

    def __init__(self) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in self.NAMES:
            raise AttributeError(name)
        return lambda *args: self.events.append((name, args))

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [args for event, args in self.events.copy() if event == name]

    @property
    def outcomes(self) -> list[str]:
        """Of the checkouts that have come back, in order."""
        return [checkout.outcome for (checkout,) in self.calls("released")]

    @property
    def last(self) -> Any:
        """The checkout that came back last."""
        return self.calls("released")[-1][0]


def run_program(
    dsn: str, program: str, *arguments: str, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program's text in a Python of its own, which finds the DSN in ``DATABASE_URL``."""
    return subprocess.run(
        [sys.executable, *options, "-c", program, *arguments],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def fork_in_c() -> int:
    """Fork as servers written in C do, so that Python's own callbacks do not run, at a quiet moment.

    While a thread connects, a child would inherit locks of OpenSSL's. While a thread wants the GIL, CPython would hand
    the GIL to that thread in the child too, where it does not exist, before any code of the pool's runs.
    """
    forking._before()  # waits for connects
    forking._after_in_parent()
    before = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE)  # for so long no thread asks for the GIL that begins to wait for it from now on
    time.sleep(2 * before)  # the others have their turn
    try:
        child: int = ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(before)
    return child


def in_child(function: Callable[[], Any], fork: Callable[[], int] | None = None) -> str:
    """Run it in a forked child and return what it returned as text; what it raised fails the test."""
    read, write = os.pipe()
    child = (fork or os.fork)()  # as it is now: a test may have put another in its place
    if child == 0:
        answer = "failed before it began"
        try:
            signal.alarm(0)
            answer = f"={function()}"
        except BaseException:  # noqa: BLE001 - told to the parent
            answer = traceback.format_exc()
        finally:
            os.write(write, answer.encode()[:60_000])
            os._exit(0)
    os.close(write)
    try:
        told = b""
        while select.select([read], [], [], 30)[0] and (chunk := os.read(read, 65_536)):
            told += chunk
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert told.startswith(b"="), f"in the child: {told.decode() or 'no answer'}"
    return told.decode()[1:]


def pool_threads() -> list[threading.Thread]:
    """Threads that work for pools; the watch over deadlines is the process's."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(("otel_pgpool-maintenance", "otel_pgpool-connector"))
    ]


def connects(dsn: str) -> bool:
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True
